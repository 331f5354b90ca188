// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"

namespace gcs::host {

// poll(2) until `deadline_ns` of CLOCK_MONOTONIC; the number of ready entries, 0 when it has passed.
inline base::Result<int> PollUntil(std::span<pollfd> fds, int64_t deadline_ns) {
  for (;;) {
    const int64_t left_ns = std::max<int64_t>(deadline_ns - base::MonotonicNs(), 0);
    const auto left_ms =
        static_cast<int>(std::min<int64_t>((left_ns + base::kNsPerMs - 1) / base::kNsPerMs, 3'600'000));
    const int n = poll(fds.data(), fds.size(), left_ms);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::ErrnoError("poll");
    return n;
  }
}

// Waits for one descriptor; ETIMEDOUT under the name `step`.
inline base::Result<> WaitFd(int fd, short events, int64_t deadline_ns, std::string_view step) {
  pollfd entry = {.fd = fd, .events = events, .revents = 0};
  GCS_ASSIGN(const int ready, PollUntil({&entry, 1}, deadline_ns));
  if (ready == 0) return base::MakeError(ETIMEDOUT, step);
  return {};
}

}  // namespace gcs::host
