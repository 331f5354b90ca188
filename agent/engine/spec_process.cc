// SPDX-License-Identifier: Apache-2.0
#include <linux/ioprio.h>
#include <sched.h>
#include <sys/capability.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "base/log.h"
#include "engine/spec_read.h"

namespace gcs::engine {

using base::Json;
using base::JsonReader;

namespace {

constexpr size_t kMaxStrings = 100'000;

constexpr std::array<NamedNumber, 16> kRlimits{{{"RLIMIT_CPU", RLIMIT_CPU},
                                                {"RLIMIT_FSIZE", RLIMIT_FSIZE},
                                                {"RLIMIT_DATA", RLIMIT_DATA},
                                                {"RLIMIT_STACK", RLIMIT_STACK},
                                                {"RLIMIT_CORE", RLIMIT_CORE},
                                                {"RLIMIT_RSS", RLIMIT_RSS},
                                                {"RLIMIT_NPROC", RLIMIT_NPROC},
                                                {"RLIMIT_NOFILE", RLIMIT_NOFILE},
                                                {"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK},
                                                {"RLIMIT_AS", RLIMIT_AS},
                                                {"RLIMIT_LOCKS", RLIMIT_LOCKS},
                                                {"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING},
                                                {"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE},
                                                {"RLIMIT_NICE", RLIMIT_NICE},
                                                {"RLIMIT_RTPRIO", RLIMIT_RTPRIO},
                                                {"RLIMIT_RTTIME", RLIMIT_RTTIME}}};

// Unknown names are warnings, as the specification wants of capabilities that can't be granted.
uint64_t ParseCapabilitySet(JsonReader& reader, const char* key) {
  uint64_t set = 0;
  for (const std::string& name : reader.Strings(key)) {
    std::string lower = name;
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
    cap_value_t number = 0;
    if (lower.starts_with("cap_") && cap_from_name(lower.c_str(), &number) == 0 && number < 64) {
      set |= uint64_t{1} << number;
    } else {
      base::Log(base::Level::kWarn, "unknown capability ignored", {{"name", name}, {"at", reader.Path(key)}});
    }
  }
  return set;
}

void ParseUser(JsonReader user, Process& process) {
  process.uid = static_cast<uint32_t>(user.Int("uid", process.uid, 0, kIdMax));
  process.gid = static_cast<uint32_t>(user.Int("gid", process.gid, 0, kIdMax));
  process.umask = static_cast<uint32_t>(user.Int("umask", process.umask, 0, 0777));
  if (!user.Has("additionalGids")) return;
  process.additional_gids.clear();
  const Json& gids = user.value().at("additionalGids");
  if (!gids.is_array()) return user.Fail("additionalGids", "must be an array");
  for (const Json& gid : gids) {
    if (!gid.is_number_unsigned() || gid.get<uint64_t>() > kIdMax) {
      return user.Fail("additionalGids[" + std::to_string(process.additional_gids.size()) + "]",
                       "must be an integer from 0 to 4294967294");
    }
    process.additional_gids.push_back(gid.get<uint32_t>());
  }
  constexpr size_t kMaxGroups = 65536;  // NGROUPS_MAX of the kernel
  if (process.additional_gids.size() > kMaxGroups)
    user.Fail("additionalGids", "more than 65536 groups", E2BIG);
}

void ParseRlimits(JsonReader& reader, Process& process) {
  if (!reader.Has("rlimits")) return;
  process.rlimits.clear();
  for (JsonReader& entry : reader.Objects("rlimits")) {
    const std::string type = entry.RequiredString("type");
    const auto* found = std::ranges::find(kRlimits, type, &NamedNumber::name);
    if (found == kRlimits.end()) return entry.Fail("type", "unknown resource " + type);
    const Rlimit limit{static_cast<int>(found->number), entry.Uint64("soft", 0), entry.Uint64("hard", 0)};
    if (!entry.Has("soft") || !entry.Has("hard")) entry.Fail("", "needs soft and hard");
    if (limit.soft > limit.hard) entry.Fail("soft", "is above hard");
    if (std::ranges::find(process.rlimits, limit.resource, &Rlimit::resource) != process.rlimits.end()) {
      entry.Fail("type", "duplicate " + type);
    }
    process.rlimits.push_back(limit);
  }
}

std::optional<uint16_t> ReadIoPriority(JsonReader& reader) {
  if (!reader.Has("ioPriority")) return std::nullopt;
  constexpr std::array<NamedNumber, 3> kClasses{{{"IOPRIO_CLASS_RT", IOPRIO_CLASS_RT},
                                                 {"IOPRIO_CLASS_BE", IOPRIO_CLASS_BE},
                                                 {"IOPRIO_CLASS_IDLE", IOPRIO_CLASS_IDLE}}};
  JsonReader entry = reader.Object("ioPriority");
  const int64_t io_class = ReadNamed(entry, "class", kClasses).value_or(IOPRIO_CLASS_BE);
  const int64_t level = entry.Int("priority", 0, 0, 7);
  // The idle class has no levels.
  return static_cast<uint16_t>(io_class << IOPRIO_CLASS_SHIFT | (io_class == IOPRIO_CLASS_IDLE ? 0 : level));
}

std::optional<Scheduler> ReadScheduler(JsonReader& reader) {
  if (!reader.Has("scheduler")) return std::nullopt;
  constexpr int kSchedDeadline = 6;
  constexpr std::array<NamedNumber, 7> kPolicies{{{"SCHED_OTHER", SCHED_OTHER},
                                                  {"SCHED_FIFO", SCHED_FIFO},
                                                  {"SCHED_RR", SCHED_RR},
                                                  {"SCHED_BATCH", SCHED_BATCH},
                                                  {"SCHED_ISO", 4},
                                                  {"SCHED_IDLE", SCHED_IDLE},
                                                  {"SCHED_DEADLINE", kSchedDeadline}}};
  constexpr std::array<NamedNumber, 7> kFlags{{{"SCHED_FLAG_RESET_ON_FORK", 0x01},
                                               {"SCHED_FLAG_RECLAIM", 0x02},
                                               {"SCHED_FLAG_DL_OVERRUN", 0x04},
                                               {"SCHED_FLAG_KEEP_POLICY", 0x08},
                                               {"SCHED_FLAG_KEEP_PARAMS", 0x10},
                                               {"SCHED_FLAG_UTIL_CLAMP_MIN", 0x20},
                                               {"SCHED_FLAG_UTIL_CLAMP_MAX", 0x40}}};
  JsonReader entry = reader.Object("scheduler");
  Scheduler scheduler;
  scheduler.policy = static_cast<uint32_t>(ReadNamed(entry, "policy", kPolicies).value_or(SCHED_OTHER));
  scheduler.nice = static_cast<int32_t>(entry.Int("nice", 0, -20, 19));
  scheduler.priority = static_cast<uint32_t>(entry.Int("priority", 0, 0, 99));
  scheduler.flags = ReadFlags(entry, "flags", kFlags);
  scheduler.runtime = entry.Uint64("runtime", 0);
  scheduler.deadline = entry.Uint64("deadline", 0);
  scheduler.period = entry.Uint64("period", 0);
  const bool realtime = scheduler.policy == SCHED_FIFO || scheduler.policy == SCHED_RR;
  if (realtime != (scheduler.priority != 0)) {
    entry.Fail("priority", "goes with SCHED_FIFO and SCHED_RR, which need one from 1 to 99");
  }
  const bool timed = scheduler.runtime != 0 || scheduler.deadline != 0 || scheduler.period != 0;
  if (timed && scheduler.policy != kSchedDeadline) entry.Fail("runtime", "goes with SCHED_DEADLINE only");
  return scheduler;
}

}  // namespace

Process ReadProcess(JsonReader reader, Process process) {
  process.terminal = reader.Bool("terminal", false);
  JsonReader size = reader.Object("consoleSize");
  process.console_height = static_cast<uint16_t>(size.Int("height", 0, 0, 0xffff));
  process.console_width = static_cast<uint16_t>(size.Int("width", 0, 0, 0xffff));
  process.args = reader.Strings("args");
  if (process.args.empty() || process.args[0].empty()) reader.Fail("args", "needs a program");
  if (reader.Has("env")) {
    process.env = reader.Strings("env");
    for (size_t i = 0; i < process.env.size(); ++i) {
      if (process.env[i].find('=') == std::string::npos || process.env[i][0] == '=') {
        reader.Fail("env[" + std::to_string(i) + "]", "must have the form NAME=value");
      }
    }
  }
  if (process.env.size() + process.args.size() > kMaxStrings) reader.Fail("env", "too many strings", E2BIG);
  process.cwd = reader.String("cwd", process.cwd);
  if (process.cwd.empty() || process.cwd[0] != '/') reader.Fail("cwd", "must be an absolute path");
  if (reader.Has("user")) ParseUser(reader.Object("user"), process);
  if (reader.Has("capabilities")) {
    JsonReader caps = reader.Object("capabilities");
    process.capabilities = {.bounding = ParseCapabilitySet(caps, "bounding"),
                            .effective = ParseCapabilitySet(caps, "effective"),
                            .inheritable = ParseCapabilitySet(caps, "inheritable"),
                            .permitted = ParseCapabilitySet(caps, "permitted"),
                            .ambient = ParseCapabilitySet(caps, "ambient")};
  }
  ParseRlimits(reader, process);
  process.no_new_privileges = reader.Bool("noNewPrivileges", process.no_new_privileges);
  if (const auto adj = reader.OptionalInt("oomScoreAdj", -1000, 1000))
    process.oom_score_adj = static_cast<int>(*adj);
  if (const auto priority = ReadIoPriority(reader)) process.io_priority = priority;
  if (const auto scheduler = ReadScheduler(reader)) process.scheduler = scheduler;
  if (reader.Has("execCPUAffinity")) {
    JsonReader affinity = reader.Object("execCPUAffinity");
    process.initial_affinity = ReadBitList(affinity, "initial");
    process.final_affinity = ReadBitList(affinity, "final");
  }
  process.apparmor_profile = reader.String("apparmorProfile", process.apparmor_profile);
  process.selinux_label = reader.String("selinuxLabel", process.selinux_label);
  return process;
}

}  // namespace gcs::engine
