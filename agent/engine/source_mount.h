// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "engine/cgroup.h"
#include "engine/compile.h"

namespace gcs::engine {

// What sources are made from; the descriptors stay the caller's.
struct SourceContext {
  const Cgroup* cgroup = nullptr;
  int proc_fd = -1;  // detached procfs
  int target_pidfd = -1;
  base::Fd* spare_network = nullptr;  // goes to the plan
  // A user namespace with these mappings. `shared`: one that others with the same mappings may have as well.
  std::function<base::Result<base::Fd>(const std::vector<IdMapping>& uids, const std::vector<IdMapping>& gids,
                                       bool shared)>
      user_namespace;
};

// Opens what a plan needs, in the agent's own view of files, with all mount attributes already applied to the
// detached copy: the container's process only attaches it, so there is no moment at which a mount lacks one
// of them.
base::Result<base::Fd> OpenSource(const PlanSource& source, const SourceContext& context);

// A procfs of the caller's pid namespace that is attached nowhere: nothing can be mounted over a part of it.
base::Result<base::Fd> DetachedProc();

}  // namespace gcs::engine
