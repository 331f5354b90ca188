// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::host {

struct Process {
  pid_t pid = -1;
  base::Fd pidfd;
};

// Starts a program (looked up in PATH) with stdin from /dev/null and both outputs appended to `log`. It gets
// SIGKILL when the calling *thread* ends, which must therefore live as long as the program should. A program
// that cannot be executed is an error here.
base::Result<Process> Spawn(const std::vector<std::string>& command, const std::string& log);

}  // namespace gcs::host
