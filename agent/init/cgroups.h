// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::init {

// The cgroup v2 tree below `root`, with every controller enabled for each of these and for what is below
// containers/:
//   init/        PID 1 and what it starts beside the agent
//   gcs/         the agent; keeps `memory_min` bytes under any pressure, and is never below a group that is
//   frozen containers/  the agent's to divide
struct Cgroups {
  base::Fd init;  // open directories, for CLONE_INTO_CGROUP
  base::Fd agent;
};
base::Result<Cgroups> SetUpCgroups(const std::string& root, uint64_t memory_min);

}  // namespace gcs::init
