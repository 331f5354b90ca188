// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "init/mountinfo.h"

using gcs::base::MountInfo;
using gcs::init::UnmountOrder;
using Targets = std::vector<std::string>;

TEST_CASE("mounts are undone from the leaves, whatever their ids, and the kernel's own file systems stay") {
  const std::vector<MountInfo> mounts = {
      {.id = 1, .parent = 0, .target = "/", .type = "rootfs"},
      {.id = 2, .parent = 1, .target = "/proc", .type = "proc"},
      {.id = 3, .parent = 1, .target = "/run", .type = "tmpfs"},
      // Made detached before what it was attached to: a smaller id than its parent's.
      {.id = 10, .parent = 30, .target = "/run/c/rootfs/data", .type = "ext4"},
      {.id = 30, .parent = 3, .target = "/run/c/rootfs", .type = "overlay"},
      {.id = 31, .parent = 3, .target = "/run/layer", .type = "ext4"},
      {.id = 40, .parent = 2, .target = "/proc/sys/x", .type = "tmpfs"},
      {.id = 41, .parent = 30, .target = "/run/c/rootfs/proc", .type = "proc"},
      {.id = 50, .parent = 31, .target = "/run/layer", .type = "ext4"},
  };
  CHECK(UnmountOrder(mounts) ==
        Targets{"/run/layer", "/run/c/rootfs/data", "/proc/sys/x", "/run/layer", "/run/c/rootfs", "/run"});
}

TEST_CASE("a circle of parents ends") {
  const std::vector<MountInfo> mounts = {{.id = 1, .parent = 2, .target = "/a", .type = "tmpfs"},
                                         {.id = 2, .parent = 1, .target = "/b", .type = "tmpfs"},
                                         {.id = 3, .parent = 3, .target = "/c", .type = "tmpfs"}};
  CHECK(UnmountOrder(mounts).size() == 3);
}
