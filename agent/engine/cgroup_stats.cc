// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "base/paths.h"
#include "engine/cgroup_open.h"

namespace gcs::engine {

namespace {

std::optional<PressureStats> ReadPressure(int dir, const char* name) {
  const auto text = base::ReadFileAt(dir, name);
  if (!text) return std::nullopt;  // EOPNOTSUPP with PSI switched off
  return ParsePressure(*text);
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
  stats.io = ParseIoStat(base::ReadFileAt(dir, "io.stat").value_or(""));
  stats.cpu_pressure = ReadPressure(dir, "cpu.pressure");
  stats.memory_pressure = ReadPressure(dir, "memory.pressure");
  stats.io_pressure = ReadPressure(dir, "io.pressure");
  return stats;
}

}  // namespace gcs::engine
