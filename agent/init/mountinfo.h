// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gcs::init {

// The parts of a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)) that init looks at.
struct MountEntry {
  int id = 0;
  int parent = 0;
  std::string target;  // octal escapes undone
  std::string type;
};

// Lines that are none are left out.
std::vector<MountEntry> ParseMountInfo(std::string_view text);

// What to unmount at the end, in order: the deepest in the tree of mounts first (mount ids alone do not tell,
// a mount that was made detached is older than the one it was attached to). The root and the kernel's own
// file systems, which hold no data and are needed to the end, are left out.
std::vector<std::string> UnmountOrder(const std::vector<MountEntry>& mounts);

}  // namespace gcs::init
