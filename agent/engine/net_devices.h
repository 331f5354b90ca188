// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "base/error.h"
#include "engine/spec.h"
#include "net/device.h"

namespace gcs::engine {

// Moves linux.netDevices from the daemon's network namespace into that of the container's first process
// `pid`, by the daemon's procfs (config-linux.md, "Network Devices"). Errors name the JSON path. `moves`
// takes back what has been moved, also after an error; it holds the container's namespace.
base::Result<> MoveNetDevices(const std::vector<NetDevice>& devices, int proc_fd, int pid,
                              std::optional<net::DeviceMoves>& moves);

}  // namespace gcs::engine
