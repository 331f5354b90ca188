// SPDX-License-Identifier: Apache-2.0
#include "engine/compile.h"

#include <linux/filter.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>

#include "base/log.h"
#include "engine/mount_options.h"

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

// What may be mounted over below /proc (the files that lxcfs emulates): anything else could fool readers of
// procfs.
constexpr std::array<std::string_view, 10> kProcFiles{"/proc/cpuinfo",
                                                      "/proc/diskstats",
                                                      "/proc/meminfo",
                                                      "/proc/stat",
                                                      "/proc/swaps",
                                                      "/proc/uptime",
                                                      "/proc/loadavg",
                                                      "/proc/slabinfo",
                                                      "/proc/sys/kernel/ns_last_pid",
                                                      "/proc/sys/crypto/fips_enabled"};

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

void CompileProcess(const Process& process, const CompileOptions& options, CompiledPlan& plan) {
  PlanBuilder& builder = plan.builder;
  PlanHeader& header = builder.header();
  plan.terminal = process.terminal;
  plan.program = process.args[0];
  plan.cwd = process.cwd;
  plan.oom_score_adj = process.oom_score_adj.value_or(0);

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
  header.sync_fd = kFdSync;
  if (!process.terminal) header.stdio_fds = {kFdStdin, kFdStdin + 1, kFdStdin + 2};
  header.cgroup_fd = kFdCgroup;
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

// One mount of the configuration. `dev_is_bind` tells whether somebody else's /dev is put there.
Result<> CompileMount(const Spec& spec, size_t index, CompiledPlan& plan, std::vector<PlanMount>& mounts,
                      bool& dev_is_bind) {
  const Mount& mount = spec.mounts[index];
  const std::string object = "mounts[" + std::to_string(index) + "] (" + mount.destination + ")";
  plan.mounts.push_back(object);
  GCS_ASSIGN(const MountOptions options, ParseMountOptions(mount.options, object));
  const bool bind = options.bind || mount.type == "bind";
  if (mount.destination.starts_with("/proc/") &&
      std::ranges::find(kProcFiles, mount.destination) == kProcFiles.end()) {
    return MakeError(EPERM, "compile plan", object, "nothing may be mounted inside /proc");
  }
  PlanBuilder& builder = plan.builder;
  PlanMount step{.target = builder.String(mount.destination),
                 .fs_type = 0,
                 .index = static_cast<uint32_t>(index),
                 .is_directory = 0,
                 .attributes = 0,
                 .propagation = options.propagation,
                 .options = {}};
  const bool own_cgroup_ns = spec.FindNamespace(CLONE_NEWCGROUP) != nullptr;
  const bool cgroup = mount.type == "cgroup" || mount.type == "cgroup2";
  if (bind || (cgroup && !own_cgroup_ns)) {
    PlanSource source{.object = object};
    if (bind) {
      if (mount.source.empty() || mount.source[0] != '/') {
        return MakeError(EINVAL, "compile plan", object,
                         "the source of a bind mount must be an absolute path in the guest");
      }
      source.path = mount.source;
      source.recursive = options.recursive || mount.type == "bind";
      source.set = options.set;
      source.clear = options.clear;
    } else {
      // Without a cgroup namespace a cgroup2 mount would show the whole VM's tree: only the container's own
      // part, read-only.
      source.kind = PlanSource::Kind::kCgroup;
      source.set = options.set | MOUNT_ATTR_RDONLY;
    }
    source.propagation = options.propagation;
    step.propagation = 0;  // done on the detached tree
    source.recursive_set = options.recursive_set;
    source.recursive_clear = options.recursive_clear;
    step.fd = kFdFirstSource + static_cast<int>(plan.sources.size());
    plan.sources.push_back(std::move(source));
    if (mount.destination == "/dev") dev_is_bind = true;
  } else {
    if (mount.type.empty())
      return MakeError(EINVAL, "compile plan", object, "has neither a type nor a bind option");
    if (options.recursive_set != 0 || options.recursive_clear != 0) {
      // A new file system has nothing below it, so the recursive forms are the plain ones.
      step.attributes =
          static_cast<uint32_t>((options.set | options.recursive_set) & ~options.recursive_clear);
    } else {
      step.attributes = static_cast<uint32_t>(options.set);
    }
    step.fs_type = builder.String(cgroup ? "cgroup2" : mount.type);
    std::vector<PlanOption> pairs;
    for (const auto& [key, value] : options.data) {
      pairs.push_back({builder.String(key), value.empty() ? 0 : builder.String(value)});
    }
    const bool pseudo = mount.type == "proc" || mount.type == "sysfs" || mount.type == "tmpfs" ||
                        mount.type == "devpts" || mount.type == "mqueue" || cgroup;
    if (!pseudo) {
      if (mount.source.empty()) return MakeError(EINVAL, "compile plan", object, "needs a source");
      pairs.push_back({builder.String("source"), builder.String(mount.source)});
    }
    step.options = builder.Array(pairs);
  }
  mounts.push_back(step);
  return {};
}

Result<> CompileDevices(const Spec& spec, bool dev_is_bind, CompiledPlan& plan) {
  PlanBuilder& builder = plan.builder;
  std::vector<PlanDevice> devices;
  const auto configured = [&](std::string_view path) {
    return std::ranges::any_of(spec.devices, [&](const Device& device) { return device.path == path; });
  };
  if (!dev_is_bind) {
    builder.header().flags |= kPlanDefaultDevices;
    for (const DefaultDevice& device : kDefaultDevices) {
      if (configured(device.path)) continue;
      devices.push_back({builder.String(device.path), S_IFCHR | 0666, device.major, device.minor, 0, 0, 0});
      plan.devices.emplace_back(device.path);
    }
  }
  for (const Device& device : spec.devices) {
    const uint32_t type = device.type == 'b' ? S_IFBLK : device.type == 'p' ? S_IFIFO : S_IFCHR;
    devices.push_back({builder.String(device.path), type | device.mode, device.major, device.minor,
                       device.uid, device.gid, 1});
    plan.devices.push_back(device.path);
  }
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

void CompileNamespaces(const Spec& spec, CompiledPlan& plan) {
  PlanHeader& header = plan.builder.header();
  std::vector<PlanJoin> joins;
  for (const Namespace& ns : spec.namespaces) {
    if (ns.path.empty()) {
      header.clone_flags |= static_cast<uint32_t>(ns.flag);
      continue;
    }
    joins.push_back({kFdFirstSource + static_cast<int>(plan.sources.size()), ns.flag});
    plan.sources.push_back(PlanSource{
        .kind = PlanSource::Kind::kNamespace, .path = ns.path, .flag = ns.flag, .object = ns.path});
  }
  header.joins = plan.builder.Array(joins);
  if ((header.clone_flags & CLONE_NEWNET) != 0) header.flags |= kPlanLoopbackUp;
}

}  // namespace

Result<CompiledPlan> CompileCreate(const Spec& spec, const CompileOptions& options,
                                   const std::shared_ptr<const SeccompFilter>& seccomp) {
  if (!spec.process) return MakeError(EINVAL, "compile plan", "process", "is required to create a container");
  CompiledPlan plan;
  PlanBuilder& builder = plan.builder;
  CompileProcess(*spec.process, options, plan);
  PlanHeader& header = builder.header();
  header.root_fd = kFdFirstSource;
  plan.sources.push_back(
      PlanSource{.path = spec.root_path, .recursive = true, .object = "root.path (" + spec.root_path + ")"});
  CompileNamespaces(spec, plan);
  if (!spec.hostname.empty()) header.hostname = builder.String(spec.hostname);
  if (!spec.domainname.empty()) header.domainname = builder.String(spec.domainname);
  header.keyring = builder.String("_ses." + options.container_id);
  if (spec.root_readonly) header.flags |= kPlanRootReadonly;
  header.root_propagation = spec.rootfs_propagation;
  std::vector<PlanMount> mounts;
  bool dev_is_bind = false;
  for (size_t i = 0; i < spec.mounts.size(); ++i) GCS_TRY(CompileMount(spec, i, plan, mounts, dev_is_bind));
  header.mounts = builder.Array(mounts);
  GCS_TRY(CompileDevices(spec, dev_is_bind, plan));
  header.masked_paths = CompilePaths(spec.masked_paths, plan.masked_paths, builder);
  header.readonly_paths = CompilePaths(spec.readonly_paths, plan.readonly_paths, builder);
  std::vector<PlanSysctl> sysctls;
  for (const auto& [key, value] : spec.sysctl) {
    sysctls.push_back({builder.String("sys/" + key), builder.String(value)});
    plan.sysctls.push_back(key);
  }
  header.sysctls = builder.Array(sysctls);
  CompileSeccompFilters(options, seccomp, builder);
  if (kFdFirstSource + plan.sources.size() > static_cast<size_t>(kMaxPlanFds)) {
    return MakeError(E2BIG, "compile plan", "mounts",
                     "more bind mounts and namespaces than one message can carry");
  }
  return plan;
}

Result<CompiledPlan> CompileExec(const Process& process, uint32_t namespaces, const CompileOptions& options,
                                 const std::shared_ptr<const SeccompFilter>& seccomp) {
  CompiledPlan plan;
  CompileProcess(process, options, plan);
  PlanHeader& header = plan.builder.header();
  header.flags |= kPlanExec;
  header.join_flags = namespaces;
  header.target_fd = kFdTarget;
  header.keyring = plan.builder.String("_ses." + options.container_id);
  CompileSeccompFilters(options, seccomp, plan.builder);
  return plan;
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
    case Step::kRlimit:
      return "process.rlimits[" + std::to_string(index) + "]";
    default:
      return {};
  }
}

}  // namespace gcs::engine
