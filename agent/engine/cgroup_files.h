// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/cgroup_settings.h"

// Reading and writing the files of cgroups, whatever their version.
namespace gcs::engine {

inline constexpr int kMaxCgroupDepth = 64;

std::set<std::string> Words(const std::string& text);
std::vector<std::string_view> Split(std::string_view text, char separator);

// "key value" lines; nothing for a file that isn't there.
using KeyedValues = std::map<std::string, uint64_t, std::less<>>;
KeyedValues ReadKeyed(int dir, const char* name);
uint64_t Get(const KeyedValues& values, std::string_view key);
// A single number; "max" and an absent file are 0.
uint64_t ReadNumber(int dir, const char* name);

// A setting, and the cgroup directory that it is for; `where` names that in errors.
struct CgroupWrite {
  int dir;
  std::string where;
  CgroupSetting setting;
};
// Writes all, in order; what the kernel refuses (EINVAL, EBUSY) because of another one's present value is
// tried again after the others. `restore`: on failure what was written before gets its old value.
base::Result<> WriteSettings(std::vector<CgroupWrite> writes, bool restore);

// Process ids in `dir` and below.
void CollectPids(int dir, int depth, std::vector<int>& pids);
// rmdir of `dir`/`name` and of every cgroup that processes inside have made below it, innermost first. 0 or
// errno.
int RemoveTree(int dir, const char* name, int depth);

}  // namespace gcs::engine
