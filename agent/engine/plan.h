// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

namespace gcs::engine {

// A container or exec as flat data: one header, arrays of fixed-size records and a string table in one block,
// all positions relative to its start. The daemon compiles it from the specification, the zygote's child
// carries it out without allocating. Descriptors go beside it, by index. Both ends are one binary on one
// machine, so the layout is the compiler's; it is still checked on arrival, since its content comes from
// foreign JSON.

inline constexpr uint32_t kPlanMagic = 0x6e6c7031;
inline constexpr uint32_t kMaxPlanBytes = 32u << 20;
inline constexpr int kMaxPlanFds = 250;  // SCM_MAX_FD is 253

// Descriptors of a plan, by index. The first are fixed; slots that a plan has no use for are filled with
// anything.
inline constexpr int kFdSync = 0;
inline constexpr int kFdStdin = 1;  // to kFdStdin + 2; unused with a terminal
inline constexpr int kFdCgroup = 4;
inline constexpr int kFdFirstSource = 5;

using StringRef = uint32_t;  // position of a NUL-terminated string; 0: none

struct ArrayRef {
  uint32_t offset = 0;
  uint32_t count = 0;
};

enum PlanFlag : uint32_t {
  kPlanExec = 1u << 0,      // join a container instead of making one
  kPlanTerminal = 1u << 1,  // open a pty in the container, send its master
  kPlanNoNewPrivileges = 1u << 2,
  kPlanRootReadonly = 1u << 3,
  kPlanDefaultDevices = 1u << 4,  // /dev is not a bind mount: make nodes and links
  kPlanLoopbackUp = 1u << 5,      // the network namespace is new
  kPlanHasHome = 1u << 6,         // env has HOME
  // A process between zygote and child enters or makes what must be there before the child is cloned: a user
  // namespace, a pid namespace that exists, a time namespace with offsets. See stage.h.
  kPlanStaged = 1u << 7,
  kPlanNewTime = 1u << 8,        // staged: makes a time namespace, whose offsets the daemon writes
  kPlanUserNamespace = 1u << 9,  // the child is in a user namespace of its own: setup_uid, devices_fd
  kPlanPersonality = 1u << 10,
  kPlanIoPriority = 1u << 11,
  kPlanMemoryPolicy = 1u << 12,
  kPlanRuntimeHooks = 1u << 13,  // the daemon runs hooks before the pivot
  kPlanAwaitCgroup =
      1u << 15,  // v1: the first process cloned waits until the daemon has put it in its cgroup
  kPlanUnshareCgroup = 1u << 16,  // v1: makes its cgroup namespace then
  kPlanHolder = 1u << 14,         // staged: makes a user namespace, reports ready, and ends when told to
};

inline constexpr size_t kMaxSimpleData = 1024;  // of PlanMount::data, see there

struct PlanMount {
  StringRef target;
  StringRef fs_type;  // 0: attach the tree of descriptor `fd`
  int32_t fd = -1;
  uint32_t index;         // in the configuration, for errors
  uint32_t is_directory;  // the tree of `fd` is known to be one
  uint32_t attributes;    // MOUNT_ATTR_* for fsmount(2)
  uint64_t propagation;   // MS_*, 0: leave
  ArrayRef options;       // PlanOption
  StringRef source;       // of a new file system, as mountinfo shows it
  uint32_t copy_up;       // tmpfs: begins with a copy of the directory that it covers
  // Changes the mount that is at `target`: attributes, `clear`, propagation, `options`; `flags` are
  // AT_RECURSIVE for those below it, too.
  uint32_t remount;
  uint64_t clear;  // MOUNT_ATTR_*
  StringRef link;  // a symbolic link with this content instead of a mount
  // One mount(2) instead of the half a dozen calls of the newer interface: with these MS_* flags and this
  // data, where that comes to the same. The child adds the mode of a tmpfs.
  uint32_t simple;
  uint32_t flags;
  StringRef data;
};

struct PlanOption {
  StringRef key;
  StringRef value;  // 0: a flag
};

// With kPlanUserNamespace nodes can't be made: node N of `devices_fd` is bound in place of device N.
struct PlanDevice {
  StringRef path;
  uint32_t mode;  // with S_IFMT
  uint32_t major, minor;
  uint32_t uid, gid;
  uint32_t chown;  // not for default devices
};

struct PlanSysctl {
  StringRef path;  // below /proc/sys
  StringRef value;
};

struct PlanRlimit {
  int32_t resource;
  uint32_t reserved;
  uint64_t soft, hard;
};

struct PlanJoin {
  int32_t fd;
  int32_t flag;
};

// What sched_setattr(2) takes (struct sched_attr, first version).
struct PlanScheduler {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

// A hook that the child runs. Slots as in PlanHeader::args.
struct PlanHook {
  StringRef path;
  uint32_t reserved;
  ArrayRef args, env;
  int64_t timeout_ns;  // 0: none
};

struct PlanSeccomp {
  ArrayRef code;  // sock_filter
  uint32_t flags;
  uint32_t reserved;
};

struct PlanHeader {
  uint32_t magic = kPlanMagic;
  uint32_t size = 0;
  uint32_t flags = 0;
  uint32_t join_flags =
      0;  // exec: namespaces of the pidfd that the child enters (the zygote handles CLONE_NEWPID)
  uint64_t clone_flags = 0;

  // Indices of descriptors.
  int32_t sync_fd = 0;
  std::array<int32_t, 3> stdio_fds{-1, -1, -1};
  int32_t cgroup_fd = -1;
  int32_t root_fd = -1;     // detached tree of the root file system
  int32_t target_fd = -1;   // exec: pidfd of the container's first process
  int32_t proc_fd = -1;     // detached procfs of the VM, for sysctls and labels
  int32_t devices_fd = -1;  // detached tmpfs with the nodes of `devices`, named by their index
  // Procfs and sysfs of the VM: a user namespace may mount its own only where these can be seen already.
  std::array<int32_t, 2> visible_fds{-1, -1};
  int32_t listener_fd = -1;  // where the start comes from if not from the sync socket's other end
  int32_t runtime_fd = -1;   // the VM's whole tree, which createContainer hooks see

  StringRef hostname = 0;
  StringRef domainname = 0;
  StringRef cwd = 0;
  StringRef keyring = 0;
  StringRef apparmor = 0, selinux = 0;
  StringRef runtime_root = 0;                   // where the container's root goes in the tree of runtime_fd
  StringRef state_before = 0, state_after = 0;  // state object for the hooks, around the process id
  uint32_t uid = 0, gid = 0, umask = 022;
  uint32_t setup_uid = 0, setup_gid = 0;  // of the process while it builds the container
  uint32_t personality = 0;
  int32_t memory_mode = 0;
  uint32_t io_priority = 0;
  uint16_t rows = 0, columns = 0;
  uint64_t root_propagation = 0;
  uint64_t bounding = 0, effective = 0, inheritable = 0, permitted = 0, ambient = 0;
  uint32_t last_cap = 0;
  uint32_t reserved = 0;

  ArrayRef scheduler;                                       // at most one
  ArrayRef memory_nodes, initial_affinity, final_affinity;  // words of 64 bits
  ArrayRef preserved;                  // int32_t: descriptors for 3, 4, ... of the program
  ArrayRef create_hooks, start_hooks;  // createContainer, startContainer
  ArrayRef mounts, devices, masked_paths, readonly_paths, sysctls, rlimits, groups, joins, seccomp;
  // uint64_t slots of string positions, each with one slot more for the final null (env: two, the other for
  // HOME). The child turns them into pointers in place.
  ArrayRef args, env;
};

// What a child reports over its sync socket (SOCK_SEQPACKET), and what the daemon answers.
enum class Report : uint32_t {
  kSpawned = 1,   // pid, with the pidfd; index 0: what the zygote has cloned, 1: the stage's child
  kConsole = 2,   // with the pty master
  kReady = 3,     // everything but the program is there; waits for the daemon's byte
  kFailed = 4,    // step, err, index; the child exits
  kTime = 5,      // stage: its children's time namespace is there; waits for the daemon's byte
  kListener = 7,  // with the listener of a seccomp filter; nobody waits
  kHooks = 6,     // the root is built, the daemon's hooks are due; waits for the daemon's byte
};

// Steps that can fail, in order. `index` of the report counts in the array of the plan that belongs to the
// step.
enum class Step : uint32_t {
  kReceivePlan,
  kJoinPid,
  kClone,
  kJoin,
  kTimeNamespace,
  kUserNamespace,
  kCgroupNamespace,
  kSession,
  kHostname,
  kDomainname,
  kAttachRoot,
  kRuntimeTree,
  kOpenMountTarget,
  kOpenFilesystem,
  kConfigureFilesystem,
  kMount,
  kAttachMount,
  kPropagation,
  kCopyUp,
  kDevice,
  kDeviceLink,
  kConsole,
  kReadonlyPath,
  kMaskedPath,
  kCreateContainerHook,
  kPivotRoot,
  kSysctl,
  kRootReadonly,
  kRootPropagation,
  kLoopback,
  kScheduler,
  kIoPriority,
  kMemoryPolicy,
  kPersonality,
  kAffinity,
  kRlimit,
  kLabel,
  kVsockGuard,
  kSeccomp,
  kBounding,
  kGroups,
  kUser,
  kCapabilities,
  kHome,
  kCwd,
  kFindProgram,
  kStdio,
  kSync,
  kWaitStart,
  kStartContainerHook,
  kNoNewPrivileges,
  kExecve,
};
std::string_view StepName(Step step);

struct ReportMessage {
  Report report;
  Step step;
  int32_t err;
  uint32_t index;
  int32_t pid;
};

// Builds the block.
class PlanBuilder {
 public:
  PlanBuilder();
  PlanHeader& header() { return header_; }
  StringRef String(std::string_view text);
  template <typename T>
  ArrayRef Array(const T* items, size_t count) {
    return Bytes(items, sizeof(T) * count, count);
  }
  template <typename Container>
  ArrayRef Array(const Container& items) {
    return Array(items.data(), items.size());
  }
  // The block; the builder is empty afterwards.
  std::string Finish();

 private:
  ArrayRef Bytes(const void* data, size_t size, size_t count);
  PlanHeader header_;
  std::string block_;
};

// Checks every reference of a block against its size and the number of descriptors; nullptr is success, else
// what is wrong. `block` must be aligned to 8 bytes.
const char* CheckPlan(const char* block, size_t size, int fd_count) noexcept;

}  // namespace gcs::engine
