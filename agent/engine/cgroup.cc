// SPDX-License-Identifier: Apache-2.0
#include "engine/cgroup.h"

#include <fcntl.h>
#include <linux/magic.h>

#include <algorithm>

#include "base/paths.h"
#include "engine/cgroup_open.h"
#include "engine/verify.h"

namespace gcs::engine {

base::Result<std::unique_ptr<CgroupRoot>> CgroupRoot::Open(const std::string& mount_point) {
  GCS_ASSIGN(base::Fd fd, base::OpenFile(mount_point, O_RDONLY | O_DIRECTORY));
  if (VerifyInode(fd.get(), {.filesystem = CGROUP2_SUPER_MAGIC}) == 0) return OpenCgroupV2(std::move(fd));
  GCS_ASSIGN(const std::string mountinfo, base::ReadFile("/proc/self/mountinfo", 16 << 20));
  std::vector<CgroupHierarchy> hierarchies = ParseHierarchies(mountinfo, mount_point);
  const bool any = std::ranges::any_of(hierarchies, [](const CgroupHierarchy& h) { return !h.unified; });
  if (!any) return base::MakeError(EINVAL, "open cgroup root", mount_point, "has neither cgroup v2 nor v1");
  return OpenCgroupV1(std::move(hierarchies));
}

}  // namespace gcs::engine
