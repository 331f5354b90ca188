// SPDX-License-Identifier: Apache-2.0
#include "base/procfs.h"

#include <doctest/doctest.h>

#include <string>

using namespace gcs::base;

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

TEST_CASE("a mount's path is read back whatever bytes it has") {
  // The kernel escapes space, tab, newline and backslash only: other white space separates nothing.
  const auto mounts = ParseMountInfo("2 1 0:1 / /a\rb\fc\vd\\011e rw - tmpfs x rw\n");
  REQUIRE(mounts.size() == 1);
  CHECK(mounts[0].target == "/a\rb\fc\vd\te");
}

TEST_CASE("what only looks like an escape of mountinfo is kept") {
  const auto mounts = ParseMountInfo(
      "2 1 0:1 / /a\\-12b\\+12c\\ 1 rw - tmpfs x rw\n3 1 0:1 / /a\\-12b\\8zzc rw - tmpfs x rw\n");
  REQUIRE(mounts.size() == 2);
  CHECK(mounts[0].target == "/a\\-12b\\+12c\\");
  CHECK(mounts[1].target == "/a\\-12b\\8zzc");
}

TEST_CASE("a mount's source may be empty, its options are those of the file system") {
  const auto mounts = ParseMountInfo(
      "2 1 0:1 / /a rw,nosuid shared:1 - cgroup  rw,cpu\n3 1 0:1 / /b rw - nfs4 h:/x y rw\n4 1 0:1 / /c rw - "
      "t s\n");
  REQUIRE(mounts.size() == 3);
  CHECK(mounts[0].options == "rw,cpu");
  CHECK(mounts[2].options.empty());
}

TEST_CASE("a process's times are found behind any name") {
  for (const char* name : {"x", "", ")", "a) S 1", ") R 1 2 3 4 5 6 7 8 9 10 11 12 13", "a b\nc"}) {
    CAPTURE(name);
    const auto stat = ParseProcessStat("7 (" + std::string(name) +
                                       ") S 1 2 3 4 -1 6 7 8 9 10 11 12 -13 -14 -15 -16 17 18 19 20\n");
    REQUIRE(stat);
    CHECK(stat->state == 'S');
    CHECK(stat->user_ticks == 11);
    CHECK(stat->system_ticks == 12);
    CHECK(stat->start_ticks == 19);
  }
}

TEST_CASE("a text that is no stat of a process gives nothing") {
  for (const char* text : {"", ")", "1 (x)", "1 (x) ", "1 (x) SS 1", "1 (x) S 1 2 3",
                           "1 (x) S 1 2 3 4 5 6 7 8 9 10 x 12 13 14 15 16 17 18 19",
                           "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99999999999999999999"}) {
    CAPTURE(text);
    CHECK(!ParseProcessStat(text));
  }
}

TEST_CASE("numbers of a process's status are those of their own line") {
  const char* text =
      "Name:\tUid:\nUmask:\t0022\nUid:\t1000\t5\t6\t7\nVmRSS:\t    1444 kB\nKthread:\tx\nThreads:\t3\n";
  CHECK(ParseStatusNumber(text, "Uid") == 1000);
  CHECK(ParseStatusNumber(text, "VmRSS") == 1444);
  CHECK(ParseStatusNumber(text, "Kthread") == 0);  // not the next line's
  CHECK(ParseStatusNumber(text, "Vm") == 0);
}

TEST_CASE("the cgroup v2 of a process stands alone or among v1's") {
  CHECK(ParseUnifiedCgroup("0::/a b/c\n") == "/a b/c");
  CHECK(ParseUnifiedCgroup("12:pids:/0::/no\n1:name=systemd:/y\n0::/c\n") == "/c");
  CHECK(ParseUnifiedCgroup("12:pids:/x\n").empty());
  CHECK(ParseUnifiedCgroup("").empty());
}
