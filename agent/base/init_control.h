// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::base {

// The agent's line to PID 1: one end of a SEQPACKET socket pair, whose descriptor number init puts into the
// environment variable below (absent when the agent was not started by init). Every packet is one InitMessage
// in the machine's byte order: both ends are built together. init answers each well-formed request with one
// packet that has the request's op and id and kInitReply set (kStoreDrop alone has no reply); anything else
// is logged and dropped, and descriptors sent along are closed. What an agent has sent before its end is done
// before the next agent starts.
inline constexpr const char* kInitFdVariable = "GCS_INIT_FD";
inline constexpr uint32_t kInitMagic = 0x31534347;  // "GCS1"
inline constexpr uint32_t kInitReply = 0x80000000;

enum class InitOp : uint32_t {
  kHello = 1,  // reply: arg = starts of the agent up to now (1: the first), arg2 = how the one before ended:
               // the status of waitpid(2), 0 when there was none
  kPowerOff = 2,  // arg = time in ms that processes get between SIGTERM and SIGKILL, at most 60 000; the
                  // reply comes first
  kReboot = 3,    // as kPowerOff
  // The store: descriptors that init holds under keys chosen by the agent, across lives of the agent. Closing
  // one must not wait for anybody: no files of FUSE, 9P or network file systems.
  kStorePut = 4,  // arg = first key. Descriptors, 1 to kMaxStoreFds by SCM_RIGHTS, are kept under keys arg,
                  // arg+1, ... in the place of what is there. EINVAL: none came, too many, keys beyond 2^64;
                  // ENOSPC: the store is full. After an error nothing of the packet is kept. arg2 = a process
                  // whose exit is to be kept with the first key, should init be the one to reap it; 0: none.
  kStoreDrop = 5,  // arg = first key, arg2 = count: closes them. No reply; keys that there aren't are fine.
  kStoreTake = 6,  // arg = lowest key wanted. Reply: arg = number of descriptors in this packet, arg2 = next
                   // key to ask from, 0 when there are no more; after the InitMessage so many uint64_t keys,
                   // ascending; the descriptors by SCM_RIGHTS. init keeps its own copies.
  kStoreExit = 7,  // arg = the first key of a Put with a process. Reply: how init has seen it end, packed by
                   // InitExit; EAGAIN if it hasn't, ENOENT if there is no such process.
};

// Of a process that init has reaped.
struct InitExit {
  int32_t status = 0;  // as of waitpid(2)
  uint32_t max_rss_kib = 0;
  uint32_t user_ms = 0, system_ms = 0;

  [[nodiscard]] uint64_t Arg() const { return static_cast<uint32_t>(status) | uint64_t{max_rss_kib} << 32; }
  [[nodiscard]] uint64_t Arg2() const { return user_ms | uint64_t{system_ms} << 32; }
  static InitExit From(uint64_t arg, uint64_t arg2) {
    return {static_cast<int32_t>(arg), static_cast<uint32_t>(arg >> 32), static_cast<uint32_t>(arg2),
            static_cast<uint32_t>(arg2 >> 32)};
  }
};
inline constexpr size_t kMaxStoreFds = 32;

struct InitMessage {
  uint32_t magic = kInitMagic;
  uint32_t op = 0;     // InitOp, with kInitReply in a reply
  uint32_t id = 0;     // chosen by the caller, repeated in the reply
  int32_t status = 0;  // in a reply: 0 or an errno
  uint64_t arg = 0;
  uint64_t arg2 = 0;
};
static_assert(sizeof(InitMessage) == 32);

// One packet as it came.
struct InitPacket {
  size_t size = 0;  // as sent; 0 also at the end of the line
  InitMessage message{.magic = 0};
  std::array<uint64_t, kMaxStoreFds> keys{};  // what followed the message
  std::vector<Fd> fds;                        // close-on-exec
  bool fds_cut = false;                       // more came than there was room for
};

// `flags` as of recvmsg(2) and sendmsg(2). Sent is all or nothing.
Result<InitPacket> ReceiveInit(int fd, int flags);
Result<> SendInit(int fd, const InitMessage& message, std::span<const uint64_t> keys,
                  std::span<const int> fds, int flags);

// Sends one request on `fd` and waits at most `timeout_ms` for its reply; a reply with another id is the late
// one of a call that has given up, and is skipped. Errors: ETIMEDOUT, EPIPE or ECONNRESET when init closed
// the line, EPROTO for an answer that is none, what init put into `status`.
Result<InitPacket> CallInit(int fd, const InitMessage& request, std::span<const int> fds,
                            int timeout_ms = 5000);
Result<InitMessage> CallInit(int fd, InitOp op, uint64_t arg = 0, int timeout_ms = 5000);

}  // namespace gcs::base
