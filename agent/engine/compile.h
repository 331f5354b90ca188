// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/plan.h"
#include "engine/seccomp.h"
#include "engine/spec.h"

namespace gcs::engine {

// The plan compiler: pure, from the specification to a plan and the list of descriptors that it needs. Opens
// nothing.

struct CompileOptions {
  std::string container_id;
  bool vsock_guard = true;          // see VsockGuard
  uint64_t available_caps = ~0ULL;  // what the daemon itself may grant; more is dropped with a warning
  uint32_t last_cap = 40;           // /proc/sys/kernel/cap_last_cap
};

// What to open for index kFdFirstSource + i.
struct PlanSource {
  enum class Kind : uint8_t {
    kTree,       // detached copy of the mount tree at `path`
    kCgroup,     // detached read-only copy of the container's cgroup directory
    kNamespace,  // namespace file of type `flag`
  };
  Kind kind = Kind::kTree;
  std::string path;
  bool recursive = false;
  uint64_t set = 0, clear = 0, recursive_set = 0, recursive_clear = 0;  // MOUNT_ATTR_*
  uint64_t propagation = 0;                                             // MS_* for the whole tree; 0: private
  int flag = 0;                                                         // CLONE_NEW*
  std::string object;                                                   // for errors: "mounts[3] (/data)"
};

struct CompiledPlan {
  PlanBuilder builder;
  std::vector<PlanSource> sources;
  // Names of what steps work on, for errors: mounts, devices, masked and read-only paths, sysctls, rlimits by
  // index.
  std::vector<std::string> mounts, devices, masked_paths, readonly_paths, sysctls;
  std::string program;
  std::string cwd;
  bool terminal = false;
  int oom_score_adj = 0;
};

base::Result<CompiledPlan> CompileCreate(const Spec& spec, const CompileOptions& options,
                                         const std::shared_ptr<const SeccompFilter>& seccomp);
// `namespaces`: CLONE_NEW* that the container has of its own.
base::Result<CompiledPlan> CompileExec(const Process& process, uint32_t namespaces,
                                       const CompileOptions& options,
                                       const std::shared_ptr<const SeccompFilter>& seccomp);

// The object a failed step was about.
std::string StepObject(const CompiledPlan& plan, Step step, uint32_t index);

}  // namespace gcs::engine
