// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "host/vm/vm.h"

namespace gcs::host {

// Names inside QEMU.
std::string DiskId(uint32_t target, uint32_t lun);    // the device, "disk-T-L"
std::string NodeName(uint32_t target, uint32_t lun);  // the block node, "node-T-L"
nlohmann::json BlockdevArguments(const Disk& disk);
nlohmann::json ScsiDiskArguments(const Disk& disk);

// The files of a VM's run directory.
struct VmPaths {
  std::string qmp;
  std::string vhost;
  std::string console;
};

// QEMU's whole command line for options whose accel is decided. EINVAL: options that do not go together.
base::Result<std::vector<std::string>> QemuCommand(const VmOptions& options, const VmPaths& paths);
// What the kernel is told.
std::string KernelCommandLine(const VmOptions& options);
// -machine, -accel and -cpu, which the probe of accel.h shares.
std::vector<std::string> MachineArguments(Machine machine, Accel accel, const std::string& machine_extra);

}  // namespace gcs::host
