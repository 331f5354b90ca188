// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "init/mountinfo.h"

using gcs::init::MountEntry;
using gcs::init::ParseMountInfo;
using gcs::init::UnmountOrder;
using Targets = std::vector<std::string>;

TEST_CASE("mountinfo lines are read with and without optional fields") {
  const auto mounts = ParseMountInfo(
      "18 1 0:2 / / ro - rootfs rootfs ro,size=243492k\n"
      "25 18 0:21 / /run rw,nosuid shared:1 master:2 - tmpfs run rw,mode=755\n");
  REQUIRE(mounts.size() == 2);
  CHECK(mounts[0].id == 18);
  CHECK(mounts[0].parent == 1);
  CHECK(mounts[0].target == "/");
  CHECK(mounts[0].type == "rootfs");
  CHECK(mounts[1].target == "/run");
  CHECK(mounts[1].type == "tmpfs");
}

TEST_CASE("escapes in paths are undone, other backslashes kept") {
  const auto mounts = ParseMountInfo(
      "2 1 0:1 / /a\\040b\\011c\\134d rw - tmpfs x rw\n"
      "3 1 0:1 / /e\\9f\\04 rw - tmpfs x rw\n");
  REQUIRE(mounts.size() == 2);
  CHECK(mounts[0].target == "/a b\tc\\d");
  CHECK(mounts[1].target == "/e\\9f\\04");
}

TEST_CASE("lines that are none are left out") {
  for (const char* line :
       {"", "x 1 0:1 / / rw - t s r", "1 x 0:1 / / rw - t s r", "1 1 0:1 / relative rw - t s r",
        "1 1 0:1 / / rw t s r", "1 1 0:1 / /", "1", "1 1 0:1 / / rw -", "1 1 0:1 / / rw - "}) {
    CAPTURE(line);
    CHECK(ParseMountInfo(line).empty());
    CHECK(ParseMountInfo(std::string(line) + "\n5 1 0:1 / /ok rw - t s r\n").size() == 1);
  }
}

TEST_CASE("mounts are undone from the leaves, whatever their ids, and the kernel's own file systems stay") {
  const std::vector<MountEntry> mounts = {
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
  const std::vector<MountEntry> mounts = {{.id = 1, .parent = 2, .target = "/a", .type = "tmpfs"},
                                          {.id = 2, .parent = 1, .target = "/b", .type = "tmpfs"},
                                          {.id = 3, .parent = 3, .target = "/c", .type = "tmpfs"}};
  CHECK(UnmountOrder(mounts).size() == 3);
}
