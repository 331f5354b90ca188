// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "base/error.h"
#include "base/fd.h"
#include "engine/compile.h"

namespace gcs::engine {

// Opens what a plan needs, in the agent's own view of files, with all mount attributes already applied to the
// detached copy: the container's process only attaches it, so there is no moment at which a mount lacks one
// of them. `cgroup_fd`: the container's cgroup.
base::Result<base::Fd> OpenSource(const PlanSource& source, int cgroup_fd);

}  // namespace gcs::engine
