// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "base/procfs.h"

namespace gcs::init {

// What to unmount at the end, in order: the deepest in the tree of mounts first (mount ids alone do not tell,
// a mount that was made detached is older than the one it was attached to). The root and the kernel's own
// file systems, which hold no data and are needed to the end, are left out.
std::vector<std::string> UnmountOrder(const std::vector<base::MountInfo>& mounts);

}  // namespace gcs::init
