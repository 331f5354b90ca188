// SPDX-License-Identifier: Apache-2.0
#pragma once

#define VIRTIO_RING_NO_LEGACY
#include <linux/virtio_ring.h>

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "host/vsock/packet.h"

namespace gcs::host::vsock {

// A VMM and a guest's vsock driver in one, for tests of the device: shares a memfd, keeps its own rings,
// speaks vhost-user. A call that cannot go on (no answer for 10 s, a refused request) throws
// std::runtime_error: in a test that is its failure.
class FakeDriver {
 public:
  struct Options {
    uint32_t queue_size = 128;
    uint16_t base = 0;  // first index of both rings, so that a test can come to the wrap-around
    bool event_idx = true;
    bool indirect = false;
    bool random_layout = false;  // packets and rx buffers in 1 to 6 pieces of random size
    uint32_t rx_buffer = 4096;
    uint32_t rx_buffers = 0;  // posted at the start; 0: as many as the queue takes
    uint32_t seed = 1;
  };
  struct Received {
    Packet packet;
    std::string data;
  };

  FakeDriver(std::string vhost_socket, const Options& options);
  ~FakeDriver();
  FakeDriver(const FakeDriver&) = delete;
  FakeDriver& operator=(const FakeDriver&) = delete;

  // Connects and negotiates as QEMU does before the guest runs; Start is what follows DRIVER_OK, Stop what a
  // reset does.
  void ConnectVmm();
  void Start();
  void Stop();
  void DisconnectVmm();
  // The configuration space's guest_cid.
  uint64_t ReadCid();

  // Queues one packet; waits for room in the ring.
  void Send(const Packet& packet, std::string_view data = {});
  // The next packet from the device, if one comes in time; its buffer is posted again.
  std::optional<Received> Receive(int timeout_ms);
  void PostRx(uint32_t count);

  // For hostile guests.
  [[nodiscard]] vring_desc* desc(int queue) const { return rings_[queue].desc; }
  [[nodiscard]] vring_avail* avail(int queue) const { return rings_[queue].avail; }
  [[nodiscard]] uint64_t guest_address(uint64_t offset) const;
  [[nodiscard]] uint8_t* memory() const { return memory_; }
  [[nodiscard]] size_t memory_size() const;
  [[nodiscard]] uint64_t scratch_offset() const;  // 1 MiB that nothing else uses
  void PushAvail(int queue, uint16_t head);
  void Kick(int queue);
  // Signals seen on the call descriptors.
  [[nodiscard]] uint64_t interrupts() const { return interrupts_; }

 private:
  struct Ring {
    vring_desc* desc = nullptr;
    vring_avail* avail = nullptr;
    vring_used* used = nullptr;
    uint16_t next_avail = 0;
    uint16_t last_used = 0;
    uint16_t kicked = 0;
    base::Fd kick;
    base::Fd call;
    std::vector<uint16_t> free;                          // descriptors
    std::vector<std::vector<uint16_t>> chains;           // by head: its descriptors
    std::vector<std::pair<uint64_t, uint32_t>> buffers;  // by head: offset and size
  };

  void Request(uint32_t request, const void* payload, size_t size, const std::vector<int>& fds, bool ack);
  std::vector<uint8_t> Reply(uint32_t request);
  bool Offer(int queue, uint64_t offset, uint32_t size, bool writable);
  void Publish(int queue);
  bool WaitUsed(int queue, int timeout_ms);
  void ReclaimTx();

  const std::string path_;
  const Options options_;
  std::mt19937 random_;
  base::Fd socket_;
  base::Fd memfd_;
  uint8_t* memory_ = nullptr;
  std::array<Ring, 2> rings_;
  std::vector<uint64_t> tx_slots_;  // free, by offset
  uint64_t interrupts_ = 0;
};

}  // namespace gcs::host::vsock
