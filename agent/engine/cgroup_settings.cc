// SPDX-License-Identifier: Apache-2.0
#include "engine/cgroup_settings.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <utility>

#include "base/log.h"

namespace gcs::engine {

using base::MakeError;
using base::Result;

namespace {

using Settings = std::vector<CgroupSetting>;

std::string Number(uint64_t value) { return std::to_string(value); }
std::string MaxOr(int64_t value) { return value < 0 ? "max" : std::to_string(value); }
std::string Name(const BlockDevice& device) {
  return std::to_string(device.major) + ":" + std::to_string(device.minor);
}

void Ignored(const char* what) {
  base::Log(base::Level::kWarn, "no such control in this cgroup version, ignored",
            {{"at", std::string("linux.resources.") + what}});
}

void Add(Settings& settings, const char* controller, std::string file, std::string value,
         bool optional = false) {
  settings.push_back({controller, {{std::move(file), std::move(value)}}, optional});
}

Result<std::string> SwapV2(const Resources& r) {
  // The specification counts memory and swap together, the kernel swap alone.
  if (*r.memory_swap < 0) return "max";
  if (!r.memory_limit || *r.memory_limit <= 0) {
    return MakeError(EINVAL, "set limit", "linux.resources.memory.swap", "needs a memory limit");
  }
  if (*r.memory_swap < *r.memory_limit) {
    return MakeError(EINVAL, "set limit", "linux.resources.memory.swap", "is below the memory limit");
  }
  return Number(static_cast<uint64_t>(*r.memory_swap - *r.memory_limit));
}

Result<> MemoryV2(const Resources& r, Settings& settings) {
  if (r.memory_limit && *r.memory_limit != 0) Add(settings, "memory", "memory.max", MaxOr(*r.memory_limit));
  if (r.memory_reservation && *r.memory_reservation != 0) {
    Add(settings, "memory", "memory.low", MaxOr(*r.memory_reservation));
  }
  if (r.memory_swap && *r.memory_swap != 0) {
    GCS_ASSIGN(std::string swap, SwapV2(r));
    const bool none = swap == "max";
    Add(settings, "memory", "memory.swap.max", std::move(swap), none);
  }
  if (r.memory_kernel.value_or(0) > 0) Ignored("memory.kernel");
  if (r.memory_kernel_tcp.value_or(0) > 0) Ignored("memory.kernelTCP");
  if (r.memory_swappiness) Ignored("memory.swappiness");
  if (r.memory_disable_oom_killer) Ignored("memory.disableOOMKiller");
  return {};
}

void CpusetAndPids(const Resources& r, Settings& settings) {
  if (!r.cpus.empty()) Add(settings, "cpuset", "cpuset.cpus", r.cpus);
  if (!r.mems.empty()) Add(settings, "cpuset", "cpuset.mems", r.mems);
  // 0 is a limit since runtime-spec 1.3.
  if (r.pids_limit) Add(settings, "pids", "pids.max", MaxOr(*r.pids_limit));
}

void Rdma(const Resources& r, Settings& settings) {
  for (const auto& limit : r.rdma) {
    std::string value = limit.device;
    if (limit.hca_handles) value += " hca_handle=" + Number(*limit.hca_handles);
    if (limit.hca_objects) value += " hca_object=" + Number(*limit.hca_objects);
    Add(settings, "rdma", "rdma.max", std::move(value));
  }
}

void BlockIoV2(const Resources& r, Settings& settings) {
  const auto& block = r.block_io;
  // BFQ takes the specification's range as it is, io.weight has 1 to 10000.
  const auto weight = [&](const std::string& prefix, uint64_t value) {
    settings.push_back({"io",
                        {{"io.bfq.weight", prefix + Number(value)},
                         {"io.weight", prefix + Number(1 + (value - 10) * 9999 / 990)}},
                        false});
  };
  if (block.weight) weight("default ", *block.weight);
  for (const auto& [device, value] : block.weight_devices) weight(Name(device) + " ", value);
  const auto throttle = [&](const char* key, const auto& limits) {
    for (const auto& [device, rate] : limits) {
      Add(settings, "io", "io.max", Name(device) + " " + key + "=" + (rate == 0 ? "max" : Number(rate)));
    }
  };
  throttle("rbps", block.read_bps);
  throttle("wbps", block.write_bps);
  throttle("riops", block.read_iops);
  throttle("wiops", block.write_iops);
}

void MemoryV1(const Resources& r, Settings& settings) {
  const auto bytes = [&](const char* file, const std::optional<int64_t>& value, bool optional) {
    if (value && *value != 0) Add(settings, "memory", file, std::to_string(*value), optional || *value < 0);
  };
  bytes("memory.limit_in_bytes", r.memory_limit, false);
  bytes("memory.soft_limit_in_bytes", r.memory_reservation, false);
  bytes("memory.memsw.limit_in_bytes", r.memory_swap, false);
  if (r.memory_kernel.value_or(0) > 0) Ignored("memory.kernel");  // Linux refuses it since 5.16
  bytes("memory.kmem.tcp.limit_in_bytes", r.memory_kernel_tcp, true);
  if (r.memory_swappiness) Add(settings, "memory", "memory.swappiness", Number(*r.memory_swappiness));
  if (r.memory_disable_oom_killer) Add(settings, "memory", "memory.oom_control", "1");
}

void CpuV1(const Resources& r, Settings& settings) {
  if (r.cpu_shares) Add(settings, "cpu", "cpu.shares", Number(*r.cpu_shares));
  if (r.cpu_period) Add(settings, "cpu", "cpu.cfs_period_us", Number(*r.cpu_period));
  if (r.cpu_quota)
    Add(settings, "cpu", "cpu.cfs_quota_us", std::to_string(std::max<int64_t>(*r.cpu_quota, -1)));
  if (r.cpu_burst) Add(settings, "cpu", "cpu.cfs_burst_us", Number(*r.cpu_burst), *r.cpu_burst == 0);
  if (r.cpu_idle) Add(settings, "cpu", "cpu.idle", std::to_string(*r.cpu_idle), *r.cpu_idle == 0);
  if (r.cpu_realtime_period.value_or(0) != 0)
    Add(settings, "cpu", "cpu.rt_period_us", Number(*r.cpu_realtime_period));
  if (r.cpu_realtime_runtime.value_or(0) != 0) {
    Add(settings, "cpu", "cpu.rt_runtime_us", std::to_string(*r.cpu_realtime_runtime));
  }
}

void BlockIoV1(const Resources& r, Settings& settings) {
  const auto& block = r.block_io;
  const auto weight = [&](const char* suffix, const std::string& value) {
    settings.push_back(
        {"blkio",
         {{std::string("blkio.weight") + suffix, value}, {std::string("blkio.bfq.weight") + suffix, value}},
         false});
  };
  if (block.weight) weight("", Number(*block.weight));
  for (const auto& [device, value] : block.weight_devices)
    weight("_device", Name(device) + " " + Number(value));
  const auto throttle = [&](const char* file, const auto& limits) {
    for (const auto& [device, rate] : limits) Add(settings, "blkio", file, Name(device) + " " + Number(rate));
  };
  throttle("blkio.throttle.read_bps_device", block.read_bps);
  throttle("blkio.throttle.write_bps_device", block.write_bps);
  throttle("blkio.throttle.read_iops_device", block.read_iops);
  throttle("blkio.throttle.write_iops_device", block.write_iops);
}

}  // namespace

uint64_t CpuWeight(uint64_t shares) {
  if (shares == 0) return 0;
  if (shares <= 2) return 1;
  if (shares >= 262144) return 10000;
  // The curve that maps the v1 default 1024 to the v2 default 100, and both ends to both ends.
  const double l = std::log2(static_cast<double>(shares));
  return static_cast<uint64_t>(std::ceil(std::pow(10, (l * l + 125 * l) / 612.0 - 7.0 / 34.0)));
}

Result<Settings> SettingsV2(const Resources& r) {
  Settings settings;
  GCS_TRY(MemoryV2(r, settings));
  if (r.cpu_shares) Add(settings, "cpu", "cpu.weight", Number(CpuWeight(*r.cpu_shares)));
  if (r.cpu_quota || r.cpu_period) {
    // The kernel keeps the period if none is given.
    const std::string quota =
        r.cpu_quota ? (*r.cpu_quota <= 0 ? "max" : Number(static_cast<uint64_t>(*r.cpu_quota))) : "-";
    Add(settings, "cpu", "cpu.max", quota + (r.cpu_period ? " " + Number(*r.cpu_period) : ""));
  }
  if (r.cpu_burst) Add(settings, "cpu", "cpu.max.burst", Number(*r.cpu_burst), *r.cpu_burst == 0);
  if (r.cpu_idle) Add(settings, "cpu", "cpu.idle", std::to_string(*r.cpu_idle), *r.cpu_idle == 0);
  if (r.cpu_realtime_period.value_or(0) != 0 || r.cpu_realtime_runtime.value_or(0) != 0) {
    return MakeError(EOPNOTSUPP, "set limit", "linux.resources.cpu.realtimeRuntime", "cgroup v2 has none");
  }
  CpusetAndPids(r, settings);
  BlockIoV2(r, settings);
  for (const auto& [size, limit] : r.hugepage_limits) {
    Add(settings, "hugetlb", "hugetlb." + size + ".max", Number(limit));
    // Reservations too, or a mapping could take what it is not allowed to touch.
    Add(settings, "hugetlb", "hugetlb." + size + ".rsvd.max", Number(limit), true);
  }
  if (r.network_class_id.value_or(0) != 0 || !r.network_priorities.empty()) {
    return MakeError(EOPNOTSUPP, "set limit", "linux.resources.network", "cgroup v2 has none");
  }
  Rdma(r, settings);
  for (const auto& [file, value] : r.unified) {
    settings.push_back({file.substr(0, file.find('.')), {{file, value}}, false});
  }
  return settings;
}

Result<Settings> SettingsV1(const Resources& r) {
  if (!r.unified.empty()) {
    return MakeError(EOPNOTSUPP, "set limit", "linux.resources.unified", "needs cgroup v2");
  }
  Settings settings;
  MemoryV1(r, settings);
  CpuV1(r, settings);
  CpusetAndPids(r, settings);
  BlockIoV1(r, settings);
  for (const auto& [size, limit] : r.hugepage_limits) {
    Add(settings, "hugetlb", "hugetlb." + size + ".limit_in_bytes", Number(limit));
    Add(settings, "hugetlb", "hugetlb." + size + ".rsvd.limit_in_bytes", Number(limit), true);
  }
  if (r.network_class_id.value_or(0) != 0) {
    Add(settings, "net_cls", "net_cls.classid", Number(*r.network_class_id));
  }
  for (const auto& [name, priority] : r.network_priorities) {
    Add(settings, "net_prio", "net_prio.ifpriomap", name + " " + Number(priority));
  }
  Rdma(r, settings);
  return settings;
}

}  // namespace gcs::engine
