// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <set>
#include <string>

#include "init/table.h"

using gcs::init::kUtilityVm;
using gcs::init::OnFailure;

TEST_CASE("the mount table begins with /proc and mounts parents before children") {
  std::set<std::string> seen;
  REQUIRE(!kUtilityVm.mounts.empty());
  CHECK(std::string(kUtilityVm.mounts.front().target) == "/proc");
  for (const auto& row : kUtilityVm.mounts) {
    const std::string target = row.target;
    CAPTURE(target);
    CHECK(target.starts_with('/'));
    CHECK(seen.insert(target).second);
    // A later row must not hide an earlier one.
    for (const std::string& earlier : seen) CHECK_FALSE(earlier.starts_with(target + "/"));
  }
}

TEST_CASE("what the agent cannot live without is fatal") {
  std::set<std::string> fatal;
  for (const auto& row : kUtilityVm.mounts) {
    if (row.on_failure == OnFailure::kFatal) fatal.insert(row.target);
  }
  CHECK(fatal ==
        std::set<std::string>{"/proc", "/sys", "/dev", "/dev/pts", "/run", "/tmp", "/sys/fs/cgroup"});
}

TEST_CASE("directories and links lie in file systems that the table mounts, as the root becomes read-only") {
  const auto mounted = [](const std::string& path) {
    for (const auto& row : kUtilityVm.mounts) {
      if (path.starts_with(std::string(row.target) + "/")) return true;
    }
    return false;
  };
  for (const auto& row : kUtilityVm.directories) CHECK(mounted(row.path));
  for (const auto& row : kUtilityVm.links) CHECK(mounted(row.path));
  CHECK(mounted(kUtilityVm.boot_record));
  CHECK(mounted(kUtilityVm.kernel_log));
}

TEST_CASE("settings are files of procfs and sysfs, each once") {
  std::set<std::string> seen;
  for (const auto& row : kUtilityVm.settings) {
    const std::string path = row.path;
    CAPTURE(path);
    CHECK(seen.insert(path).second);
    CHECK((path.starts_with("/proc/sys/") || path.starts_with("/sys/kernel/")));
    CHECK(path.find('.') == std::string::npos);
    CHECK(*row.value != '\0');
  }
}

TEST_CASE("soft limits are within hard limits") {
  for (const auto& row : kUtilityVm.limits) CHECK(row.soft <= row.hard);
}
