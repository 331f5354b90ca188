// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/spec.h"

namespace gcs::engine {

// One thing to write into a cgroup.
struct CgroupSetting {
  struct Choice {
    std::string file;
    std::string value;  // "-" in front, for cpu.max: the quota that is there
  };
  std::string controller;       // "memory"; "cgroup": core
  std::vector<Choice> choices;  // the first whose file is there
  bool optional = false;        // a kernel without any of the files has what is asked for
};

// What resources mean to cgroup v2 (cgroup-v2.rst) and v1 (cgroup-v1/), in the order in which they are
// written. Pure. EOPNOTSUPP names what that version can't do, by its JSON path; what it merely doesn't know
// any more is left out with a warning.
base::Result<std::vector<CgroupSetting>> SettingsV2(const Resources& resources);
base::Result<std::vector<CgroupSetting>> SettingsV1(const Resources& resources);

// The value of cpu.weight for the v1 notion of shares (2 to 262144, default 1024 gives 100).
uint64_t CpuWeight(uint64_t shares);

}  // namespace gcs::engine
