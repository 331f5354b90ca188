// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/cgroup.h"

// The texts of cgroup files (cgroup-v2.rst, cgroup-v1/) as values. Pure; what is no such text gives nothing.
namespace gcs::engine {

std::set<std::string> Words(std::string_view text);
// The parts that are not empty.
std::vector<std::string_view> Split(std::string_view text, char separator);

// A single number; "max" and what is none are 0.
uint64_t ParseNumber(std::string_view text);

// "key value" lines.
using KeyedValues = std::map<std::string, uint64_t, std::less<>>;
KeyedValues ParseKeyed(std::string_view text);
uint64_t Get(const KeyedValues& values, std::string_view key);

// cgroup.procs: one number on each line; 0 is a process that this pid namespace has no number for.
std::vector<int> ParsePids(std::string_view text);

// io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...".
std::vector<IoStats> ParseIoStat(std::string_view text);
// blkio.throttle.*: "8:0 Read 4096". Adds to `all` what is about reads and writes, by device.
void ParseBlkio(std::string_view text, uint64_t IoStats::* reads, uint64_t IoStats::* writes,
                std::vector<IoStats>& all);
// *.pressure: "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"; "full" in the same way.
PressureStats ParsePressure(std::string_view text);

// The hierarchies that are mounted below `mount_point`, from the text of /proc/self/mountinfo.
std::vector<CgroupHierarchy> ParseHierarchies(std::string_view mountinfo, const std::string& mount_point);

}  // namespace gcs::engine
