// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace gcs::engine {

// config.json of the OCI runtime specification (config.md, config-linux.md), typed. Names are the
// specification's. What the configuration asks for and this engine does not do is an error (EOPNOTSUPP) with
// the JSON path; unknown keys are ignored and invalid values refused, as the specification demands.

// A range of ids of a user namespace and the ids that they are outside.
struct IdMapping {
  uint32_t container_id = 0;
  uint32_t host_id = 0;
  uint32_t size = 0;
};

struct Mount {
  std::string destination;  // absolute, lexically clean
  std::string type;         // empty with bind options
  std::string source;
  std::vector<std::string> options;
  std::vector<IdMapping> uid_mappings, gid_mappings;  // both or none
};

struct Device {
  char type = 'c';  // c (also for u), b, p
  std::string path;
  uint32_t major = 0;
  uint32_t minor = 0;
  uint32_t mode = 0666;
  uint32_t uid = 0;
  uint32_t gid = 0;
};

struct DeviceRule {
  bool allow = false;
  char type = 'a';                // a, b, c
  std::optional<uint32_t> major;  // none: any
  std::optional<uint32_t> minor;
  bool read = false, write = false, mknod = false;
};

struct Rlimit {
  int resource = 0;  // RLIMIT_*
  uint64_t soft = 0;
  uint64_t hard = 0;
};

// One bit per capability number.
struct Capabilities {
  uint64_t bounding = 0, effective = 0, inheritable = 0, permitted = 0, ambient = 0;
};

// sched_setattr(2), in its units: nanoseconds.
struct Scheduler {
  uint32_t policy = 0;  // SCHED_*
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t flags = 0;  // SCHED_FLAG_*
  uint64_t runtime = 0, deadline = 0, period = 0;
};

// One bit per processor or memory node, 64 to a word.
using BitMask = std::vector<uint64_t>;

struct Process {
  bool terminal = false;
  uint16_t console_height = 0;
  uint16_t console_width = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::vector<uint32_t> additional_gids;
  uint32_t umask = 0022;
  std::vector<std::string> args;
  std::vector<std::string> env;
  std::string cwd = "/";
  Capabilities capabilities;
  std::vector<Rlimit> rlimits;
  bool no_new_privileges = false;
  std::optional<int> oom_score_adj;
  std::optional<uint16_t> io_priority;  // as ioprio_set(2) takes it
  std::optional<Scheduler> scheduler;
  // Of an exec only: the processors that it runs on before and after it has entered the cgroup.
  BitMask initial_affinity, final_affinity;
  std::string apparmor_profile;
  std::string selinux_label;
};

// set_mempolicy(2)
struct MemoryPolicy {
  int mode = 0;  // MPOL_* with its MPOL_F_* flags
  BitMask nodes;
};

// A program that the runtime starts at one of the points of a container's life (config.md, "POSIX-platform
// Hooks").
struct Hook {
  std::string path;
  std::vector<std::string> args;  // with args[0]; empty: the path alone
  std::vector<std::string> env;
  int64_t timeout_ns = 0;  // 0: none
};

struct Hooks {
  std::vector<Hook> prestart, create_runtime, create_container, start_container, poststart, poststop;
};

struct Namespace {
  int flag = 0;      // CLONE_NEW*
  std::string path;  // empty: a new one
};

// How far a clock of a new time namespace is ahead.
struct TimeOffset {
  std::string clock;  // "monotonic" or "boottime"
  int64_t seconds = 0;
  uint32_t nanoseconds = 0;
};

// A device of the runtime's network namespace that the container's gets.
struct NetDevice {
  std::string name;
  std::string new_name;  // empty: it keeps its own; may have a "%d" in it
};

// A class of service of the resctrl file system (intel_rdt.h).
struct IntelRdt {
  std::string clos_id;                // empty: one of the container's own; "/": the root's
  std::vector<std::string> schemata;  // lines in the order in which they are written
  bool enable_monitoring = false;
};

struct BlockDevice {
  uint32_t major = 0, minor = 0;
};

// What linux.resources asks for; a value of none leaves the kernel's default. Units are the specification's,
// cgroup_settings.h has the files that they go to.
struct Resources {
  std::optional<int64_t> memory_limit;        // bytes, -1: max
  std::optional<int64_t> memory_reservation;  // bytes
  std::optional<int64_t> memory_swap;         // memory + swap in bytes, -1: max
  std::optional<int64_t> memory_kernel, memory_kernel_tcp;
  std::optional<uint64_t> memory_swappiness;
  bool memory_disable_oom_killer = false;
  bool memory_check_before_update = false;  // refuse a limit below what is in use
  std::optional<uint64_t> cpu_shares;
  std::optional<int64_t> cpu_quota;    // us per period, negative: max
  std::optional<uint64_t> cpu_period;  // us
  std::optional<uint64_t> cpu_burst;   // us
  std::optional<int64_t> cpu_idle;
  std::optional<int64_t> cpu_realtime_runtime;
  std::optional<uint64_t> cpu_realtime_period;
  std::string cpus, mems;             // lists
  std::optional<int64_t> pids_limit;  // -1: max
  struct BlockIo {
    std::optional<uint64_t> weight;
    std::vector<std::pair<BlockDevice, uint64_t>> weight_devices;
    std::vector<std::pair<BlockDevice, uint64_t>> read_bps, write_bps, read_iops, write_iops;
  } block_io;
  std::vector<std::pair<std::string, uint64_t>> hugepage_limits;  // page size ("2MB"), bytes
  std::optional<uint64_t> network_class_id;
  std::vector<std::pair<std::string, uint64_t>> network_priorities;  // interface, priority
  struct RdmaLimit {
    std::string device;
    std::optional<uint64_t> hca_handles, hca_objects;
  };
  std::vector<RdmaLimit> rdma;
  std::vector<std::pair<std::string, std::string>> unified;
  std::vector<DeviceRule> devices;
};

struct Spec {
  std::string oci_version;
  std::string root_path;
  bool root_readonly = false;
  std::string hostname;
  std::string domainname;
  std::optional<Process> process;
  std::vector<Mount> mounts;
  std::vector<Namespace> namespaces;
  std::vector<Device> devices;
  std::vector<std::string> masked_paths;
  std::vector<std::string> readonly_paths;
  std::vector<std::pair<std::string, std::string>> sysctl;
  std::string cgroups_path;
  Resources resources;
  std::optional<base::Json> seccomp;                  // linux.seccomp, compiled by seccomp.h
  uint64_t rootfs_propagation = 0;                    // MS_*, 0: private
  std::vector<IdMapping> uid_mappings, gid_mappings;  // of a new user namespace
  std::vector<TimeOffset> time_offsets;
  std::vector<NetDevice> net_devices;
  std::optional<uint32_t> personality;  // PER_*
  std::optional<MemoryPolicy> memory_policy;
  std::optional<IntelRdt> intel_rdt;
  std::string mount_label;
  Hooks hooks;
  std::vector<std::pair<std::string, std::string>> annotations;

  // The namespace of this kind that the configuration names, or null.
  [[nodiscard]] const Namespace* FindNamespace(int flag) const;
  // Whether the container gets a new one, instead of joining one or staying in the runtime's.
  [[nodiscard]] bool MakesNamespace(int flag) const;
};

// The kind of namespace (CLONE_NEW*) that a sysctl is of, "net.core.somaxconn" or with "/" between its parts;
// 0: the whole machine's, or no name of one. `path`: where it is below /proc/sys.
int SysctlNamespace(std::string_view key, std::string* path);

// `bundle`: what relative paths of the root and of bind sources count from; empty: they are refused.
base::Result<Spec> ParseSpec(std::string_view config_json, const std::string& bundle = {});
// A process object for an exec. What it leaves out comes from `defaults`, but for args and terminal.
base::Result<Process> ParseProcess(std::string_view process_json, const Process& defaults);
// A resources object for an update.
base::Result<Resources> ParseResources(std::string_view resources_json);

// "/a//b/./c/.." → "/a/b"; a relative path counts from "/". ".." never leaves "/".
std::string CleanPath(std::string_view path);
// Container and process ids: [A-Za-z0-9_+-][A-Za-z0-9_+.-]{0,1023}.
bool ValidId(std::string_view id);

}  // namespace gcs::engine
