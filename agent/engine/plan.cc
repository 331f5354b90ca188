// SPDX-License-Identifier: Apache-2.0
#include "engine/plan.h"

#include <linux/filter.h>
#include <sched.h>

#include <cstring>
#include <utility>

namespace gcs::engine {

std::string_view StepName(Step step) {
  switch (step) {
    case Step::kReceivePlan:
      return "receive plan";
    case Step::kJoinPid:
      return "setns pid namespace";
    case Step::kClone:
      return "clone3";
    case Step::kJoin:
      return "setns";
    case Step::kTimeNamespace:
      return "make time namespace";
    case Step::kUserNamespace:
      return "enter user namespace";
    case Step::kCgroupNamespace:
      return "make cgroup namespace";
    case Step::kSession:
      return "setsid";
    case Step::kHostname:
      return "sethostname";
    case Step::kDomainname:
      return "setdomainname";
    case Step::kAttachRoot:
      return "attach root";
    case Step::kRuntimeTree:
      return "attach runtime tree";
    case Step::kOpenMountTarget:
      return "open mount target";
    case Step::kOpenFilesystem:
      return "fsopen";
    case Step::kConfigureFilesystem:
      return "fsconfig";
    case Step::kMount:
      return "fsmount";
    case Step::kAttachMount:
      return "move_mount";
    case Step::kPropagation:
      return "set mount propagation";
    case Step::kCopyUp:
      return "copy up";
    case Step::kDevice:
      return "mknod";
    case Step::kDeviceLink:
      return "symlink";
    case Step::kConsole:
      return "open console";
    case Step::kReadonlyPath:
      return "make path read-only";
    case Step::kMaskedPath:
      return "mask path";
    case Step::kCreateContainerHook:
      return "createContainer hook";
    case Step::kPivotRoot:
      return "pivot_root";
    case Step::kSysctl:
      return "write sysctl";
    case Step::kRootReadonly:
      return "make root read-only";
    case Step::kRootPropagation:
      return "set root propagation";
    case Step::kLoopback:
      return "set lo up";
    case Step::kScheduler:
      return "sched_setattr";
    case Step::kIoPriority:
      return "ioprio_set";
    case Step::kMemoryPolicy:
      return "set_mempolicy";
    case Step::kPersonality:
      return "personality";
    case Step::kAffinity:
      return "sched_setaffinity";
    case Step::kRlimit:
      return "setrlimit";
    case Step::kLabel:
      return "set label";
    case Step::kVsockGuard:
      return "load vsock filter";
    case Step::kSeccomp:
      return "load seccomp filter";
    case Step::kBounding:
      return "drop bounding capability";
    case Step::kGroups:
      return "setgroups";
    case Step::kUser:
      return "setresuid";
    case Step::kCapabilities:
      return "capset";
    case Step::kHome:
      return "read /etc/passwd";
    case Step::kCwd:
      return "chdir";
    case Step::kFindProgram:
      return "find program";
    case Step::kStdio:
      return "set standard streams";
    case Step::kSync:
      return "talk to the engine";
    case Step::kWaitStart:
      return "wait for start";
    case Step::kStartContainerHook:
      return "startContainer hook";
    case Step::kNoNewPrivileges:
      return "set no_new_privs";
    case Step::kExecve:
      return "execve";
  }
  return "unknown step";
}

PlanBuilder::PlanBuilder() : block_(sizeof(PlanHeader), '\0') {}

StringRef PlanBuilder::String(std::string_view text) {
  const auto at = static_cast<StringRef>(block_.size());
  block_.append(text);
  block_.push_back('\0');
  return at;
}

ArrayRef PlanBuilder::Bytes(const void* data, size_t size, size_t count) {
  block_.append((8 - block_.size() % 8) % 8, '\0');
  const auto at = static_cast<uint32_t>(block_.size());
  if (size != 0) block_.append(static_cast<const char*>(data), size);
  return {at, static_cast<uint32_t>(count)};
}

std::string PlanBuilder::Finish() {
  block_.push_back('\0');  // whatever a string reference points at ends here at the latest
  header_.size = static_cast<uint32_t>(block_.size());
  memcpy(block_.data(), &header_, sizeof header_);
  return std::exchange(block_, std::string(sizeof(PlanHeader), '\0'));
}

namespace {

struct Checker {
  const char* block;
  size_t size;
  int fds;
  bool ok = true;

  void Text(StringRef ref) { ok = ok && ref < size; }
  void Descriptor(int32_t index) { ok = ok && index >= -1 && index < fds; }
  template <typename T>
  const T* Items(ArrayRef ref) {
    const uint64_t end = uint64_t{ref.offset} + uint64_t{ref.count} * sizeof(T);
    if (ref.offset % alignof(T) != 0 || end > size) ok = false;
    return ok ? reinterpret_cast<const T*>(block + ref.offset) : nullptr;
  }
  // Slots with `extra` unused ones at the end.
  void Slots(ArrayRef ref, uint32_t extra) {
    if (ref.count < extra) ok = false;
    const auto* slots = Items<uint64_t>(ref);
    for (uint32_t i = 0; ok && i + extra < ref.count; ++i) ok = slots[i] < size;
  }
  void Texts(ArrayRef ref) {
    const auto* refs = Items<StringRef>(ref);
    for (uint32_t i = 0; ok && i < ref.count; ++i) Text(refs[i]);
  }
};

}  // namespace

const char* CheckPlan(const char* block, size_t size, int fd_count) noexcept {
  if (size < sizeof(PlanHeader) || size > kMaxPlanBytes) return "size";
  PlanHeader header;
  memcpy(&header, block, sizeof header);
  if (header.magic != kPlanMagic || header.size != size || block[size - 1] != '\0') return "frame";
  Checker check{block, size, fd_count};
  for (const StringRef ref : {header.hostname, header.domainname, header.cwd, header.keyring, header.apparmor,
                              header.selinux, header.runtime_root, header.state_before, header.state_after}) {
    check.Text(ref);
  }
  for (const int32_t fd : header.stdio_fds) check.Descriptor(fd);
  for (const int32_t fd :
       {header.sync_fd, header.cgroup_fd, header.root_fd, header.target_fd, header.proc_fd, header.devices_fd,
        header.listener_fd, header.visible_fds[0], header.visible_fds[1], header.runtime_fd}) {
    check.Descriptor(fd);
  }
  if (!check.ok || header.sync_fd != kFdSync) return "header";
  const bool holder = (header.flags & kPlanHolder) != 0;
  if (holder && (header.flags & kPlanStaged) == 0) return "flags";
  const bool exec = (header.flags & kPlanExec) != 0;
  // A holder has neither root nor program.
  if (!holder && (exec ? header.target_fd : header.root_fd) < 0) return "root or target";
  if (header.last_cap > 63) return "last capability";
  constexpr uint64_t kCloned =
      CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET;
  constexpr uint64_t kJoined = kCloned | CLONE_NEWUSER | CLONE_NEWTIME;
  if ((header.clone_flags & ~kCloned) != 0 || (header.join_flags & ~kJoined) != 0) return "namespaces";

  const auto* mounts = check.Items<PlanMount>(header.mounts);
  for (uint32_t i = 0; check.ok && i < header.mounts.count; ++i) {
    check.Text(mounts[i].target);
    check.Text(mounts[i].fs_type);
    check.Descriptor(mounts[i].fd);
    if (mounts[i].fs_type == 0 && mounts[i].fd < 0 && mounts[i].remount == 0 && mounts[i].link == 0)
      check.ok = false;
    check.Text(mounts[i].link);
    check.Text(mounts[i].source);
    check.Text(mounts[i].data);
    const auto* options = check.Items<PlanOption>(mounts[i].options);
    for (uint32_t j = 0; check.ok && j < mounts[i].options.count; ++j) {
      check.Text(options[j].key);
      check.Text(options[j].value);
    }
  }
  if (!check.ok) return "mounts";
  const auto* devices = check.Items<PlanDevice>(header.devices);
  for (uint32_t i = 0; check.ok && i < header.devices.count; ++i) check.Text(devices[i].path);
  if ((header.flags & kPlanUserNamespace) != 0 && header.devices.count != 0 && header.devices_fd < 0) {
    check.ok = false;
  }
  if (!check.ok) return "devices";
  check.Texts(header.masked_paths);
  check.Texts(header.readonly_paths);
  if (!check.ok) return "paths";
  const auto* sysctls = check.Items<PlanSysctl>(header.sysctls);
  for (uint32_t i = 0; check.ok && i < header.sysctls.count; ++i) {
    check.Text(sysctls[i].path);
    check.Text(sysctls[i].value);
  }
  if (!check.ok) return "sysctls";
  check.Items<PlanRlimit>(header.rlimits);
  check.Items<uint32_t>(header.groups);
  const auto* joins = check.Items<PlanJoin>(header.joins);
  for (uint32_t i = 0; check.ok && i < header.joins.count; ++i) {
    check.Descriptor(joins[i].fd);
    if (joins[i].fd < 0) check.ok = false;
  }
  if (!check.ok) return "rlimits, groups or joins";
  check.Items<PlanScheduler>(header.scheduler);
  for (const ArrayRef& words : {header.memory_nodes, header.initial_affinity, header.final_affinity}) {
    check.Items<uint64_t>(words);
  }
  if (!check.ok || header.scheduler.count > 1) return "scheduler, memory policy or affinity";
  if ((header.apparmor != 0 || header.selinux != 0 || header.sysctls.count != 0) && header.proc_fd < 0) {
    return "procfs";
  }
  const auto* preserved = check.Items<int32_t>(header.preserved);
  for (uint32_t i = 0; check.ok && i < header.preserved.count; ++i) {
    check.Descriptor(preserved[i]);
    if (preserved[i] < 0) check.ok = false;
  }
  if (!check.ok || header.preserved.count > kMaxPlanFds) return "preserved descriptors";
  for (const ArrayRef& ref : {header.create_hooks, header.start_hooks}) {
    const auto* hooks = check.Items<PlanHook>(ref);
    for (uint32_t i = 0; check.ok && i < ref.count; ++i) {
      check.Text(hooks[i].path);
      check.Slots(hooks[i].args, 1);
      check.Slots(hooks[i].env, 1);
    }
  }
  if (!check.ok || (header.create_hooks.count != 0 && header.runtime_fd < 0)) return "hooks";
  const auto* filters = check.Items<PlanSeccomp>(header.seccomp);
  for (uint32_t i = 0; check.ok && i < header.seccomp.count; ++i) {
    check.Items<sock_filter>(filters[i].code);
    if (filters[i].code.count > BPF_MAXINSNS) check.ok = false;
  }
  if (!check.ok) return "seccomp";
  if (holder && header.args.count == 0 && header.env.count == 0) return nullptr;
  check.Slots(header.args, 1);
  check.Slots(header.env, 2);
  if (!check.ok || header.args.count < 2) return "args or env";
  return nullptr;
}

}  // namespace gcs::engine
