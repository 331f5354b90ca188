// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>

#include "init/command_line.h"
#include "init/table.h"

namespace gcs::init {

struct ShutdownPlan {
  EndAction action = EndAction::kPowerOff;
  int64_t grace_ns = 0;  // between SIGTERM and SIGKILL
  pid_t agent = 0;       // spared with its cgroup until the grace is over: it reports the others' ends
  std::function<void()> meanwhile;  // called every few ms while waiting: reaps, forwards output
  std::function<void()> release;    // called before anything is unmounted: closes files
};

// Ends every process, syncs, unmounts, detaches devices, and ends the machine. Every step has a time limit,
// so that a dead disk or file server cannot keep the VM alive.
[[noreturn]] void Shutdown(const Table& table, const ShutdownPlan& plan);

// reboot(2) without anything before it; for failures that leave nothing to clean up.
[[noreturn]] void EndMachine(EndAction action);

}  // namespace gcs::init
