// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace gcs::init {

// How long to wait before a program that has ended is started again: not at all for one that has lived 2 s,
// else 100 ms, doubled up to 5 s. A crash costs little, a crash loop little processor time.
class Backoff {
 public:
  static constexpr int64_t kFirstNs = 100 * base::kNsPerMs;
  static constexpr int64_t kMostNs = 5 * base::kNsPerSec;
  static constexpr int64_t kHealthyNs = 2 * base::kNsPerSec;

  int64_t Next(int64_t lived_ns) {
    if (lived_ns >= kHealthyNs) {
      delay_ns_ = kFirstNs;
      return 0;
    }
    const int64_t delay = delay_ns_;
    delay_ns_ = std::min(delay_ns_ * 2, kMostNs);
    return delay;
  }

 private:
  int64_t delay_ns_ = kFirstNs;
};

}  // namespace gcs::init
