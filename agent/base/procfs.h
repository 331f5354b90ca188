// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// The texts of /proc as values. Pure functions of the bytes: names and paths in there are chosen by whoever
// runs in a container. Nothing here fails: what is no such text gives nothing.
namespace gcs::base {

// The parts of a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)) that anybody here looks at.
struct MountInfo {
  uint64_t id = 0;
  uint64_t parent = 0;  // the mount that it is on
  std::string target;   // absolute; octal escapes undone
  std::string type;
  std::string options;  // of the file system, as they stand
};
// Lines that are none are left out.
std::vector<MountInfo> ParseMountInfo(std::string_view text);

// The parts of /proc/PID/stat (proc_pid_stat(5)); times are in clock ticks, the start's since boot.
struct ProcessStat {
  char state = '\0';  // 'Z' and 'X': has ended
  uint64_t user_ticks = 0;
  uint64_t system_ticks = 0;
  uint64_t start_ticks = 0;
};
std::optional<ProcessStat> ParseProcessStat(std::string_view text);

// The first number of the line `key` of /proc/PID/status ("Uid", "VmRSS"); 0 if there is none.
uint64_t ParseStatusNumber(std::string_view text, std::string_view key);

// The cgroup v2 of a process from its /proc/PID/cgroup (cgroups(7)), part of `text`; empty: it has none.
std::string_view ParseUnifiedCgroup(std::string_view text);

}  // namespace gcs::base
