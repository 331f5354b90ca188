// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace gcs::init {

// How long to wait before a program that has ended is started again: 100 ms, doubled up to 5 s, from the
// start again for one that has lived 10 s. A crash costs little, a crash loop little processor time.
class Backoff {
 public:
  static constexpr int64_t kFirstNs = 100 * base::kNsPerMs;
  static constexpr int64_t kMostNs = 5 * base::kNsPerSec;
  static constexpr int64_t kHealthyNs = 10 * base::kNsPerSec;

  int64_t Next(int64_t lived_ns) {
    if (lived_ns >= kHealthyNs) delay_ns_ = kFirstNs;
    const int64_t delay = delay_ns_;
    delay_ns_ = std::min(delay_ns_ * 2, kMostNs);
    return delay;
  }

 private:
  int64_t delay_ns_ = kFirstNs;
};

}  // namespace gcs::init
