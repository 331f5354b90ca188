// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <utility>

#include "base/log.h"
#include "engine/spec_read.h"

namespace gcs::engine {

using base::Json;
using base::JsonReader;

namespace {

void ReadDeviceRules(JsonReader& reader, Resources& resources) {
  for (JsonReader& entry : reader.Objects("devices")) {
    DeviceRule rule{.allow = entry.Bool("allow")};
    const std::string type = entry.String("type", "a");
    if (type != "a" && type != "b" && type != "c") entry.Fail("type", "must be a, b or c");
    rule.type = type.empty() ? 'a' : type[0];
    for (auto [key, number] : {std::pair("major", &rule.major), std::pair("minor", &rule.minor)}) {
      const auto value = entry.OptionalInt(key, -1, 0xffffff);
      if (value && *value >= 0) *number = static_cast<uint32_t>(*value);
    }
    for (const char c : entry.String("access", "rwm")) {
      if (c == 'r') {
        rule.read = true;
      } else if (c == 'w') {
        rule.write = true;
      } else if (c == 'm') {
        rule.mknod = true;
      } else {
        entry.Fail("access", "may only have r, w and m");
      }
    }
    resources.devices.push_back(rule);
  }
}

}  // namespace

Resources ReadResources(JsonReader reader) {
  Resources resources;
  JsonReader memory = reader.Object("memory");
  resources.memory_limit = memory.OptionalInt("limit", -1, INT64_MAX);
  resources.memory_reservation = memory.OptionalInt("reservation", -1, INT64_MAX);
  resources.memory_swap = memory.OptionalInt("swap", -1, INT64_MAX);
  // kernel, kernelTCP, swappiness and disableOOMKiller have no cgroup v2 counterpart; "0"/false asks for
  // nothing.
  for (const char* key : {"kernel", "kernelTCP", "swappiness", "disableOOMKiller"}) {
    if (memory.Has(key) && memory.value().at(key) != Json(0) && memory.value().at(key) != Json(false) &&
        memory.value().at(key) != Json(-1)) {
      base::Log(base::Level::kWarn, "no such control in cgroup v2, ignored", {{"at", memory.Path(key)}});
    }
  }
  JsonReader cpu = reader.Object("cpu");
  if (const auto shares = cpu.OptionalInt("shares", 0, INT64_MAX); shares && *shares != 0)
    resources.cpu_shares = *shares;
  resources.cpu_quota = cpu.OptionalInt("quota", INT64_MIN, INT64_MAX);
  if (const auto period = cpu.OptionalInt("period", 0, 1'000'000); period && *period != 0)
    resources.cpu_period = *period;
  if (const auto burst = cpu.OptionalInt("burst", 0, INT64_MAX)) resources.cpu_burst = *burst;
  resources.cpus = cpu.String("cpus");
  resources.mems = cpu.String("mems");
  for (const char* key : {"realtimeRuntime", "realtimePeriod", "idle"}) {
    if (cpu.Has(key) && cpu.value().at(key) != Json(0))
      cpu.Fail(key, "is not supported on cgroup v2", EOPNOTSUPP);
  }
  resources.pids_limit = reader.Object("pids").OptionalInt("limit", -1, INT64_MAX);
  resources.unified = reader.StringMap("unified");
  for (const auto& [key, value] : resources.unified) {
    if (key.find('/') != std::string::npos || key.starts_with(".") || key.empty()) {
      reader.Fail("unified." + key, "is no name of a cgroup file");
    }
  }
  ReadDeviceRules(reader, resources);
  Refuse(reader, {"blockIO", "hugepageLimits", "network", "rdma"});
  return resources;
}

}  // namespace gcs::engine
