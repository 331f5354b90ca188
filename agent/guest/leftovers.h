// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace gcs::guest {

// Which cgroups an earlier life of the agent may have left.
struct LeftoverCgroups {
  std::string mount = "/sys/fs/cgroup";                       // cgroup2
  std::vector<std::string> kept = {"init", "gcs"};            // names in the root that no container can have
  std::vector<std::string> parents = {"containers", "pods"};  // stay themselves, what is below them goes
  std::vector<std::string> living = {};                       // paths of those that have been taken over
};

// Kills what an agent that did not end by itself left that could not be taken over, like a container that it
// was in the middle of making: in no table and out of everybody's reach, its cgroup (with its limits) and
// mounts stand in the way of new ones. To be called before the first container is made, in a machine that is
// the agent's alone. Returns how many cgroups are gone; goes on after a failure and returns the first. Waits
// for the ends until the deadline.
base::Result<size_t> RemoveLeftovers(const LeftoverCgroups& cgroups, int64_t deadline_ns);

}  // namespace gcs::guest
