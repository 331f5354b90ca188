// SPDX-License-Identifier: Apache-2.0
#include "engine/compile.h"

#include <linux/filter.h>
#include <sched.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/log.h"
#include "engine/compile_mount.h"

namespace gcs::engine {

using base::MakeError;
using base::Result;

namespace {

struct DefaultDevice {
  const char* path;
  uint32_t major, minor;
};
// config-linux.md, "Default Devices".
constexpr std::array<DefaultDevice, 6> kDefaultDevices{{{"/dev/null", 1, 3},
                                                        {"/dev/zero", 1, 5},
                                                        {"/dev/full", 1, 7},
                                                        {"/dev/random", 1, 8},
                                                        {"/dev/urandom", 1, 9},
                                                        {"/dev/tty", 5, 0}}};

uint64_t Grantable(uint64_t wanted, const CompileOptions& options, std::string_view set) {
  const uint64_t known = options.last_cap >= 63 ? ~0ULL : (uint64_t{2} << options.last_cap) - 1;
  const uint64_t granted = wanted & options.available_caps & known;
  if (granted != wanted) {
    base::Log(base::Level::kWarn, "capabilities that this agent can't grant are left out",
              {{"container", options.container_id},
               {"set", std::string(set)},
               {"mask", std::to_string(wanted & ~granted)}});
  }
  return granted;
}

ArrayRef Slots(PlanBuilder& builder, const std::vector<std::string>& strings, size_t extra) {
  std::vector<uint64_t> slots;
  slots.reserve(strings.size() + extra);
  for (const std::string& text : strings) slots.push_back(builder.String(text));
  slots.resize(slots.size() + extra);
  return builder.Array(slots);
}

// One procfs serves all that is written through it.
void NeedProc(CompiledPlan& plan) {
  int32_t& fd = plan.builder.header().proc_fd;
  if (fd < 0) fd = AddSource(plan, {.kind = PlanSource::Kind::kProc, .object = "procfs"});
}

void CompileScheduling(const Process& process, CompiledPlan& plan) {
  PlanBuilder& builder = plan.builder;
  PlanHeader& header = builder.header();
  if (process.scheduler) {
    const Scheduler& from = *process.scheduler;
    const PlanScheduler scheduler{.size = sizeof(PlanScheduler),
                                  .policy = from.policy,
                                  .flags = from.flags,
                                  .nice = from.nice,
                                  .priority = from.priority,
                                  .runtime = from.runtime,
                                  .deadline = from.deadline,
                                  .period = from.period};
    header.scheduler = builder.Array(&scheduler, 1);
  }
  if (process.io_priority) {
    header.flags |= kPlanIoPriority;
    header.io_priority = *process.io_priority;
  }
}

void CompileLabels(const Process& process, CompiledPlan& plan) {
  PlanHeader& header = plan.builder.header();
  if (!process.apparmor_profile.empty()) header.apparmor = plan.builder.String(process.apparmor_profile);
  if (!process.selinux_label.empty()) header.selinux = plan.builder.String(process.selinux_label);
  if (header.apparmor != 0 || header.selinux != 0) NeedProc(plan);
}

// What the container's configuration says of all its processes.
void CompileShared(const Spec& spec, const CompileOptions& options, CompiledPlan& plan) {
  PlanBuilder& builder = plan.builder;
  PlanHeader& header = builder.header();
  if (spec.personality) {
    header.flags |= kPlanPersonality;
    header.personality = *spec.personality;
  }
  if (spec.memory_policy) {
    header.flags |= kPlanMemoryPolicy;
    header.memory_mode = spec.memory_policy->mode;
    header.memory_nodes = builder.Array(spec.memory_policy->nodes);
  }
  header.keyring = options.new_keyring ? builder.String("_ses." + options.container_id) : 0;
  if (spec.FindNamespace(CLONE_NEWUSER) == nullptr) return;
  header.flags |= kPlanUserNamespace;
  // Root in there, or if it has none the first id that it has.
  const auto first = [](const std::vector<IdMapping>& mappings) {
    const bool root = mappings.empty() ||
                      std::ranges::any_of(mappings, [](const IdMapping& m) { return m.container_id == 0; });
    return root ? 0 : mappings[0].container_id;
  };
  header.setup_uid = first(spec.uid_mappings);
  header.setup_gid = first(spec.gid_mappings);
}

void CompileProcess(const Process& process, const CompileOptions& options, CompiledPlan& plan) {
  PlanBuilder& builder = plan.builder;
  PlanHeader& header = builder.header();
  plan.terminal = process.terminal;
  plan.program = process.args[0];
  plan.cwd = process.cwd;
  plan.oom_score_adj = process.oom_score_adj;

  // The last of duplicates wins, as a shell would have it.
  std::vector<std::string> env;
  for (const std::string& entry : process.env) {
    const std::string_view name = std::string_view(entry).substr(0, entry.find('=') + 1);
    const auto same = std::ranges::find_if(env, [&](const std::string& e) { return e.starts_with(name); });
    if (same != env.end()) {
      *same = entry;
    } else {
      env.push_back(entry);
    }
    if (name == "HOME=" && entry.size() > name.size()) header.flags |= kPlanHasHome;
  }
  // An empty HOME counts as none: the child looks it up.
  if ((header.flags & kPlanHasHome) == 0) std::erase(env, "HOME=");
  header.args = Slots(builder, process.args, 1);
  header.env = Slots(builder, env, 2);
  header.cwd = builder.String(process.cwd);
  header.uid = process.uid;
  header.gid = process.gid;
  header.umask = process.umask;
  header.groups = builder.Array(process.additional_gids);
  header.rows = process.console_height;
  header.columns = process.console_width;
  if (process.terminal) header.flags |= kPlanTerminal;
  if (process.no_new_privileges) header.flags |= kPlanNoNewPrivileges;
  header.last_cap = options.last_cap;
  header.bounding = Grantable(process.capabilities.bounding, options, "bounding");
  header.permitted = Grantable(process.capabilities.permitted, options, "permitted");
  header.effective = Grantable(process.capabilities.effective, options, "effective") & header.permitted;
  header.inheritable = Grantable(process.capabilities.inheritable, options, "inheritable");
  // The kernel raises a capability into the ambient set only if it is permitted and inheritable.
  header.ambient = process.capabilities.ambient & header.permitted & header.inheritable;
  std::vector<PlanRlimit> rlimits;
  for (const Rlimit& limit : process.rlimits) rlimits.push_back({limit.resource, 0, limit.soft, limit.hard});
  header.rlimits = builder.Array(rlimits);
  CompileScheduling(process, plan);
  CompileLabels(process, plan);
  header.sync_fd = kFdSync;
  if (!process.terminal) header.stdio_fds = {kFdStdin, kFdStdin + 1, kFdStdin + 2};
  if (options.hierarchies.empty()) {
    header.cgroup_fd = kFdCgroup;
  } else {
    header.flags |= kPlanAwaitCgroup;
  }
}

void CompileSeccompFilters(const CompileOptions& options, const std::shared_ptr<const SeccompFilter>& seccomp,
                           PlanBuilder& builder) {
  std::vector<PlanSeccomp> filters;
  const auto add = [&](const SeccompFilter& filter) {
    ArrayRef code = builder.Array(filter.code);
    code.count = filter.code.size() / sizeof(sock_filter);
    filters.push_back({code, filter.flags, 0});
  };
  if (options.vsock_guard) add(VsockGuard());
  if (seccomp != nullptr) add(*seccomp);
  builder.header().seccomp = builder.Array(filters);
}

// Outside id of `id` in the container; none without a mapping for it.
std::optional<uint32_t> HostId(uint32_t id, const std::vector<IdMapping>& mappings) {
  for (const IdMapping& m : mappings) {
    if (id >= m.container_id && id - m.container_id < m.size) return m.host_id + (id - m.container_id);
  }
  return std::nullopt;
}

Result<> CompileDevices(const Spec& spec, CompiledPlan& plan) {
  PlanBuilder& builder = plan.builder;
  std::vector<Device> all;
  const auto configured = [&](std::string_view path) {
    return std::ranges::any_of(spec.devices, [&](const Device& device) { return device.path == path; });
  };
  if (!BindsDev(spec)) {
    builder.header().flags |= kPlanDefaultDevices;
    for (const DefaultDevice& device : kDefaultDevices) {
      if (configured(device.path)) continue;
      all.push_back({.path = device.path, .major = device.major, .minor = device.minor});
    }
  }
  const size_t defaults = all.size();
  all.insert(all.end(), spec.devices.begin(), spec.devices.end());
  // A user namespace can't make nodes; the daemon does, with the ids that they are to have in there.
  const bool user = spec.FindNamespace(CLONE_NEWUSER) != nullptr;
  PlanSource nodes{.kind = PlanSource::Kind::kDevices, .object = "device nodes"};
  std::vector<PlanDevice> devices;
  for (const Device& device : all) {
    const uint32_t type = device.type == 'b' ? S_IFBLK : device.type == 'p' ? S_IFIFO : S_IFCHR;
    devices.push_back({builder.String(device.path), type | device.mode, device.major, device.minor,
                       device.uid, device.gid, devices.size() < defaults ? 0U : 1U});
    plan.devices.push_back(device.path);
    if (!user) continue;
    // Of a namespace that is joined nothing is known: its nodes belong to nobody, and everybody may use them.
    const auto uid = spec.uid_mappings.empty() ? 0 : HostId(device.uid, spec.uid_mappings);
    const auto gid = spec.gid_mappings.empty() ? 0 : HostId(device.gid, spec.gid_mappings);
    if (!uid || !gid) {
      return MakeError(EINVAL, "compile plan", device.path, "its owner has no id outside the user namespace");
    }
    nodes.nodes.push_back({type | device.mode, device.major, device.minor, *uid, *gid});
  }
  if (!nodes.nodes.empty()) builder.header().devices_fd = AddSource(plan, std::move(nodes));
  builder.header().devices = builder.Array(devices);
  return {};
}

ArrayRef CompilePaths(const std::vector<std::string>& paths, std::vector<std::string>& names,
                      PlanBuilder& builder) {
  std::vector<StringRef> refs;
  for (const std::string& path : paths) {
    if (std::ranges::find(names, path) != names.end()) continue;
    refs.push_back(builder.String(path));
    names.push_back(path);
  }
  return builder.Array(refs);
}

void CompileNamespaces(const Spec& spec, const CompileOptions& options, CompiledPlan& plan) {
  PlanHeader& header = plan.builder.header();
  std::vector<PlanJoin> joins;
  std::optional<PlanJoin> user;  // last: whoever enters one can't join what it doesn't own any more
  for (const Namespace& ns : spec.namespaces) {
    if (!ns.path.empty()) {
      const PlanJoin join{
          AddSource(
              plan,
              {.kind = PlanSource::Kind::kNamespace, .path = ns.path, .flag = ns.flag, .object = ns.path}),
          ns.flag};
      if (ns.flag == CLONE_NEWUSER) {
        user = join;
      } else {
        joins.push_back(join);
      }
      plan.staged = plan.staged || ns.flag == CLONE_NEWUSER || ns.flag == CLONE_NEWPID;
    } else if (ns.flag == CLONE_NEWUSER) {
      user = PlanJoin{AddSource(plan, {.kind = PlanSource::Kind::kUserNamespace,
                                       .uid_mappings = spec.uid_mappings,
                                       .gid_mappings = spec.gid_mappings,
                                       .object = "user namespace"}),
                      ns.flag};
      plan.staged = true;
    } else if (ns.flag == CLONE_NEWNET && options.spare_network) {
      joins.push_back(
          {AddSource(plan, {.kind = PlanSource::Kind::kSpareNetwork, .object = "network namespace"}),
           ns.flag});
    } else if (ns.flag == CLONE_NEWTIME) {
      header.flags |= kPlanNewTime;
      plan.time_offsets = spec.time_offsets;
      plan.staged = true;
    } else {
      header.clone_flags |= static_cast<uint32_t>(ns.flag);
    }
  }
  if (user) joins.push_back(*user);
  header.joins = plan.builder.Array(joins);
  if (plan.staged) header.flags |= kPlanStaged;
  // Its root is the cgroup that the process is in when it makes it.
  if (!options.hierarchies.empty() && !plan.staged && (header.clone_flags & CLONE_NEWCGROUP) != 0) {
    header.clone_flags &= ~uint64_t{CLONE_NEWCGROUP};
    header.flags |= kPlanUnshareCgroup;
  }
  if ((header.clone_flags & CLONE_NEWNET) != 0) header.flags |= kPlanLoopbackUp;
}

// The kernel lets a user namespace mount procfs and sysfs only where it sees ones with nothing hidden.
void CompileVisible(const Spec& spec, CompiledPlan& plan) {
  if (spec.FindNamespace(CLONE_NEWUSER) == nullptr) return;
  PlanHeader& header = plan.builder.header();
  constexpr std::array<std::string_view, 2> kTypes{"proc", "sysfs"};
  constexpr std::array<const char*, 2> kPaths{"/proc", "/sys"};
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (std::ranges::find(spec.mounts, kTypes[i], &Mount::type) == spec.mounts.end()) continue;
    header.visible_fds[i] = AddSource(plan, {.path = kPaths[i], .object = kPaths[i]});
  }
}

ArrayRef CompileHooks(const std::vector<Hook>& hooks, std::vector<std::string>& names, PlanBuilder& builder) {
  std::vector<PlanHook> items;
  for (const Hook& hook : hooks) {
    items.push_back({.path = builder.String(hook.path),
                     .reserved = 0,
                     .args = Slots(builder, hook.args.empty() ? std::vector{hook.path} : hook.args, 1),
                     .env = Slots(builder, hook.env, 1),
                     .timeout_ns = hook.timeout_ns});
    names.push_back(hook.path);
  }
  return builder.Array(items);
}

void CompileAllHooks(const Spec& spec, const CompileOptions& options, CompiledPlan& plan) {
  const Hooks& hooks = spec.hooks;
  PlanHeader& header = plan.builder.header();
  // Devices come before these hooks, which may set them up.
  if (!hooks.prestart.empty() || !hooks.create_runtime.empty() || !spec.net_devices.empty()) {
    header.flags |= kPlanRuntimeHooks;
  }
  header.create_hooks = CompileHooks(hooks.create_container, plan.create_hooks, plan.builder);
  header.start_hooks = CompileHooks(hooks.start_container, plan.start_hooks, plan.builder);
  if (hooks.create_container.empty() && hooks.start_container.empty()) return;
  // The child knows its process id, the daemon the rest.
  const std::string state =
      StateObject(spec, options, "created", 0).dump(-1, ' ', false, base::Json::error_handler_t::replace);
  header.state_before = plan.builder.String(state.substr(0, state.size() - 1) + ",\"pid\":");
  header.state_after = plan.builder.String("}");
  if (hooks.create_container.empty()) return;
  header.runtime_fd =
      AddSource(plan, {.path = "/", .recursive = true, .object = "the runtime's file systems"});
  header.runtime_root = plan.builder.String(spec.root_path);
}

// Root of a user namespace has all capabilities in there, whatever the daemon lacks.
CompileOptions WithUserNamespace(const Spec& spec, CompileOptions options) {
  if (spec.FindNamespace(CLONE_NEWUSER) != nullptr) options.available_caps = ~0ULL;
  return options;
}

}  // namespace

bool WantsNetwork(const Spec& spec) {
  const Namespace* network = spec.FindNamespace(CLONE_NEWNET);
  return network != nullptr && network->path.empty() && spec.FindNamespace(CLONE_NEWUSER) == nullptr;
}

Result<CompiledPlan> CompileCreate(const Spec& spec, const CompileOptions& options,
                                   const std::shared_ptr<const SeccompFilter>& seccomp) {
  if (!spec.process) return MakeError(EINVAL, "compile plan", "process", "is required to create a container");
  CompiledPlan plan;
  PlanBuilder& builder = plan.builder;
  CompileProcess(*spec.process, WithUserNamespace(spec, options), plan);
  CompileShared(spec, options, plan);
  PlanHeader& header = builder.header();
  header.root_fd = AddSource(
      plan, {.path = spec.root_path, .recursive = true, .object = "root.path (" + spec.root_path + ")"});
  CompileNamespaces(spec, options, plan);
  CompileVisible(spec, plan);
  CompileAllHooks(spec, options, plan);
  if (!spec.hostname.empty()) header.hostname = builder.String(spec.hostname);
  if (!spec.domainname.empty()) header.domainname = builder.String(spec.domainname);
  if (spec.root_readonly) header.flags |= kPlanRootReadonly;
  header.root_propagation = spec.rootfs_propagation;
  GCS_TRY(CompileMounts(spec, options, plan));
  GCS_TRY(CompileDevices(spec, plan));
  header.masked_paths = CompilePaths(spec.masked_paths, plan.masked_paths, builder);
  header.readonly_paths = CompilePaths(spec.readonly_paths, plan.readonly_paths, builder);
  std::vector<PlanSysctl> sysctls;
  for (const auto& [key, value] : spec.sysctl) {
    sysctls.push_back({builder.String("sys/" + key), builder.String(value)});
    plan.sysctls.push_back(key);
  }
  header.sysctls = builder.Array(sysctls);
  if (!sysctls.empty()) NeedProc(plan);
  CompileSeccompFilters(options, seccomp, builder);
  return plan;
}

Result<CompiledPlan> CompileExec(const Process& process, const Spec& spec, const CompileOptions& options,
                                 const std::shared_ptr<const SeccompFilter>& seccomp) {
  CompiledPlan plan;
  PlanHeader& header = plan.builder.header();
  // Index kFdTarget is the first source's.
  header.target_fd = AddSource(plan, {.kind = PlanSource::Kind::kTarget, .object = "first process"});
  CompileProcess(process, WithUserNamespace(spec, options), plan);
  CompileShared(spec, options, plan);
  header.initial_affinity = plan.builder.Array(process.initial_affinity);
  header.final_affinity = plan.builder.Array(process.final_affinity);
  header.flags |= kPlanExec;
  for (const Namespace& ns : spec.namespaces) {
    // The pid namespace is the zygote's business, see zygote.cc.
    if (ns.flag != CLONE_NEWPID) header.join_flags |= static_cast<uint32_t>(ns.flag);
  }
  CompileSeccompFilters(options, seccomp, plan.builder);
  return plan;
}

base::Json StateObject(const Spec& spec, const CompileOptions& options, std::string_view status, int pid) {
  base::Json state{{"ociVersion", kOciVersion},
                   {"id", options.container_id},
                   {"status", status},
                   {"bundle", options.bundle}};
  if (pid != 0) state["pid"] = pid;
  if (!spec.annotations.empty()) {
    base::Json annotations = base::Json::object();
    for (const auto& [key, value] : spec.annotations) annotations[key] = value;
    state["annotations"] = std::move(annotations);
  }
  return state;
}

Result<> AddDescriptors(CompiledPlan& plan, const std::vector<int>& preserved, int listener) {
  std::vector<int32_t> indices;
  for (const int fd : preserved) {
    indices.push_back(
        AddSource(plan, {.kind = PlanSource::Kind::kGiven, .given = fd, .object = "preserved descriptor"}));
  }
  plan.builder.header().preserved = plan.builder.Array(indices);
  if (listener >= 0) {
    plan.builder.header().listener_fd =
        AddSource(plan, {.kind = PlanSource::Kind::kGiven, .given = listener, .object = "listener"});
  }
  if (kFdFirstSource + plan.sources.size() <= static_cast<size_t>(kMaxPlanFds)) return {};
  return MakeError(E2BIG, "compile plan", "mounts",
                   "more bind mounts, namespaces and descriptors than one message can carry");
}

std::string StepObject(const CompiledPlan& plan, Step step, uint32_t index) {
  const auto at = [&](const std::vector<std::string>& names) {
    return index < names.size() ? names[index] : std::to_string(index);
  };
  switch (step) {
    case Step::kOpenMountTarget:
    case Step::kOpenFilesystem:
    case Step::kConfigureFilesystem:
    case Step::kMount:
    case Step::kAttachMount:
    case Step::kPropagation:
    case Step::kCopyUp:
      return at(plan.mounts);
    case Step::kDevice:
      return at(plan.devices);
    case Step::kMaskedPath:
      return at(plan.masked_paths);
    case Step::kReadonlyPath:
      return at(plan.readonly_paths);
    case Step::kSysctl:
      return at(plan.sysctls);
    case Step::kFindProgram:
    case Step::kExecve:
      return plan.program;
    case Step::kCwd:
      return plan.cwd;
    case Step::kCreateContainerHook:
      return at(plan.create_hooks);
    case Step::kStartContainerHook:
      return at(plan.start_hooks);
    case Step::kLabel:
      return index == 0 ? "process.apparmorProfile" : "process.selinuxLabel";
    case Step::kRlimit:
      return "process.rlimits[" + std::to_string(index) + "]";
    default:
      return {};
  }
}

}  // namespace gcs::engine
