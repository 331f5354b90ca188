// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/cgroup.h"
#include "engine/cgroup_bpf.h"
#include "engine/cgroup_files.h"

// The two versions behind CgroupRoot and Cgroup; only the files of cgroups include this.
namespace gcs::engine {

// `fd`: the cgroup2 mount.
base::Result<std::unique_ptr<CgroupRoot>> OpenCgroupV2(base::Fd fd);
// At least one hierarchy; one of them may be cgroup2.
base::Result<std::unique_ptr<CgroupRoot>> OpenCgroupV1(std::vector<CgroupHierarchy> hierarchies);

// Counters of the cgroup2 directory `dir`; ENOENT or ENODEV if it is gone.
base::Result<CgroupStats> StatsV2(int dir);

}  // namespace gcs::engine
