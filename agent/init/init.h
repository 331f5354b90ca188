// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "init/table.h"

namespace gcs::init {

// PID 1 of the utility VM: sets the machine up as `table` says, keeps the agent running, reaps, and ends the
// machine when told to. Never returns. A failure of the set-up that leaves no usable machine is told to the
// kernel log and ends the machine.
[[noreturn]] void RunInit(const Table& table, const std::vector<std::string>& args);

}  // namespace gcs::init
