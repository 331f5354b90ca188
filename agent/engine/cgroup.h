// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
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

// The cgroup2 mount.
class CgroupRoot {
 public:
  // `mount_point` is usually /sys/fs/cgroup; EINVAL unless it is cgroup2.
  static base::Result<CgroupRoot> Open(const std::string& mount_point);
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& mount_point() const { return mount_point_; }
  // Controllers that containers are to have, as far as the kernel has them.
  [[nodiscard]] const std::vector<std::string>& controllers() const { return controllers_; }

 private:
  CgroupRoot(base::Fd fd, std::string mount_point, std::vector<std::string> controllers)
      : fd_(std::move(fd)), mount_point_(std::move(mount_point)), controllers_(std::move(controllers)) {}
  base::Fd fd_;
  std::string mount_point_;
  std::vector<std::string> controllers_;
};

// One container's cgroup (v2). Files are opened relative to the directory's descriptor.
class Cgroup {
 public:
  // Makes `path` (below the mount, "/containers/x"), enabling the controllers of each parent on the way.
  // EEXIST if it is there and not empty of processes. Directories made here are removed by Remove, those that
  // were there stay.
  static base::Result<Cgroup> Create(const CgroupRoot& root, const std::string& path);
  Cgroup(Cgroup&&) = default;
  Cgroup& operator=(Cgroup&&) = default;
  ~Cgroup() = default;  // leaves the directory: Remove is explicit

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }

  // Writes limits. EOPNOTSUPP names a controller that isn't available.
  base::Result<> Apply(const Resources& resources);
  // Attaches the device filter (config-linux.md, "Allowed Device list") or replaces the one attached before.
  // Deny is the default, whatever the rules; then come the rules, then the devices that every container may
  // use.
  base::Result<> SetDevices(const std::vector<DeviceRule>& rules);
  // Freezes or thaws and waits until it is so. A freeze that can't be finished in time is taken back.
  base::Result<> Freeze(bool frozen, int64_t deadline_ns);
  // SIGKILL to everything inside, frozen or not.
  base::Result<> Kill();
  // Removes it if nothing is in it, without waiting. False: there is something.
  bool RemoveIfEmpty();
  // Waits until no process is left, then removes what Create made.
  base::Result<> Remove(int64_t deadline_ns);
  base::Result<CgroupStats> Stats() const;
  // oom_kill of memory.events; 0 without a memory controller.
  [[nodiscard]] uint64_t OomKills() const;
  // Process ids inside, with those of child cgroups.
  base::Result<std::vector<int>> Pids() const;

 private:
  Cgroup(base::Fd root, base::Fd fd, std::string path, std::vector<std::string> made)
      : root_(std::move(root)), fd_(std::move(fd)), path_(std::move(path)), made_(std::move(made)) {}
  void RemoveParents();
  base::Fd root_;
  base::Fd fd_;
  std::string path_;
  std::vector<std::string> made_;  // outermost first
  std::shared_ptr<const base::Fd> device_program_;
};

// The value of cpu.weight for the v1 notion of shares (2 to 262144, default 1024 gives 100).
uint64_t CpuWeight(uint64_t shares);

}  // namespace gcs::engine
