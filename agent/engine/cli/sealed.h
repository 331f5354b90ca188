// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "base/error.h"

namespace gcs::oci {

// Makes this process run from a copy of the program that nobody can write to, executing it again if need be
// (then it does not return). A container's process is ours until its execve, and can be made to execute us
// again by an image
// ("#!/proc/self/exe"): through /proc/PID/exe it could then change the runtime on disk (CVE-2019-5736).
base::Result<> RunFromSealedCopy(char** argv);

}  // namespace gcs::oci
