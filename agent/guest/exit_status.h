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

// The exit of a child, which stays to be reaped: who keeps a note of it does so before. Nothing while it
// lives or its tracer has not let go of it. ECHILD: no child of this process.
base::Result<std::optional<ExitStatus>> PeekExit(int pidfd);
// The same, and reaps it.
base::Result<std::optional<ExitStatus>> Reap(int pidfd);
// Of a process that another one reaps, as init does what an agent that crashed has left: the pidfd itself
// knows, but for times and memory. Nothing while it lives or nobody has reaped it. EOPNOTSUPP before
// Linux 6.15.
base::Result<std::optional<ExitStatus>> ExitByPidfd(int pidfd);
// As of waitpid(2); the times are the caller's to add.
ExitStatus FromWaitStatus(int status);

}  // namespace gcs::guest
