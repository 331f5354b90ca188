// SPDX-License-Identifier: Apache-2.0
#include "engine/compile_mount.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <array>

#include "engine/mount_options.h"

namespace gcs::engine {

using base::MakeError;
using base::Result;

namespace {

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

// File systems that take a label for all that is in them.
constexpr std::array<std::string_view, 4> kLabelledTypes{"tmpfs", "devpts", "mqueue", "ramfs"};

// The MS_* flags that say the same as MOUNT_ATTR_* ones.
uint32_t MountFlags(uint64_t attributes) {
  constexpr std::array<std::pair<uint64_t, uint32_t>, 5> kSame{{{MOUNT_ATTR_NOSUID, MS_NOSUID},
                                                                {MOUNT_ATTR_NODEV, MS_NODEV},
                                                                {MOUNT_ATTR_NOEXEC, MS_NOEXEC},
                                                                {MOUNT_ATTR_NODIRATIME, MS_NODIRATIME},
                                                                {MOUNT_ATTR_NOSYMFOLLOW, MS_NOSYMFOLLOW}}};
  uint32_t flags = 0;
  for (const auto& [attribute, flag] : kSame) {
    if ((attributes & attribute) != 0) flags |= flag;
  }
  switch (attributes & MOUNT_ATTR__ATIME) {
    case MOUNT_ATTR_NOATIME:
      return flags | MS_NOATIME;
    case MOUNT_ATTR_STRICTATIME:
      return flags | MS_STRICTATIME;
    default:
      return flags | MS_RELATIME;
  }
}

// Chooses mount(2) for a new file system where it comes to the same. Not for a read-only one: that flag would
// be the superblock's as well, which for sysfs or cgroups is also that of others. Nor in a user namespace,
// whose root may lack the right to enter the target, nor where the mount must be detached at first.
void CompileSimply(const Spec& spec, const Mount& mount, const MountOptions& options, PlanMount& step,
                   PlanBuilder& builder) {
  if ((step.attributes & MOUNT_ATTR_RDONLY) != 0 || spec.FindNamespace(CLONE_NEWUSER) != nullptr ||
      step.copy_up != 0 || step.propagation != 0 || mount.destination == "/" || !spec.mount_label.empty()) {
    return;
  }
  std::string data;
  for (const auto& [key, value] : options.data) {
    if (key.find(',') != std::string::npos || value.find(',') != std::string::npos) return;
    data += (data.empty() ? "" : ",") + key + (value.empty() ? "" : "=" + value);
  }
  if (data.size() >= kMaxSimpleData) return;
  step.simple = 1;
  step.flags = MountFlags(step.attributes);
  if (!data.empty()) step.data = builder.String(data);
  if (!mount.source.empty()) step.source = builder.String(mount.source);
}

// cgroup v1: a tmpfs with one mount for each hierarchy, and links for those with several controllers, as
// hosts have it. Without a cgroup namespace the mounts are the container's own directories.
void CompileCgroupV1(const Spec& spec, const CompileOptions& options, const PlanMount& step, uint64_t set,
                     const std::string& object, CompiledPlan& plan, std::vector<PlanMount>& mounts) {
  PlanBuilder& builder = plan.builder;
  const bool own_namespace = spec.FindNamespace(CLONE_NEWCGROUP) != nullptr;
  const std::string& at = spec.mounts[step.index].destination;
  const auto strings = [&](const std::vector<std::pair<std::string, std::string>>& pairs) {
    std::vector<PlanOption> items;
    for (const auto& [key, value] : pairs)
      items.push_back({builder.String(key), value.empty() ? 0 : builder.String(value)});
    return builder.Array(items);
  };
  PlanMount base = step;
  base.fs_type = builder.String("tmpfs");
  base.attributes = static_cast<uint32_t>(set & ~uint64_t{MOUNT_ATTR_RDONLY});
  base.options = strings({{"mode", "755"}});
  CompileSimply(spec, spec.mounts[step.index], {.data = {{"mode", "755"}}}, base, builder);
  mounts.push_back(base);
  for (size_t i = 0; i < options.hierarchies.size(); ++i) {
    const CgroupHierarchy& hierarchy = options.hierarchies[i];
    PlanMount mount = step;
    mount.target = builder.String(at + "/" + hierarchy.name);
    if (own_namespace) {
      mount.fs_type = builder.String(hierarchy.unified ? "cgroup2" : "cgroup");
      mount.attributes = static_cast<uint32_t>(set);
      std::vector<std::pair<std::string, std::string>> pairs;
      for (const std::string& controller : hierarchy.controllers) {
        const size_t equals = controller.find('=');
        if (hierarchy.unified) break;
        if (equals == std::string::npos) {
          pairs.emplace_back(controller, "");
        } else {
          pairs.emplace_back("none", "");
          pairs.emplace_back(controller.substr(0, equals), controller.substr(equals + 1));
        }
      }
      mount.options = strings(pairs);
    } else {
      mount.is_directory = 1;
      mount.fd = AddSource(
          plan, {.kind = PlanSource::Kind::kCgroup, .hierarchy = i, .sealed_later = true, .object = object});
    }
    mounts.push_back(mount);
    for (const std::string& controller : hierarchy.controllers) {
      if (hierarchy.unified || controller == hierarchy.name || controller.find('=') != std::string::npos)
        continue;
      PlanMount link = step;
      link.target = builder.String(at + "/" + controller);
      link.link = builder.String(hierarchy.name);
      mounts.push_back(link);
    }
  }
  if (own_namespace && (set & MOUNT_ATTR_RDONLY) == 0) return;
  PlanMount sealed = step;
  sealed.remount = 1;
  sealed.attributes = MOUNT_ATTR_RDONLY;
  if (!own_namespace) {
    // Copies of the VM's mounts: theirs are set here, all at once, before there is anybody to use them.
    sealed.attributes |= static_cast<uint32_t>(set);
    sealed.flags = AT_RECURSIVE;
    if (sealed.propagation == 0) sealed.propagation = MS_PRIVATE;
  }
  mounts.push_back(sealed);
}

// One mount of the configuration.
Result<> CompileMount(const Spec& spec, const CompileOptions& compile, size_t index, CompiledPlan& plan,
                      std::vector<PlanMount>& mounts) {
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
                 .options = {},
                 .source = 0,
                 .copy_up = 0,
                 .remount = 0,
                 .clear = 0,
                 .link = 0,
                 .simple = 0,
                 .flags = 0,
                 .data = 0};
  const auto add_options = [&](bool with_source) {
    std::vector<PlanOption> pairs;
    for (const auto& [key, value] : options.data) {
      pairs.push_back({builder.String(key), value.empty() ? 0 : builder.String(value)});
    }
    if (with_source) pairs.push_back({builder.String("source"), builder.String(mount.source)});
    const bool labelled =
        std::ranges::any_of(options.data, [](const auto& o) { return o.first.ends_with("context"); });
    if (!spec.mount_label.empty() && !labelled &&
        std::ranges::find(kLabelledTypes, mount.type) != kLabelledTypes.end()) {
      pairs.push_back({builder.String("context"), builder.String(spec.mount_label)});
    }
    step.options = builder.Array(pairs);
  };
  const bool own_cgroup_ns = spec.FindNamespace(CLONE_NEWCGROUP) != nullptr;
  const bool cgroup = mount.type == "cgroup" || mount.type == "cgroup2";
  const bool mapped = options.id_mapped || !mount.uid_mappings.empty();
  if (cgroup && !bind && !options.remount && !compile.hierarchies.empty()) {
    CompileCgroupV1(spec, compile, step, options.set, object, plan, mounts);
    return {};
  }
  if (options.remount) {
    step.remount = 1;
    step.attributes = static_cast<uint32_t>(options.set);
    step.clear = options.clear;
    add_options(false);
  } else if (bind || (cgroup && !own_cgroup_ns)) {
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
    if (mapped) {
      source.uid_mappings = mount.uid_mappings.empty() ? spec.uid_mappings : mount.uid_mappings;
      source.gid_mappings = mount.gid_mappings.empty() ? spec.gid_mappings : mount.gid_mappings;
      source.recursive_id_map = options.recursive_id_map;
      if (source.uid_mappings.empty() || source.gid_mappings.empty()) {
        return MakeError(EINVAL, "compile plan", object,
                         "idmap needs mappings, of the mount or of a new user namespace");
      }
    }
    step.fd = AddSource(plan, std::move(source));
  } else {
    if (mount.type.empty())
      return MakeError(EINVAL, "compile plan", object, "has neither a type nor a bind option");
    if (mapped) return MakeError(EINVAL, "compile plan", object, "only bind mounts can be id-mapped");
    if (options.copy_up && mount.type != "tmpfs") {
      return MakeError(EINVAL, "compile plan", object, "tmpcopyup is for tmpfs");
    }
    step.copy_up = options.copy_up ? 1 : 0;
    if (options.recursive_set != 0 || options.recursive_clear != 0) {
      // A new file system has nothing below it, so the recursive forms are the plain ones.
      step.attributes =
          static_cast<uint32_t>((options.set | options.recursive_set) & ~options.recursive_clear);
    } else {
      step.attributes = static_cast<uint32_t>(options.set);
    }
    step.fs_type = builder.String(cgroup ? "cgroup2" : mount.type);
    const bool pseudo = mount.type == "proc" || mount.type == "sysfs" || mount.type == "tmpfs" ||
                        mount.type == "devpts" || mount.type == "mqueue" || cgroup;
    if (!pseudo && mount.source.empty()) return MakeError(EINVAL, "compile plan", object, "needs a source");
    add_options(!pseudo);
    if (pseudo) CompileSimply(spec, mount, options, step, builder);
  }
  mounts.push_back(step);
  return {};
}

}  // namespace

int32_t AddSource(CompiledPlan& plan, PlanSource source) {
  plan.sources.push_back(std::move(source));
  return kFdFirstSource + static_cast<int32_t>(plan.sources.size()) - 1;
}

Result<> CompileMounts(const Spec& spec, const CompileOptions& options, CompiledPlan& plan) {
  std::vector<PlanMount> mounts;
  for (size_t i = 0; i < spec.mounts.size(); ++i) GCS_TRY(CompileMount(spec, options, i, plan, mounts));
  plan.builder.header().mounts = plan.builder.Array(mounts);
  return {};
}

bool BindsDev(const Spec& spec) {
  return std::ranges::any_of(spec.mounts, [](const Mount& mount) {
    return mount.destination == "/dev" &&
           (mount.type == "bind" || std::ranges::any_of(mount.options, [](const std::string& option) {
              return option == "bind" || option == "rbind";
            }));
  });
}

}  // namespace gcs::engine
