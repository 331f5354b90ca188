// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

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

}  // namespace gcs::guest
