// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/loop.h"
#include "host/vsock/connection.h"
#include "host/vsock/packet.h"
#include "host/vsock/virtqueue.h"

namespace gcs::host::vsock {

// Counters that any thread may read.
struct Stats {
  std::atomic<bool> ready = false;        // the guest's driver has started both queues
  std::atomic<uint64_t> connections = 0;  // now
  std::atomic<uint64_t> opened = 0;       // since the start
  std::atomic<uint64_t> refused = 0;      // by either side, or cancelled
  std::atomic<uint64_t> to_guest_bytes = 0;
  std::atomic<uint64_t> from_guest_bytes = 0;
  std::atomic<uint64_t> bad_packets = 0;
  std::atomic<uint64_t> queue_errors = 0;
};

enum QueueIndex : uint8_t { kRxQueue = 0, kTxQueue = 1 };  // as the guest names them

// Carries streams between the two virtqueues and sockets of the host. Lives on the loop's thread.
//
// Nothing grows without bound: at most `max_connections`, each with `buf_alloc` bytes at most; answers to
// unknown packets wait in a short list, and while it is full the tx queue is not read. A host socket is read
// only into rx buffers that are there and within the guest's credit.
class Mux {
 public:
  struct Options {
    uint64_t guest_cid = 3;
    size_t max_connections = 4096;
    uint32_t buf_alloc = 512 * 1024;
    int64_t connect_timeout_ns = 10'000'000'000;  // for the guest's answer to a REQUEST
    int64_t dial_timeout_ns = 2'000'000'000;      // for room in the host listener's backlog
    int64_t linger_ns = 8'000'000'000;            // for the guest's RST after a full shutdown, as in Linux
  };
  // Opens a stream to whoever serves a host port: a non-blocking socket; EAGAIN: try again soon.
  using Dialer = std::function<base::Result<base::Fd>(uint32_t host_port)>;
  // Tells the driver of queue `index` that buffers were used.
  using Signal = std::function<void(QueueIndex index)>;

  Mux(base::Loop* loop, const Options& options, Dialer dial, Signal signal, Stats* stats);
  ~Mux();
  Mux(const Mux&) = delete;
  Mux& operator=(const Mux&) = delete;

  // Both queues are running; they stay the caller's and must outlive Stop.
  void Start(Virtqueue* rx, Virtqueue* tx);
  // The guest's driver is gone: closes every connection.
  void Stop();
  [[nodiscard]] bool running() const { return rx_ != nullptr; }

  // New buffers in either queue: looks at both, soon.
  void OnKick();

  // A host program wants `guest_port`. It reads "OK <host port>\n" and then the stream; a close is a refusal.
  void ConnectGuest(base::Fd socket, uint32_t guest_port);

 private:
  using ConnectionPtr = std::shared_ptr<Connection>;
  enum class Served : uint8_t { kIdle, kMore, kStarved };

  // Packets from the guest (mux_tx.cc).
  void PumpTx();
  void HandlePacket(const Packet& packet, std::span<const iovec> chain, size_t bytes);
  void HandleRequest(const Packet& packet);
  void HandleData(const ConnectionPtr& c, const Packet& packet, std::span<const iovec> chain);
  void HandleShutdown(const ConnectionPtr& c, const Packet& packet);
  void Dial(const ConnectionPtr& c);
  void WriteToHost(const ConnectionPtr& c, std::span<const iovec> data, size_t length);
  void FlushPending(const ConnectionPtr& c);
  void Forwarded(const ConnectionPtr& c, uint32_t bytes);
  void AfterFlush(const ConnectionPtr& c);

  // Packets to the guest (mux_rx.cc).
  void PumpRx();
  Served Serve(const ConnectionPtr& c);
  Served ReadFromHost(const ConnectionPtr& c);
  bool SendPacket(const Packet& packet);
  bool SendControl(const ConnectionPtr& c, uint16_t op, uint32_t flags = 0);
  bool PopRx(Chain& chain);
  Packet Header(Connection& c, uint16_t op, uint32_t flags);
  void PublishRx();

  // Table and sockets (mux.cc).
  ConnectionPtr Find(uint32_t host_port, uint32_t guest_port);
  bool Watch(const ConnectionPtr& c);
  void WatchOut(const ConnectionPtr& c, bool on);
  void OnSocket(const ConnectionPtr& c, uint32_t events);
  void OnHangUp(const ConnectionPtr& c);
  void Enqueue(const ConnectionPtr& c);
  void Reply(const Packet& to, uint16_t op);
  void Reset(const ConnectionPtr& c);  // RST to the guest and Drop
  void Drop(const ConnectionPtr& c);
  void CloseSocket(const ConnectionPtr& c);
  void Detach(const ConnectionPtr& c);
  void Linger(const ConnectionPtr& c);
  void SetTimer(const ConnectionPtr& c, int64_t delay_ns);
  void SchedulePump();
  void Pump();
  void ScheduleDials();
  void QueueFailed(std::string_view queue, const base::Error& error);
  void BadPacket(std::string_view why, const Packet& packet);
  void CountConnections();

  base::Loop* const loop_;
  const Options options_;
  const Dialer dial_;
  const Signal signal_;
  Stats* const stats_;
  Virtqueue* rx_ = nullptr;
  Virtqueue* tx_ = nullptr;
  std::unordered_map<uint64_t, ConnectionPtr> table_;  // by Connection::Key
  std::unordered_set<ConnectionPtr> draining_;
  std::deque<ConnectionPtr> ready_;  // have something for the guest, in turn
  std::deque<Packet> replies_;       // answers that belong to no connection
  std::vector<ConnectionPtr> dialling_;
  std::vector<Chain> chains_;  // scratch of ReadFromHost
  std::vector<iovec> iov_;     // scratch
  Chain tx_chain_;
  Chain control_chain_;
  base::Loop::TimerId pump_timer_ = 0;
  base::Loop::TimerId dial_timer_ = 0;
  bool tx_blocked_ = false;  // PumpTx stopped because replies_ was full
  uint32_t next_host_port_ = 0x8000'0000;
};

}  // namespace gcs::host::vsock
