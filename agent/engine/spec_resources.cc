// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <utility>

#include "engine/spec_read.h"

namespace gcs::engine {

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
  if (resources.devices.size() > kMaxDevices) reader.Fail("devices", "more than 10000 rules", E2BIG);
}

std::optional<uint64_t> ReadCount(JsonReader& reader, const char* key, int64_t most = INT64_MAX) {
  const auto value = reader.OptionalInt(key, 0, most);
  return value ? std::optional(static_cast<uint64_t>(*value)) : std::nullopt;
}

void ReadMemory(JsonReader memory, Resources& resources) {
  resources.memory_limit = memory.OptionalInt("limit", -1, INT64_MAX);
  resources.memory_reservation = memory.OptionalInt("reservation", -1, INT64_MAX);
  resources.memory_swap = memory.OptionalInt("swap", -1, INT64_MAX);
  resources.memory_kernel = memory.OptionalInt("kernel", -1, INT64_MAX);
  resources.memory_kernel_tcp = memory.OptionalInt("kernelTCP", -1, INT64_MAX);
  resources.memory_swappiness = ReadCount(memory, "swappiness", 100);
  resources.memory_disable_oom_killer = memory.Bool("disableOOMKiller");
  resources.memory_check_before_update = memory.Bool("checkBeforeUpdate");
}

void ReadCpu(JsonReader cpu, Resources& resources) {
  if (const auto shares = ReadCount(cpu, "shares"); shares && *shares != 0) resources.cpu_shares = shares;
  resources.cpu_quota = cpu.OptionalInt("quota", INT64_MIN, INT64_MAX);
  if (const auto period = ReadCount(cpu, "period", 1'000'000); period && *period != 0)
    resources.cpu_period = period;
  resources.cpu_burst = ReadCount(cpu, "burst");
  resources.cpu_idle = cpu.OptionalInt("idle", 0, 1);
  resources.cpu_realtime_runtime = cpu.OptionalInt("realtimeRuntime", -1, INT64_MAX);
  resources.cpu_realtime_period = ReadCount(cpu, "realtimePeriod");
  resources.cpus = cpu.String("cpus");
  resources.mems = cpu.String("mems");
}

BlockDevice ReadBlockDevice(JsonReader& entry) {
  if (!entry.Has("major") || !entry.Has("minor")) entry.Fail("major", "and minor are required");
  return {static_cast<uint32_t>(entry.Int("major", 0, 0, 0xfff)),
          static_cast<uint32_t>(entry.Int("minor", 0, 0, 0xfffff))};
}

void ReadBlockIo(JsonReader block, Resources& resources) {
  constexpr int64_t kLeast = 10;
  constexpr int64_t kMost = 1000;
  auto& block_io = resources.block_io;
  if (const auto weight = block.OptionalInt("weight", 0, kMost); weight && *weight != 0) {
    if (*weight < kLeast) block.Fail("weight", "must be from 10 to 1000", ERANGE);
    block_io.weight = static_cast<uint64_t>(*weight);
  }
  // leafWeight was of the CFQ scheduler, which Linux no longer has.
  Refuse(block, {"leafWeight"});
  for (JsonReader& entry : block.Objects("weightDevice")) {
    Refuse(entry, {"leafWeight"});
    block_io.weight_devices.emplace_back(ReadBlockDevice(entry),
                                         static_cast<uint64_t>(entry.Int("weight", kLeast, kLeast, kMost)));
  }
  const auto rates = [&](const char* key) {
    std::vector<std::pair<BlockDevice, uint64_t>> limits;
    for (JsonReader& entry : block.Objects(key)) {
      limits.emplace_back(ReadBlockDevice(entry), entry.Uint64("rate", 0));
    }
    return limits;
  };
  block_io.read_bps = rates("throttleReadBpsDevice");
  block_io.write_bps = rates("throttleWriteBpsDevice");
  block_io.read_iops = rates("throttleReadIOPSDevice");
  block_io.write_iops = rates("throttleWriteIOPSDevice");
}

void ReadHugepages(JsonReader& reader, Resources& resources) {
  for (JsonReader& entry : reader.Objects("hugepageLimits")) {
    const std::string size = entry.RequiredString("pageSize");
    // The kernel's own spelling: it becomes part of a file's name.
    const size_t digits = size.find_first_not_of("0123456789");
    const bool good =
        digits != std::string::npos && digits > 0 &&
        (size.substr(digits) == "KB" || size.substr(digits) == "MB" || size.substr(digits) == "GB");
    if (!good) entry.Fail("pageSize", "must be like 64KB, 2MB or 1GB");
    resources.hugepage_limits.emplace_back(size, entry.Uint64("limit", 0));
  }
}

void ReadNetwork(JsonReader network, Resources& resources) {
  resources.network_class_id = ReadCount(network, "classID", 0xffffffff);
  for (JsonReader& entry : network.Objects("priorities")) {
    std::string name = entry.RequiredString("name");
    if (name.find_first_of(" \n/") != std::string::npos) entry.Fail("name", "is no name of an interface");
    resources.network_priorities.emplace_back(std::move(name),
                                              static_cast<uint64_t>(entry.Int("priority", 0, 0, 0xffffffff)));
  }
}

void ReadRdma(JsonReader rdma, Resources& resources) {
  for (const auto& [device, value] : rdma.value().items()) {
    if (device.find_first_of(" \n") != std::string::npos) rdma.Fail(device, "is no name of a device");
    JsonReader entry = rdma.Object(device.c_str());
    resources.rdma.push_back(
        {device, ReadCount(entry, "hcaHandles", 0xffffffff), ReadCount(entry, "hcaObjects", 0xffffffff)});
  }
}

}  // namespace

Resources ReadResources(JsonReader reader) {
  Resources resources;
  ReadMemory(reader.Object("memory"), resources);
  ReadCpu(reader.Object("cpu"), resources);
  resources.pids_limit = reader.Object("pids").OptionalInt("limit", -1, INT64_MAX);
  ReadBlockIo(reader.Object("blockIO"), resources);
  ReadHugepages(reader, resources);
  ReadNetwork(reader.Object("network"), resources);
  ReadRdma(reader.Object("rdma"), resources);
  resources.unified = reader.StringMap("unified");
  for (const auto& [key, value] : resources.unified) {
    if (key.find('/') != std::string::npos || key.starts_with(".") || key.empty()) {
      reader.Fail("unified." + key, "is no name of a cgroup file");
    }
  }
  ReadDeviceRules(reader, resources);
  return resources;
}

}  // namespace gcs::engine
