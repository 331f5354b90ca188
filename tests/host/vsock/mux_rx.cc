// SPDX-License-Identifier: Apache-2.0
// Packets to the guest.
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>

#include "host/vsock/mux.h"

namespace gcs::host::vsock {

namespace {
constexpr int kTurns = 128;                // served connections per round, so that tx gets its turn
constexpr size_t kReadBatch = 512 * 1024;  // bytes of one connection before the next has its turn
constexpr size_t kMaxIov = 1024;           // UIO_MAXIOV
constexpr size_t kMaxChains = 512;
}  // namespace

void Mux::PumpRx() {
  int turns = kTurns;
  for (;;) {
    bool starved = false;
    while (!replies_.empty() && !starved) {
      if (SendPacket(replies_.front())) {
        replies_.pop_front();
      } else {
        starved = true;
      }
      if (!running()) return;
    }
    while (!starved && !ready_.empty() && turns > 0) {
      --turns;
      const ConnectionPtr c = std::move(ready_.front());
      ready_.pop_front();
      c->queued = false;
      const Served served = Serve(c);
      if (!running()) return;
      if (served == Served::kIdle || c->state == Connection::State::kDead || c->queued) continue;
      c->queued = true;
      if (served == Served::kMore) {
        ready_.push_back(c);
      } else {
        ready_.push_front(c);
        starved = true;
      }
    }
    PublishRx();
    // Serve may have made replies of its own.
    if (!starved && (!replies_.empty() || !ready_.empty())) return SchedulePump();
    if (!starved) break;
    const auto more = rx_->EnableKick();
    if (!more) return QueueFailed("rx", more.error());
    if (!*more) return;  // the driver's kick goes on from here
    rx_->DisableKick();
    if (turns == 0) return SchedulePump();
  }
  if (tx_blocked_) SchedulePump();
}

void Mux::PublishRx() {
  if (rx_->Publish()) signal_(kRxQueue);
}

bool Mux::PopRx(Chain& chain) {
  const auto popped = rx_->Pop(chain);
  if (!popped) {
    QueueFailed("rx", popped.error());
    return false;
  }
  if (!*popped) return false;
  if (chain.writable_bytes > kHeaderSize) return true;
  QueueFailed("rx",
              {"virtqueue", EPROTO, std::to_string(chain.writable_bytes), "rx buffer has no room for data"});
  return false;
}

bool Mux::SendPacket(const Packet& packet) {
  if (!PopRx(control_chain_)) return false;
  EncodePacket(packet, control_chain_.writable);
  rx_->Push(control_chain_.head, kHeaderSize);
  return true;
}

Packet Mux::Header(Connection& c, uint16_t op, uint32_t flags) {
  c.credit.announced_fwd = c.credit.fwd_cnt;
  c.ops &= ~Connection::kSendCredit;
  return {.src_cid = kHostCid,
          .dst_cid = options_.guest_cid,
          .src_port = c.host_port,
          .dst_port = c.guest_port,
          .op = op,
          .flags = flags,
          .buf_alloc = c.credit.buf_alloc,
          .fwd_cnt = c.credit.fwd_cnt};
}

bool Mux::SendControl(const ConnectionPtr& c, uint16_t op, uint32_t flags) {
  if (!PopRx(control_chain_)) return false;
  EncodePacket(Header(*c, op, flags), control_chain_.writable);
  rx_->Push(control_chain_.head, kHeaderSize);
  return true;
}

Mux::Served Mux::Serve(const ConnectionPtr& c) {
  const auto send_op = [&](Connection::Op bit, uint16_t op) {
    if ((c->ops & bit) == 0) return true;
    if (!SendControl(c, op)) return false;
    c->ops &= ~bit;
    return true;
  };
  if (c->state == Connection::State::kRequested) {
    return send_op(Connection::kSendRequest, VIRTIO_VSOCK_OP_REQUEST) ? Served::kIdle : Served::kStarved;
  }
  if (c->state != Connection::State::kOpen) return Served::kIdle;
  if (!send_op(Connection::kSendResponse, VIRTIO_VSOCK_OP_RESPONSE)) return Served::kStarved;

  Served result = Served::kIdle;
  if (c->readable && !c->host_eof && !c->guest_no_recv) {
    result = ReadFromHost(c);
    if (result == Served::kStarved || !running()) return Served::kStarved;
  } else if (c->host_hup) {
    c->host_eof = c->host_deaf = true;
  }
  // Data packets above carried the credit along; this is for one-way streams.
  if (!send_op(Connection::kSendCredit, VIRTIO_VSOCK_OP_CREDIT_UPDATE)) return Served::kStarved;
  if (!send_op(Connection::kAskCredit, VIRTIO_VSOCK_OP_CREDIT_REQUEST)) return Served::kStarved;

  const uint8_t wanted = c->ShutdownWanted();
  if ((wanted & ~c->shutdown_sent) != 0) {
    if (!SendControl(c, VIRTIO_VSOCK_OP_SHUTDOWN, wanted)) return Served::kStarved;
    c->shutdown_sent = wanted;
    if (c->host_eof && c->host_deaf) Linger(c);
  }
  return result;
}

Mux::Served Mux::ReadFromHost(const ConnectionPtr& c) {
  const size_t space = std::min<size_t>(c->credit.SendSpace(), kReadBatch);
  if (space == 0) {
    // Goes on when a packet of the guest brings credit.
    if (!c->asked_credit) c->ops |= Connection::kAskCredit;
    c->asked_credit = true;
    return Served::kIdle;
  }

  // One readv over as many rx buffers as there are: the guest's are small, 4 KiB each in Linux.
  size_t count = 0;
  size_t capacity = 0;
  iov_.clear();
  while (capacity < space && count < kMaxChains) {
    if (count == chains_.size()) chains_.emplace_back();
    Chain& chain = chains_[count];
    if (!PopRx(chain)) break;
    if (count > 0 && iov_.size() + chain.writable.size() > kMaxIov) {
      rx_->Unpop(1);
      break;
    }
    const size_t part = std::min(chain.writable_bytes - kHeaderSize, space - capacity);
    AppendSlice(chain.writable, kHeaderSize, part, iov_);
    capacity += part;
    ++count;
  }
  if (!running() || count == 0) return Served::kStarved;

  const ssize_t n = readv(c->socket.get(), iov_.data(), static_cast<int>(std::min(iov_.size(), kMaxIov)));
  if (n <= 0) {
    rx_->Unpop(count);
    if (n < 0 && errno == EINTR) return Served::kMore;
    if (n < 0 && errno == EAGAIN) {
      c->readable = false;
      return Served::kIdle;
    }
    c->readable = false;
    c->host_eof = true;
    // ECONNRESET: the host closed with data unread.
    if (n < 0 || c->host_hup) c->host_deaf = true;
    return Served::kIdle;
  }

  size_t left = n;
  size_t used = 0;
  for (; left > 0; ++used) {
    const Chain& chain = chains_[used];
    const size_t part = std::min(chain.writable_bytes - kHeaderSize, left);
    Packet header = Header(*c, VIRTIO_VSOCK_OP_RW, 0);
    header.len = part;
    EncodePacket(header, chain.writable);
    rx_->Push(chain.head, kHeaderSize + part);
    left -= part;
  }
  rx_->Unpop(count - used);
  c->credit.tx_cnt += n;
  stats_->to_guest_bytes += n;
  return Served::kMore;
}

}  // namespace gcs::host::vsock
