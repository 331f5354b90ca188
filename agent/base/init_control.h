// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <cstdint>

#include "base/error.h"

namespace gcs::base {

// The agent's line to PID 1: one end of a SEQPACKET socket pair, whose descriptor number init puts into the
// environment variable below (absent when the agent was not started by init). Every packet is one InitMessage
// in the machine's byte order: both ends are built together. init answers each well-formed request with one
// packet that has the request's op and id and kInitReply set; anything else is logged and dropped, and
// descriptors sent along are closed.
inline constexpr const char* kInitFdVariable = "GCS_INIT_FD";
inline constexpr uint32_t kInitMagic = 0x31534347;  // "GCS1"
inline constexpr uint32_t kInitReply = 0x80000000;

enum class InitOp : uint32_t {
  kHello = 1,  // reply: arg = starts of the agent up to now (1: the first), arg2 = how the one before ended:
               // the status of waitpid(2), 0 when there was none
  kPowerOff = 2,  // arg = time in ms that processes get between SIGTERM and SIGKILL, at most 60 000; the
                  // reply comes first
  kReboot = 3,    // as kPowerOff
};

struct InitMessage {
  uint32_t magic = kInitMagic;
  uint32_t op = 0;     // InitOp, with kInitReply in a reply
  uint32_t id = 0;     // chosen by the caller, repeated in the reply
  int32_t status = 0;  // in a reply: 0 or an errno
  uint64_t arg = 0;
  uint64_t arg2 = 0;
};
static_assert(sizeof(InitMessage) == 32);

// Sends one request on `fd` and waits at most `timeout_ms` for its reply. Errors: ETIMEDOUT, EPIPE or
// ECONNRESET when init closed the line, EPROTO for an answer that is none, what init put into `status`.
inline Result<InitMessage> CallInit(int fd, InitOp op, uint64_t arg = 0, int timeout_ms = 5000) {
  InitMessage message{.op = static_cast<uint32_t>(op), .arg = arg};
  if (send(fd, &message, sizeof message, MSG_NOSIGNAL) != sizeof message) return ErrnoError("send", "init");
  pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
  const int ready = poll(&wait, 1, timeout_ms);
  if (ready < 0) return ErrnoError("poll", "init");
  if (ready == 0) return MakeError(ETIMEDOUT, "wait for init");
  const ssize_t n = recv(fd, &message, sizeof message, MSG_TRUNC);
  if (n < 0) return ErrnoError("recv", "init");
  if (n == 0) return MakeError(EPIPE, "recv", "init");
  if (n != sizeof message || message.magic != kInitMagic ||
      message.op != (static_cast<uint32_t>(op) | kInitReply)) {
    return MakeError(EPROTO, "recv", "init");
  }
  if (message.status != 0) return MakeError(message.status, "init request");
  return message;
}

}  // namespace gcs::base
