// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/loop.h"
#include "host/vsock/packet.h"

namespace gcs::host::vsock {

// Flow control of one direction pair, in bytes modulo 2^32 (virtio 1.2, section 5.10.6.3).
struct Credit {
  // Towards the guest.
  uint32_t peer_buf_alloc = 0;
  uint32_t peer_fwd_cnt = 0;
  uint32_t tx_cnt = 0;
  // From the guest.
  uint32_t buf_alloc = 0;
  uint32_t rx_cnt = 0;         // received
  uint32_t fwd_cnt = 0;        // handed on to the host's socket
  uint32_t announced_fwd = 0;  // as last told to the guest

  [[nodiscard]] uint32_t SendSpace() const {
    const uint32_t in_flight = tx_cnt - peer_fwd_cnt;
    return in_flight >= peer_buf_alloc ? 0 : peer_buf_alloc - in_flight;
  }
  [[nodiscard]] bool MayReceive(uint32_t bytes) const {
    const uint32_t queued = rx_cnt - fwd_cnt;
    return bytes <= buf_alloc && queued <= buf_alloc - bytes;
  }
  [[nodiscard]] bool ShouldAnnounce() const { return fwd_cnt - announced_fwd >= buf_alloc / 4; }
};

// One stream between a guest port and a socket of the host. A plain record: the Mux decides.
struct Connection {
  enum class State : uint8_t {
    kDialling,   // the guest asked; the host's listener has a full backlog
    kRequested,  // the host asked; waiting for the guest's RESPONSE
    kOpen,
    kDraining,   // the guest is done and forgotten; what it sent is still on its way to the host's socket
    kLingering,  // the host is gone and the guest knows; waiting for its RST
    kDead,       // taken out of all tables; whoever still holds it lets go
  };
  // Packets to be sent to the guest.
  enum Op : uint8_t {
    kSendRequest = 1,
    kSendResponse = 2,
    kSendCredit = 4,
    kAskCredit = 8,
  };

  State state = State::kOpen;
  uint8_t ops = 0;             // of Op
  bool queued = false;         // in the Mux's list of connections that have something for the guest
  bool readable = false;       // the host's socket has not yet answered EAGAIN
  bool host_hup = false;       // the host's socket is closed in both directions
  bool host_eof = false;       // the host will send no more
  bool host_deaf = false;      // the host will receive no more
  bool guest_no_send = false;  // the guest has shut down sending ...
  bool guest_no_recv = false;  // ... and receiving
  bool asked_credit = false;   // CREDIT_REQUEST is on its way for the present stall
  bool watch_out = false;      // EPOLLOUT is asked for
  uint8_t shutdown_sent = 0;   // VIRTIO_VSOCK_SHUTDOWN_* flags told to the guest
  uint32_t host_port = 0;
  uint32_t guest_port = 0;
  int64_t deadline_ns = 0;        // of kDialling
  base::Loop::TimerId timer = 0;  // of kRequested and kLingering
  base::Fd socket;
  Credit credit;
  std::string pending;      // from the guest, not yet taken by the socket; at most credit.buf_alloc bytes
  size_t pending_done = 0;  // of which these are written

  [[nodiscard]] bool HasPending() const { return pending_done < pending.size(); }
  [[nodiscard]] uint64_t Key() const { return MakeKey(host_port, guest_port); }
  static uint64_t MakeKey(uint32_t host_port, uint32_t guest_port) {
    return (static_cast<uint64_t>(host_port) << 32) | guest_port;
  }
  // Shutdown flags that the guest ought to know.
  [[nodiscard]] uint8_t ShutdownWanted() const {
    return (host_eof ? VIRTIO_VSOCK_SHUTDOWN_SEND : 0) | (host_deaf ? VIRTIO_VSOCK_SHUTDOWN_RCV : 0);
  }
};

}  // namespace gcs::host::vsock
