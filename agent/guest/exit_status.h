// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "base/error.h"

namespace gcs::guest {

// How a process ended; common.proto's ExitStatus has the meaning of each field.
struct ExitStatus {
  int exit_code = 0;
  int signal = 0;
  bool oom_killed = false;
  int64_t started_at_ns = 0;  // CLOCK_REALTIME
  int64_t exited_at_ns = 0;   // CLOCK_REALTIME
  int64_t user_time_ns = 0;
  int64_t system_time_ns = 0;
  int64_t max_rss_kib = 0;
};

// Reaps the process of `pidfd`, if it is a child. One that is not (its parent, an agent that crashed, left it
// to init, which reaps it) is asked of the pidfd itself, which has no times and no memory to tell
// (Linux 6.15). Nothing while it lives, its tracer has not let go of it or nobody has reaped it yet. ECHILD:
// no child, and the kernel doesn't tell.
base::Result<std::optional<ExitStatus>> Reap(int pidfd);

}  // namespace gcs::guest
