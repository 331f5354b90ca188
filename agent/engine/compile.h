// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/cgroup.h"
#include "engine/plan.h"
#include "engine/seccomp.h"
#include "engine/spec.h"

namespace gcs::engine {

inline constexpr std::string_view kOciVersion = "1.3.0";  // what this engine follows

// The plan compiler: pure, from the specification to a plan and the list of descriptors that it needs. Opens
// nothing.

struct CompileOptions {
  std::string container_id;
  std::string bundle;                        // of the state object that hooks get
  bool new_keyring = true;                   // a session keyring of its own
  std::vector<CgroupHierarchy> hierarchies;  // cgroup v1; empty: v2
  bool vsock_guard = true;                   // see VsockGuard
  uint64_t available_caps = ~0ULL;  // what the daemon itself may grant; more is dropped with a warning
  uint32_t last_cap = 40;           // /proc/sys/kernel/cap_last_cap
  bool spare_network = false;       // there is one to be had in place of a new network namespace
};

// A node of the daemon's for a container that can't make its own; ids are those outside the user namespace.
struct DeviceNode {
  uint32_t mode = 0;  // with S_IFMT
  uint32_t major = 0, minor = 0;
  uint32_t uid = 0, gid = 0;
};

// What to open for index kFdFirstSource + i.
struct PlanSource {
  enum class Kind : uint8_t {
    kTree,           // detached copy of the mount tree at `path`, id-mapped if there are mappings
    kCgroup,         // detached read-only copy of the container's cgroup directory
    kNamespace,      // namespace file of type `flag`
    kTarget,         // pidfd of the container's first process
    kUserNamespace,  // a new user namespace with the mappings
    kProc,           // detached procfs of the daemon's pid namespace
    kGiven,          // descriptor `given` of the caller
    kDevices,        // detached tmpfs with `nodes`, named by their index
    kSpareNetwork,   // a network namespace that nobody has been in
  };
  Kind kind = Kind::kTree;
  std::string path;
  int given = -1;
  int flag = 0;          // CLONE_NEW*
  size_t hierarchy = 0;  // kCgroup: of CompileOptions::hierarchies
  bool recursive = false;
  bool recursive_id_map = false;
  bool sealed_later = false;  // the child sets attributes and propagation, of a tree with this one in it
  uint64_t set = 0, clear = 0, recursive_set = 0, recursive_clear = 0;  // MOUNT_ATTR_*
  uint64_t propagation = 0;                                             // MS_* for the whole tree; 0: private
  std::vector<IdMapping> uid_mappings, gid_mappings;
  std::vector<DeviceNode> nodes;
  std::string object;  // for errors: "mounts[3] (/data)"
};

struct CompiledPlan {
  PlanBuilder builder;
  std::vector<PlanSource> sources;
  // Names of what steps work on, for errors: mounts, devices, masked and read-only paths, sysctls, rlimits by
  // index.
  std::vector<std::string> mounts, devices, masked_paths, readonly_paths, sysctls;
  std::vector<std::string> create_hooks, start_hooks;
  std::string program;
  std::string cwd;
  bool terminal = false;
  bool staged = false;
  std::optional<int> oom_score_adj;
  std::vector<TimeOffset> time_offsets;  // to be written when the stage asks
};

// Whether a spare network namespace could serve: it is to have a new one, and no user namespace to own it.
bool WantsNetwork(const Spec& spec);
base::Result<CompiledPlan> CompileCreate(const Spec& spec, const CompileOptions& options,
                                         const std::shared_ptr<const SeccompFilter>& seccomp);
// `spec`: of the container that the process joins.
base::Result<CompiledPlan> CompileExec(const Process& process, const Spec& spec,
                                       const CompileOptions& options,
                                       const std::shared_ptr<const SeccompFilter>& seccomp);

// The state object of the specification (runtime.md, "State"); `pid` 0: none.
base::Json StateObject(const Spec& spec, const CompileOptions& options, std::string_view status, int pid);

// Descriptors beyond the standard streams: `preserved` become 3, 4, ... of the program; the child waits for
// its start on `listener` (-1: on the sync socket). They stay the caller's. E2BIG if all of the plan's are
// more than one message to the zygote can carry.
base::Result<> AddDescriptors(CompiledPlan& plan, const std::vector<int>& preserved, int listener);

// The object a failed step was about.
std::string StepObject(const CompiledPlan& plan, Step step, uint32_t index);

}  // namespace gcs::engine
