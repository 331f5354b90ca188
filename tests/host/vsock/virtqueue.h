// SPDX-License-Identifier: Apache-2.0
#pragma once

// The legacy part does not compile as C++.
#define VIRTIO_RING_NO_LEGACY
#include <linux/virtio_ring.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "host/vsock/memory.h"

namespace gcs::host::vsock {

// One buffer the driver offers: byte ranges to read, then byte ranges to write. The layout is the driver's
// choice.
struct Chain {
  uint16_t head = 0;
  std::vector<iovec> readable;
  std::vector<iovec> writable;
  size_t readable_bytes = 0;
  size_t writable_bytes = 0;
};

// The device's side of a split virtqueue (virtio 1.2, section 2.7). Everything in the rings is the guest's
// word: each index, address, length and chain is checked, each shared word is read once, and what does not
// fit is an error that ends the queue. One thread.
class Virtqueue {
 public:
  struct Config {
    uint32_t num = 0;   // power of two, at most 32768
    uint64_t desc = 0;  // VMM-virtual addresses
    uint64_t avail = 0;
    uint64_t used = 0;
    bool event_idx = false;
    bool indirect = false;
  };

  // `memory` must outlive the queue's use; call Remap after it changed. `base` is the next index of both
  // rings.
  base::Result<> Start(const GuestMemory* memory, const Config& config, uint16_t base);
  base::Result<> Remap();
  // Returns the next available index, for GET_VRING_BASE.
  uint16_t Stop();
  [[nodiscard]] bool running() const { return desc_ != nullptr; }

  // Takes the next chain; false: the ring is empty. Reuses the vectors of `chain`.
  base::Result<bool> Pop(Chain& chain);
  // Gives the last `count` popped chains back unused; nothing popped after them may have been pushed.
  void Unpop(uint16_t count) { next_avail_ = static_cast<uint16_t>(next_avail_ - count); }
  // Returns a chain with `written` bytes in it. The driver sees it at Publish.
  void Push(uint16_t head, uint32_t written);
  // Makes pushed chains visible; true: the driver wants to be signalled.
  bool Publish();
  // Asks the driver for a kick with the next chain; true: chains came meanwhile, do not wait.
  base::Result<bool> EnableKick();
  // Tells the driver not to kick while we are at it.
  void DisableKick();

 private:
  base::Result<uint16_t> Available();
  base::Result<> Walk(vring_desc desc, const vring_desc* table, uint32_t table_size, Chain& chain);
  base::Result<> Append(const vring_desc& desc, Chain& chain) const;

  const GuestMemory* memory_ = nullptr;
  Config config_;
  const vring_desc* desc_ = nullptr;
  vring_avail* avail_ = nullptr;
  vring_used* used_ = nullptr;
  std::vector<iovec> indirect_;    // scratch: where an indirect table lies
  std::vector<vring_desc> table_;  // scratch: its private copy
  uint16_t next_avail_ = 0;
  uint16_t seen_avail_ = 0;  // the driver's index when last read
  uint16_t next_used_ = 0;
  uint16_t published_used_ = 0;
};

}  // namespace gcs::host::vsock
