// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/cgroup_parse.h"
#include "engine/cgroup_settings.h"

// Reading and writing the files of cgroups, whatever their version.
namespace gcs::engine {

inline constexpr int kMaxCgroupDepth = 64;

// The keyed values of a file (ParseKeyed); none if it isn't there.
KeyedValues ReadKeyed(int dir, const char* name);
// The number in a file (ParseNumber); 0 if it isn't there.
uint64_t ReadNumber(int dir, const char* name);

// A setting, and the cgroup directory that it is for; `where` names that in errors.
struct CgroupWrite {
  int dir;
  std::string prefix;  // of the file's path from `dir`: "", or the cgroup's with a slash
  std::string where;
  CgroupSetting setting;
};
// Writes all, in order; what the kernel refuses (EINVAL, EBUSY) because of another one's present value is
// tried again after the others. `restore`: on failure what was written before gets its old value.
base::Result<> WriteSettings(std::vector<CgroupWrite> writes, bool restore);

// Process ids in `dir` and below.
base::Result<> CollectPids(int dir, int depth, std::vector<int>& pids);
// Notes in the file system that a directory has been made for a container below it, for the process that will
// remove that one. Best effort: without the note the directory stays.
void MarkMade(int dir);
// The directories between `root` and `path` (relative to it) that are so marked, outermost first, up to the
// innermost that is not.
std::vector<std::string> MarkedParents(int root, const std::string& path);
// rmdir of `dir`/`name` and of every cgroup that processes inside have made below it, innermost first. 0 or
// errno.
int RemoveTree(int dir, const char* name, int depth);

}  // namespace gcs::engine
