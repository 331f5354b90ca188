// SPDX-License-Identifier: Apache-2.0
#include "engine/cgroup_parse.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/procfs.h"

namespace gcs::engine {

namespace {

// Everything that may stand among a v1 mount's options: what is not one of these is an option of the mount.
constexpr std::array<std::string_view, 14> kControllersV1{
    "cpu",   "cpuacct", "cpuset",  "memory",   "devices",    "freezer", "pids",
    "blkio", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma",    "misc"};

struct Device {
  uint32_t major = 0, minor = 0;
};

template <typename Value>
std::optional<Value> Whole(std::string_view text) {
  Value value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "8:0".
std::optional<Device> ParseDevice(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return std::nullopt;
  const auto major = Whole<uint32_t>(text.substr(0, colon));
  const auto minor = Whole<uint32_t>(text.substr(colon + 1));
  if (!major || !minor) return std::nullopt;
  return Device{*major, *minor};
}

// What stands behind "key=" in a word; nothing if that is another one.
std::optional<std::string_view> ValueOf(std::string_view word, std::string_view key) {
  if (!word.starts_with(key) || word.size() <= key.size() || word[key.size()] != '=') return std::nullopt;
  return word.substr(key.size() + 1);
}

}  // namespace

std::set<std::string> Words(std::string_view text) {
  std::set<std::string> words;
  for (const std::string_view line : Split(text, '\n')) {
    for (const std::string_view word : Split(line, ' ')) words.emplace(word);
  }
  return words;
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find(separator), text.size());
    if (end > 0) parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

uint64_t ParseNumber(std::string_view text) {
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

KeyedValues ParseKeyed(std::string_view text) {
  KeyedValues values;
  for (const std::string_view line : Split(text, '\n')) {
    const size_t space = line.find(' ');
    if (space != std::string_view::npos)
      values.emplace(line.substr(0, space), ParseNumber(line.substr(space + 1)));
  }
  return values;
}

uint64_t Get(const KeyedValues& values, std::string_view key) {
  const auto it = values.find(key);
  return it == values.end() ? 0 : it->second;
}

std::vector<int> ParsePids(std::string_view text) {
  std::vector<int> pids;
  for (const std::string_view line : Split(text, '\n')) {
    if (const auto pid = Whole<int>(line); pid && *pid >= 0) pids.push_back(*pid);
  }
  return pids;
}

std::vector<IoStats> ParseIoStat(std::string_view text) {
  std::vector<IoStats> result;
  for (const std::string_view line : Split(text, '\n')) {
    const auto words = Split(line, ' ');
    const auto device = words.empty() ? std::nullopt : ParseDevice(words[0]);
    if (!device) continue;
    IoStats io{.major = device->major, .minor = device->minor};
    for (const std::string_view word : words) {
      if (const auto value = ValueOf(word, "rbytes")) io.read_bytes = ParseNumber(*value);
      if (const auto value = ValueOf(word, "wbytes")) io.write_bytes = ParseNumber(*value);
      if (const auto value = ValueOf(word, "rios")) io.read_ops = ParseNumber(*value);
      if (const auto value = ValueOf(word, "wios")) io.write_ops = ParseNumber(*value);
    }
    result.push_back(io);
  }
  return result;
}

void ParseBlkio(std::string_view text, uint64_t IoStats::* reads, uint64_t IoStats::* writes,
                std::vector<IoStats>& all) {
  for (const std::string_view line : Split(text, '\n')) {
    const auto words = Split(line, ' ');
    const auto device = words.size() == 3 ? ParseDevice(words[0]) : std::nullopt;
    if (!device) continue;
    auto found = std::ranges::find_if(
        all, [&](const IoStats& io) { return io.major == device->major && io.minor == device->minor; });
    if (found == all.end())
      found = all.insert(all.end(), IoStats{.major = device->major, .minor = device->minor});
    if (words[1] == "Read") (*found).*reads = ParseNumber(words[2]);
    if (words[1] == "Write") (*found).*writes = ParseNumber(words[2]);
  }
}

PressureStats ParsePressure(std::string_view text) {
  PressureStats stats;
  for (const std::string_view line : Split(text, '\n')) {
    const auto words = Split(line, ' ');
    if (words.size() != 5 || (words[0] != "some" && words[0] != "full")) continue;
    std::array<double, 3> averages{};
    constexpr std::array<std::string_view, 3> kNames{"avg10", "avg60", "avg300"};
    bool good = true;
    for (size_t i = 0; i < kNames.size(); ++i) {
      const auto value = ValueOf(words[i + 1], kNames[i]);
      const auto number = value ? Whole<double>(*value) : std::nullopt;
      good = good && number && std::isfinite(*number);
      if (good) averages[i] = *number;
    }
    const auto value = ValueOf(words[4], "total");
    const auto total = value ? Whole<uint64_t>(*value) : std::nullopt;
    if (!good || !total) continue;
    const bool some = words[0] == "some";
    (some ? stats.some_avg10 : stats.full_avg10) = averages[0];
    (some ? stats.some_avg60 : stats.full_avg60) = averages[1];
    (some ? stats.some_avg300 : stats.full_avg300) = averages[2];
    (some ? stats.some_total_us : stats.full_total_us) = *total;
  }
  return stats;
}

std::vector<CgroupHierarchy> ParseHierarchies(std::string_view mountinfo, const std::string& mount_point) {
  std::vector<CgroupHierarchy> found;
  for (base::MountInfo& mount : base::ParseMountInfo(mountinfo)) {
    const bool v1 = mount.type == "cgroup";
    if (!v1 && mount.type != "cgroup2") continue;
    if (!mount.target.starts_with(mount_point + "/")) continue;
    CgroupHierarchy hierarchy{.name = mount.target.substr(mount_point.size() + 1),
                              .mount_point = std::move(mount.target),
                              .controllers = {},
                              .unified = !v1};
    if (hierarchy.name.empty() || hierarchy.name.find('/') != std::string::npos) continue;
    if (v1) {
      for (const std::string_view option : Split(mount.options, ',')) {
        const bool named = option.starts_with("name=");
        if (named || std::ranges::find(kControllersV1, option) != kControllersV1.end()) {
          hierarchy.controllers.emplace_back(option);
        }
      }
    }
    // The last mount at a place is the one that is seen.
    std::erase_if(found, [&](const CgroupHierarchy& h) { return h.name == hierarchy.name; });
    found.push_back(std::move(hierarchy));
  }
  return found;
}

}  // namespace gcs::engine
