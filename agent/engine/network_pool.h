// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fd.h"

namespace gcs::engine {

// Network namespaces made in advance, loopback up, for containers that want a new one: making one takes a
// third of the time that a container takes, entering one next to nothing. A thread of its own makes them, one
// at a time, so that a burst has them from clone(2) instead, as without a pool. They have the settings that
// the VM's own namespace had when they were made.
class NetworkPool {
 public:
  // Starts with the first Take; `size` 0: there never are any.
  explicit NetworkPool(size_t size) : size_(size) {}
  ~NetworkPool();
  NetworkPool(const NetworkPool&) = delete;
  NetworkPool& operator=(const NetworkPool&) = delete;

  // A namespace that nobody has been in; invalid if there is none at hand. Any thread, never blocks for long.
  base::Fd Take();
  // Drops the spare ones, and one that is being made: after a change of what they inherit. Any thread.
  void Clear();

 private:
  void Fill();
  [[nodiscard]] size_t Low() const { return size_ / 4; }  // when more are made

  const size_t size_;
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::vector<base::Fd> spare_;
  bool stop_ = false;
  uint64_t generation_ = 0;  // of those in spare_; one more with each Clear
  std::thread filler_;
};

}  // namespace gcs::engine
