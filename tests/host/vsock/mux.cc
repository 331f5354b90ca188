// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/mux.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <bit>
#include <string>
#include <utility>

#include "base/log.h"

namespace gcs::host::vsock {

namespace {
constexpr uint32_t kEvents = EPOLLIN | EPOLLRDHUP | EPOLLET;
constexpr uint32_t kFirstHostPort = 0x8000'0000;
}  // namespace

Mux::Mux(base::Loop* loop, const Options& options, Dialer dial, Signal signal, Stats* stats)
    : loop_(loop), options_(options), dial_(std::move(dial)), signal_(std::move(signal)), stats_(stats) {}

Mux::~Mux() { Stop(); }

void Mux::Start(Virtqueue* rx, Virtqueue* tx) {
  rx_ = rx;
  tx_ = tx;
  tx_blocked_ = false;
  tx_->DisableKick();
  rx_->DisableKick();
  stats_->ready = true;
  SchedulePump();
}

void Mux::Stop() {
  rx_ = tx_ = nullptr;
  stats_->ready = false;
  if (pump_timer_ != 0) loop_->Cancel(std::exchange(pump_timer_, 0));
  if (dial_timer_ != 0) loop_->Cancel(std::exchange(dial_timer_, 0));
  replies_.clear();
  ready_.clear();
  dialling_.clear();
  while (!table_.empty()) Drop(table_.begin()->second);
  while (!draining_.empty()) Drop(*draining_.begin());
}

void Mux::OnKick() {
  if (running()) SchedulePump();
}

void Mux::SchedulePump() {
  if (pump_timer_ == 0) pump_timer_ = loop_->After(0, [this] { Pump(); });
}

void Mux::Pump() {
  pump_timer_ = 0;
  if (running()) PumpTx();
  if (running()) PumpRx();
}

void Mux::QueueFailed(std::string_view queue, const base::Error& error) {
  ++stats_->queue_errors;
  base::LogError("vsock: queue disabled until the driver is reset", error, {{"queue", std::string(queue)}});
  Stop();
}

void Mux::BadPacket(std::string_view why, const Packet& packet) {
  // A hostile guest can send these without end: the log gets the 1st, 2nd, 4th, 8th ...
  const uint64_t count = ++stats_->bad_packets;
  if (!std::has_single_bit(count)) return;
  base::Log(base::Level::kWarn, "vsock: bad packet from the guest",
            {{"why", std::string(why)},
             {"op", std::string(OpName(packet.op))},
             {"guest_port", std::to_string(packet.src_port)},
             {"host_port", std::to_string(packet.dst_port)},
             {"len", std::to_string(packet.len)},
             {"count", std::to_string(count)}});
}

Mux::ConnectionPtr Mux::Find(uint32_t host_port, uint32_t guest_port) {
  const auto it = table_.find(Connection::MakeKey(host_port, guest_port));
  return it == table_.end() ? nullptr : it->second;
}

void Mux::CountConnections() { stats_->connections = table_.size() + draining_.size(); }

void Mux::ConnectGuest(base::Fd socket, uint32_t guest_port) {
  if (!running() || table_.size() + draining_.size() >= options_.max_connections) {
    ++stats_->refused;
    return;
  }
  uint32_t host_port = next_host_port_;
  while (Find(host_port, guest_port) != nullptr)
    host_port = host_port >= 0xFFFF'FFFE ? kFirstHostPort : host_port + 1;
  next_host_port_ = host_port >= 0xFFFF'FFFE ? kFirstHostPort : host_port + 1;

  auto c = std::make_shared<Connection>();
  c->state = Connection::State::kRequested;
  c->host_port = host_port;
  c->guest_port = guest_port;
  c->socket = std::move(socket);
  c->credit.buf_alloc = options_.buf_alloc;
  c->ops = Connection::kSendRequest;
  if (!Watch(c)) return;
  table_[c->Key()] = c;
  CountConnections();
  SetTimer(c, options_.connect_timeout_ns);
  Enqueue(c);
}

bool Mux::Watch(const ConnectionPtr& c) {
  // As much in flight in the kernel as the guest may send: fewer rounds. Refused beyond the system's limit,
  // which is harmless.
  const int size = static_cast<int>(options_.buf_alloc);
  if (setsockopt(c->socket.get(), SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) != 0) {
    setsockopt(c->socket.get(), SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  }
  const auto added =
      loop_->Add(c->socket.get(), kEvents, [this, c](uint32_t events) { OnSocket(c, events); });
  if (!added) {
    base::LogError("vsock: cannot watch a connection", added.error());
    c->socket.Reset();
    return false;
  }
  return true;
}

void Mux::WatchOut(const ConnectionPtr& c, bool on) {
  if (c->watch_out == on || !c->socket) return;
  c->watch_out = on;
  const auto modified = loop_->Modify(c->socket.get(), kEvents | (on ? uint32_t{EPOLLOUT} : 0U));
  if (!modified) base::LogError("vsock: cannot watch a connection", modified.error());
}

void Mux::OnSocket(const ConnectionPtr& c, uint32_t events) {
  if (c->state == Connection::State::kDead || !c->socket) return;
  if ((events & EPOLLOUT) != 0) FlushPending(c);
  if (c->state == Connection::State::kDead || !c->socket) return;
  if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
    OnHangUp(c);
    return;
  }
  if ((events & (EPOLLIN | EPOLLRDHUP)) != 0) {
    c->readable = true;
    if (c->state == Connection::State::kOpen) Enqueue(c);
  }
}

void Mux::OnHangUp(const ConnectionPtr& c) {
  c->host_hup = true;
  switch (c->state) {
    case Connection::State::kRequested:
      // Nobody waits for the guest's answer any more. If the guest has not been asked, it need not know.
      ++stats_->refused;
      if ((c->ops & Connection::kSendRequest) != 0) {
        Drop(c);
      } else {
        Reset(c);
      }
      break;
    case Connection::State::kDraining:
      Drop(c);
      break;
    case Connection::State::kOpen:
      // What the host sent before is still to be read; Serve finds the end and tells the guest.
      if (c->host_eof || c->guest_no_recv) c->host_deaf = c->host_eof = true;
      c->readable = true;
      Enqueue(c);
      break;
    default:
      break;
  }
}

void Mux::Enqueue(const ConnectionPtr& c) {
  if (c->queued) return;
  c->queued = true;
  ready_.push_back(c);
  SchedulePump();
}

void Mux::Reply(const Packet& to, uint16_t op) {
  replies_.push_back({.src_cid = to.dst_cid,
                      .dst_cid = to.src_cid,
                      .src_port = to.dst_port,
                      .dst_port = to.src_port,
                      .type = to.type,
                      .op = op});
  SchedulePump();
}

void Mux::Reset(const ConnectionPtr& c) {
  Reply({.src_cid = options_.guest_cid,
         .dst_cid = kHostCid,
         .src_port = c->guest_port,
         .dst_port = c->host_port},
        VIRTIO_VSOCK_OP_RST);
  Drop(c);
}

void Mux::CloseSocket(const ConnectionPtr& c) {
  if (c->socket) loop_->Remove(c->socket.get());
  c->socket.Reset();
}

void Mux::Drop(const ConnectionPtr& connection) {
  // A copy, because the caller's reference may be the table's own.
  // NOLINTNEXTLINE(performance-unnecessary-copy-initialization)
  const ConnectionPtr c = connection;
  if (c->timer != 0) loop_->Cancel(std::exchange(c->timer, 0));
  CloseSocket(c);
  const auto it = table_.find(c->Key());
  if (it != table_.end() && it->second == c) table_.erase(it);
  draining_.erase(c);
  c->state = Connection::State::kDead;
  c->pending = {};
  CountConnections();
}

void Mux::Detach(const ConnectionPtr& c) {
  // The guest's key is free again, but its last bytes still have to reach a slow reader.
  if (!c->HasPending() || c->host_deaf || !c->socket) {
    Drop(c);
    return;
  }
  if (c->timer != 0) loop_->Cancel(std::exchange(c->timer, 0));
  c->state = Connection::State::kDraining;
  draining_.insert(c);
  table_.erase(c->Key());
}

void Mux::Linger(const ConnectionPtr& c) {
  CloseSocket(c);
  c->pending = {};
  c->pending_done = 0;
  c->state = Connection::State::kLingering;
  SetTimer(c, options_.linger_ns);
}

void Mux::SetTimer(const ConnectionPtr& c, int64_t delay_ns) {
  if (c->timer != 0) loop_->Cancel(c->timer);
  c->timer = loop_->After(delay_ns, [this, c] {
    c->timer = 0;
    if (c->state == Connection::State::kRequested) ++stats_->refused;
    if ((c->ops & Connection::kSendRequest) != 0) {
      Drop(c);
    } else {
      Reset(c);
    }
  });
}

}  // namespace gcs::host::vsock
