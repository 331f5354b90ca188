// SPDX-License-Identifier: Apache-2.0
#include <charconv>
#include <cstdio>
#include <string>
#include <string_view>

#include "base/paths.h"
#include "engine/cgroup_open.h"

namespace gcs::engine {

namespace {

uint64_t Number(std::string_view text) {
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

std::vector<IoStats> ReadIo(int dir) {
  std::vector<IoStats> result;
  const auto text = base::ReadFileAt(dir, "io.stat");
  if (!text) return result;
  for (const std::string_view line : Split(*text, '\n')) {
    const auto words = Split(line, ' ');
    IoStats io;
    if (words.empty() || sscanf(std::string(words[0]).c_str(), "%u:%u", &io.major, &io.minor) != 2) continue;
    for (const std::string_view word : words) {
      const size_t equals = word.find('=');
      if (equals == std::string_view::npos) continue;
      const std::string_view key = word.substr(0, equals);
      const uint64_t value = Number(word.substr(equals + 1));
      if (key == "rbytes") io.read_bytes = value;
      if (key == "wbytes") io.write_bytes = value;
      if (key == "rios") io.read_ops = value;
      if (key == "wios") io.write_ops = value;
    }
    result.push_back(io);
  }
  return result;
}

std::optional<PressureStats> ReadPressure(int dir, const char* name) {
  const auto text = base::ReadFileAt(dir, name);
  if (!text) return std::nullopt;  // EOPNOTSUPP with PSI switched off
  PressureStats stats;
  for (const std::string_view view : Split(*text, '\n')) {
    const std::string line(view);
    double avg10 = 0, avg60 = 0, avg300 = 0;
    unsigned long long total = 0;
    char kind[8];
    if (sscanf(line.c_str(), "%7s avg10=%lf avg60=%lf avg300=%lf total=%llu", kind, &avg10, &avg60, &avg300,
               &total) != 5) {
      continue;
    }
    if (std::string_view(kind) == "some") {
      stats.some_avg10 = avg10;
      stats.some_avg60 = avg60;
      stats.some_avg300 = avg300;
      stats.some_total_us = total;
    } else {
      stats.full_avg10 = avg10;
      stats.full_avg60 = avg60;
      stats.full_avg300 = avg300;
      stats.full_total_us = total;
    }
  }
  return stats;
}

}  // namespace

base::Result<CgroupStats> StatsV2(int dir) {
  CgroupStats stats;
  // A cgroup that is gone has no cpu.stat; every live one has, whatever its controllers.
  GCS_TRY(base::ReadFileAt(dir, "cpu.stat"));
  const KeyedValues cpu = ReadKeyed(dir, "cpu.stat");
  stats.cpu_usage_us = Get(cpu, "usage_usec");
  stats.cpu_user_us = Get(cpu, "user_usec");
  stats.cpu_system_us = Get(cpu, "system_usec");
  stats.cpu_periods = Get(cpu, "nr_periods");
  stats.cpu_throttled_periods = Get(cpu, "nr_throttled");
  stats.cpu_throttled_us = Get(cpu, "throttled_usec");
  stats.memory_usage = ReadNumber(dir, "memory.current");
  stats.memory_peak = ReadNumber(dir, "memory.peak");
  stats.memory_limit = ReadNumber(dir, "memory.max");
  stats.memory_swap = ReadNumber(dir, "memory.swap.current");
  const KeyedValues memory = ReadKeyed(dir, "memory.stat");
  stats.memory_anon = Get(memory, "anon");
  stats.memory_file = Get(memory, "file");
  stats.memory_kernel = Get(memory, "kernel");
  stats.memory_inactive_file = Get(memory, "inactive_file");
  const KeyedValues events = ReadKeyed(dir, "memory.events");
  stats.memory_oom = Get(events, "oom");
  stats.memory_oom_kill = Get(events, "oom_kill");
  stats.memory_max_hits = Get(events, "max");
  stats.pids_current = ReadNumber(dir, "pids.current");
  stats.pids_limit = ReadNumber(dir, "pids.max");
  stats.io = ReadIo(dir);
  stats.cpu_pressure = ReadPressure(dir, "cpu.pressure");
  stats.memory_pressure = ReadPressure(dir, "memory.pressure");
  stats.io_pressure = ReadPressure(dir, "io.pressure");
  return stats;
}

}  // namespace gcs::engine
