// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace gcs::guest {

struct BootPhase {
  std::string name;
  int64_t boottime_ns = 0;  // CLOCK_BOOTTIME at the phase's end
};

// The virtual machine as the kernel describes it now.
struct MachineInfo {
  std::string kernel_release;  // uname -r
  std::string kernel_version;  // uname -v
  int64_t uptime_ns = 0;       // CLOCK_BOOTTIME
  int64_t time_ns = 0;         // CLOCK_REALTIME
  uint32_t cpus = 0;           // online
  uint64_t memory_total_bytes = 0;
  uint64_t memory_available_bytes = 0;
};
base::Result<MachineInfo> ReadMachineInfo();

// Lines "name ns" that init writes in the order of its steps. A line that is none is an error: both are built
// together.
base::Result<std::vector<BootPhase>> ParseBootPhases(std::string_view text);
// The phases in `path`; none if the file isn't there, which is so wherever the agent wasn't started by init.
base::Result<std::vector<BootPhase>> ReadBootPhases(const std::string& path);

// What carries the guest's vsock: "hyperv", "virtio" or, when neither driver has a device, "vsock".
std::string VsockTransport();

}  // namespace gcs::guest
