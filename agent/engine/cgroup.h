// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "engine/cgroup_settings.h"
#include "engine/spec.h"

namespace gcs::engine {

// Counters of one cgroup; what the kernel doesn't offer is 0 or absent.
struct PressureStats {
  double some_avg10 = 0, some_avg60 = 0, some_avg300 = 0;
  uint64_t some_total_us = 0;
  double full_avg10 = 0, full_avg60 = 0, full_avg300 = 0;
  uint64_t full_total_us = 0;
};

struct IoStats {
  uint32_t major = 0, minor = 0;
  uint64_t read_bytes = 0, write_bytes = 0, read_ops = 0, write_ops = 0;
};

struct CgroupStats {
  uint64_t cpu_usage_us = 0, cpu_user_us = 0, cpu_system_us = 0;
  uint64_t cpu_periods = 0, cpu_throttled_periods = 0, cpu_throttled_us = 0;
  uint64_t memory_usage = 0, memory_peak = 0, memory_limit = 0, memory_swap = 0;  // bytes; limit 0: none
  uint64_t memory_anon = 0, memory_file = 0, memory_kernel = 0, memory_inactive_file = 0;
  uint64_t memory_oom = 0, memory_oom_kill = 0, memory_max_hits = 0;
  uint64_t pids_current = 0, pids_limit = 0;  // limit 0: none
  std::vector<IoStats> io;
  std::optional<PressureStats> cpu_pressure, memory_pressure, io_pressure;
};

// A mounted hierarchy of cgroup v1; of a hybrid system the cgroup2 mount beside them, too.
struct CgroupHierarchy {
  std::string name;  // of its directory, "cpu,cpuacct"
  std::string mount_point;
  std::vector<std::string> controllers;  // empty: none; "name=systemd" of a named one
  bool unified = false;                  // cgroup2
};

// One container's cgroup: a directory of cgroup v2, or one in each v1 hierarchy. Files are opened relative to
// directories' descriptors. Not thread-safe, but for what the engine's caller serializes anyway; Kill alone
// may come at any time, also beside Remove.
class Cgroup {
 public:
  virtual ~Cgroup() = default;  // leaves the directories: Remove is explicit
  Cgroup(const Cgroup&) = delete;
  Cgroup& operator=(const Cgroup&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  // v2: the directory, for CLONE_INTO_CGROUP. v1: -1; processes go in by Enter.
  [[nodiscard]] virtual int fd() const = 0;
  // The directory in hierarchy `index` (of CgroupRoot::hierarchies; v2: any): `path` from descriptor `dir`,
  // which stays the cgroup's; empty: `dir` itself.
  struct Place {
    int dir;
    std::string path;
  };
  [[nodiscard]] virtual Place PlaceOf(size_t index) const = 0;

  // Writes the limits of a new container. EOPNOTSUPP names a controller that isn't available.
  virtual base::Result<> Apply(const Resources& resources) = 0;
  // Changes what `resources` has and leaves the rest; what had been changed is written back if it fails.
  // EBUSY if memory.checkBeforeUpdate refuses a limit below what is in use.
  virtual base::Result<> Update(const Resources& resources) = 0;
  // The allowed devices (config-linux.md, "Allowed Device list"); replaces those set before. Deny is the
  // default, whatever the rules; then come the rules, then the devices that every container may use.
  virtual base::Result<> SetDevices(const std::vector<DeviceRule>& rules) = 0;
  virtual base::Result<> Enter(int pid) = 0;
  // Freezes or thaws and waits until it is so. A freeze that can't be finished in time is taken back.
  virtual base::Result<> Freeze(bool frozen, int64_t deadline_ns) = 0;
  [[nodiscard]] virtual bool Frozen() const = 0;
  // SIGKILL to everything inside, frozen or not.
  virtual base::Result<> Kill() = 0;
  // Removes it if nothing is in it, without waiting. False: there is something.
  virtual bool RemoveIfEmpty() = 0;
  // Waits until no process is left, then removes what Create made.
  virtual base::Result<> Remove(int64_t deadline_ns) = 0;
  [[nodiscard]] virtual base::Result<CgroupStats> Stats() const = 0;
  // Kills by the OOM killer so far; 0 without a memory controller.
  [[nodiscard]] virtual uint64_t OomKills() const = 0;
  // Process ids inside, with those of child cgroups.
  [[nodiscard]] virtual base::Result<std::vector<int>> Pids() const = 0;

 protected:
  explicit Cgroup(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// The cgroup file systems of the machine.
class CgroupRoot {
 public:
  virtual ~CgroupRoot() = default;
  CgroupRoot(const CgroupRoot&) = delete;
  CgroupRoot& operator=(const CgroupRoot&) = delete;
  // `mount_point` is usually /sys/fs/cgroup: cgroup2, or a directory with the mounts of v1 hierarchies. With
  // both, v1 has what it has controllers for and the rest is v2's. EINVAL if there is neither.
  static base::Result<std::unique_ptr<CgroupRoot>> Open(const std::string& mount_point);

  // Empty: pure v2.
  [[nodiscard]] const std::vector<CgroupHierarchy>& hierarchies() const { return hierarchies_; }
  // Makes `path` (below the mount, "/containers/x"). EEXIST if it is there and not empty of processes.
  // Directories made here are removed by Remove, those that were there stay, and those that others share by
  // then.
  virtual base::Result<std::unique_ptr<Cgroup>> Create(const std::string& path) = 0;
  // One that Create has made earlier, maybe in another process. ENOENT if it is gone. Its Remove takes what
  // Create has made above it, too, for this container or another one, if nothing else is in there.
  virtual base::Result<std::unique_ptr<Cgroup>> Find(const std::string& path) = 0;

 protected:
  CgroupRoot() = default;
  std::vector<CgroupHierarchy> hierarchies_;
};

}  // namespace gcs::engine
