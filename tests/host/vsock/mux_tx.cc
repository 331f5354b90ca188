// SPDX-License-Identifier: Apache-2.0
// Packets from the guest.
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "host/vsock/mux.h"

namespace gcs::host::vsock {

namespace {
constexpr size_t kMaxReplies = 256;  // beyond this the tx queue waits, as vhost_vsock does
constexpr int kTxBatch = 256;        // chains per round, so that rx gets its turn
constexpr size_t kMaxIov = 1024;     // UIO_MAXIOV
constexpr int64_t kDialRetryNs = 5'000'000;
constexpr uint32_t kBothShut = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;
}  // namespace

void Mux::PumpTx() {
  tx_blocked_ = replies_.size() >= kMaxReplies;
  int left = kTxBatch;
  bool again = true;
  while (again) {
    again = false;
    bool empty = false;
    while (left > 0 && !tx_blocked_) {
      const auto popped = tx_->Pop(tx_chain_);
      if (!popped) return QueueFailed("tx", popped.error());
      if (!*popped) {
        empty = true;
        break;
      }
      --left;
      Packet packet;
      if (DecodePacket(tx_chain_.readable, packet)) {
        HandlePacket(packet, tx_chain_.readable, tx_chain_.readable_bytes);
      } else {
        BadPacket("shorter than a header", {});
      }
      tx_->Push(tx_chain_.head, 0);
      tx_blocked_ = replies_.size() >= kMaxReplies;
    }
    if (tx_->Publish()) signal_(kTxQueue);
    if (empty) {
      const auto more = tx_->EnableKick();
      if (!more) return QueueFailed("tx", more.error());
      if (*more) {
        tx_->DisableKick();
        again = true;
      }
    }
  }
  if (left == 0 && !tx_blocked_) SchedulePump();
}

void Mux::HandlePacket(const Packet& packet, std::span<const iovec> chain, size_t bytes) {
  // Answers go to the packet's own source, so that nothing but the guest's CID may stand there.
  if (packet.src_cid != options_.guest_cid) return BadPacket("wrong source CID", packet);
  if (packet.dst_cid != kHostCid || packet.type != VIRTIO_VSOCK_TYPE_STREAM) {
    BadPacket(packet.dst_cid != kHostCid ? "not for the host" : "not a stream", packet);
    if (packet.op != VIRTIO_VSOCK_OP_RST) Reply(packet, VIRTIO_VSOCK_OP_RST);
    return;
  }
  const ConnectionPtr c = Find(packet.dst_port, packet.src_port);
  if (packet.op == VIRTIO_VSOCK_OP_REQUEST) {
    // After a full shutdown the guest may use the port again before it has answered.
    if (c != nullptr && c->state == Connection::State::kLingering) {
      Drop(c);
    } else if (c != nullptr) {
      BadPacket("request on an open connection", packet);
      return Reset(c);
    }
    return HandleRequest(packet);
  }
  if (c == nullptr) {
    if (packet.op != VIRTIO_VSOCK_OP_RST) Reply(packet, VIRTIO_VSOCK_OP_RST);
    return;
  }
  c->credit.peer_buf_alloc = packet.buf_alloc;
  c->credit.peer_fwd_cnt = packet.fwd_cnt;
  if (c->credit.SendSpace() > 0) {
    c->asked_credit = false;
    if (c->readable && c->state == Connection::State::kOpen) Enqueue(c);
  }
  const bool streaming = c->state == Connection::State::kOpen || c->state == Connection::State::kLingering;
  switch (packet.op) {
    case VIRTIO_VSOCK_OP_RESPONSE: {
      if (c->state != Connection::State::kRequested || (c->ops & Connection::kSendRequest) != 0) {
        BadPacket("response without request", packet);
        return Reset(c);
      }
      if (c->timer != 0) loop_->Cancel(std::exchange(c->timer, 0));
      c->state = Connection::State::kOpen;
      ++stats_->opened;
      const std::string line = "OK " + std::to_string(c->host_port) + "\n";
      if (send(c->socket.get(), line.data(), line.size(), MSG_NOSIGNAL) !=
          static_cast<ssize_t>(line.size())) {
        return Reset(c);
      }
      c->readable = true;
      return Enqueue(c);
    }
    case VIRTIO_VSOCK_OP_RST:
      if (c->state == Connection::State::kRequested) ++stats_->refused;
      if (c->state == Connection::State::kOpen && c->guest_no_send) return Detach(c);
      return Drop(c);
    case VIRTIO_VSOCK_OP_SHUTDOWN:
      if (!streaming) break;
      return HandleShutdown(c, packet);
    case VIRTIO_VSOCK_OP_RW:
      if (!streaming || packet.len > bytes - kHeaderSize) break;
      return HandleData(c, packet, chain);
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
      return;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
      if (!streaming) break;
      if (c->state == Connection::State::kOpen) {
        c->ops |= Connection::kSendCredit;
        Enqueue(c);
      }
      return;
    default:
      break;
  }
  BadPacket("operation does not fit the connection or its buffer", packet);
  Reset(c);
}

void Mux::HandleRequest(const Packet& packet) {
  if (table_.size() + draining_.size() >= options_.max_connections) {
    ++stats_->refused;
    return Reply(packet, VIRTIO_VSOCK_OP_RST);
  }
  auto c = std::make_shared<Connection>();
  c->state = Connection::State::kDialling;
  c->host_port = packet.dst_port;
  c->guest_port = packet.src_port;
  c->credit.buf_alloc = options_.buf_alloc;
  c->credit.peer_buf_alloc = packet.buf_alloc;
  c->credit.peer_fwd_cnt = packet.fwd_cnt;
  c->deadline_ns = base::MonotonicNs() + options_.dial_timeout_ns;
  table_[c->Key()] = c;
  CountConnections();
  Dial(c);
}

void Mux::Dial(const ConnectionPtr& c) {
  auto socket = dial_(c->host_port);
  if (!socket && socket.error().err == EAGAIN && base::MonotonicNs() < c->deadline_ns) {
    dialling_.push_back(c);
    return ScheduleDials();
  }
  if (socket) {
    c->socket = std::move(*socket);
    if (Watch(c)) {
      c->state = Connection::State::kOpen;
      c->ops |= Connection::kSendResponse;
      c->readable = true;
      ++stats_->opened;
      return Enqueue(c);
    }
  }
  ++stats_->refused;
  Reset(c);
}

void Mux::ScheduleDials() {
  if (dial_timer_ != 0) return;
  dial_timer_ = loop_->After(kDialRetryNs, [this] {
    dial_timer_ = 0;
    auto waiting = std::exchange(dialling_, {});
    for (const ConnectionPtr& c : waiting) {
      if (c->state == Connection::State::kDialling) Dial(c);
    }
  });
}

void Mux::HandleData(const ConnectionPtr& c, const Packet& packet, std::span<const iovec> chain) {
  // The guest sent this before it knew that the host had gone.
  if (c->state == Connection::State::kLingering || packet.len == 0) return;
  if (c->guest_no_send || !c->credit.MayReceive(packet.len)) {
    BadPacket(c->guest_no_send ? "data after shutdown" : "data beyond the credit", packet);
    return Reset(c);
  }
  c->credit.rx_cnt += packet.len;
  stats_->from_guest_bytes += packet.len;
  iov_.clear();
  AppendSlice(chain, kHeaderSize, packet.len, iov_);
  WriteToHost(c, iov_, packet.len);
}

void Mux::WriteToHost(const ConnectionPtr& c, std::span<const iovec> data, size_t length) {
  size_t written = 0;
  if (!c->HasPending() && !c->host_deaf) {
    msghdr message = {};
    message.msg_iov = const_cast<iovec*>(data.data());
    message.msg_iovlen = std::min(data.size(), kMaxIov);
    const ssize_t n = sendmsg(c->socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      written = n;
    } else if (errno != EAGAIN && errno != EINTR) {
      c->host_deaf = true;
    }
  }
  if (c->host_deaf) {
    // The guest hears of it by SHUTDOWN; until then its bytes go nowhere, as on any closed stream.
    Forwarded(c, length);
    return Enqueue(c);
  }
  Forwarded(c, written);
  if (written == length) return;
  if (c->pending_done > 0 && c->pending_done >= c->pending.size() / 2) {
    c->pending.erase(0, c->pending_done);
    c->pending_done = 0;
  }
  for (const iovec& part : data) {
    const size_t skip = std::min(written, part.iov_len);
    written -= skip;
    c->pending.append(static_cast<const char*>(part.iov_base) + skip, part.iov_len - skip);
  }
  WatchOut(c, true);
}

void Mux::FlushPending(const ConnectionPtr& c) {
  while (c->HasPending()) {
    const ssize_t n = send(c->socket.get(), c->pending.data() + c->pending_done,
                           c->pending.size() - c->pending_done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return;
      c->host_deaf = true;
      Forwarded(c, c->pending.size() - c->pending_done);
      if (c->state == Connection::State::kOpen) Enqueue(c);
      break;
    }
    c->pending_done += n;
    Forwarded(c, n);
  }
  c->pending.clear();
  c->pending_done = 0;
  WatchOut(c, false);
  AfterFlush(c);
}

void Mux::Forwarded(const ConnectionPtr& c, uint32_t bytes) {
  c->credit.fwd_cnt += bytes;
  if (c->state != Connection::State::kOpen || !c->credit.ShouldAnnounce()) return;
  c->ops |= Connection::kSendCredit;
  Enqueue(c);
}

void Mux::HandleShutdown(const ConnectionPtr& c, const Packet& packet) {
  if (c->state == Connection::State::kLingering) return Reset(c);
  if ((packet.flags & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0 && !c->guest_no_recv) {
    c->guest_no_recv = true;
    c->readable = false;
    shutdown(c->socket.get(), SHUT_RD);
  }
  if ((packet.flags & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0) c->guest_no_send = true;
  const bool both = (packet.flags & kBothShut) == kBothShut;
  if (both || (c->guest_no_recv && c->guest_no_send)) {
    // The guest has closed. It wants an RST now; a slow host reader still gets every byte.
    Reply(packet, VIRTIO_VSOCK_OP_RST);
    return Detach(c);
  }
  if (!c->HasPending()) AfterFlush(c);
}

void Mux::AfterFlush(const ConnectionPtr& c) {
  if (c->state == Connection::State::kDraining) return Drop(c);
  if (c->guest_no_send && c->socket) shutdown(c->socket.get(), SHUT_WR);
}

}  // namespace gcs::host::vsock
