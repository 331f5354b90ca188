// SPDX-License-Identifier: Apache-2.0
// Texts that the engine reads: files of cgroups, a container's /etc/passwd.
#include <doctest/doctest.h>

#include "engine/cgroup_parse.h"
#include "engine/child_home.h"

namespace gcs::engine {
namespace {

TEST_CASE("keyed values and numbers of cgroup files") {
  const KeyedValues values =
      ParseKeyed("populated 1\nfrozen 0\n\nnothing\nmax 18446744073709551615\nodd x\n");
  CHECK(Get(values, "populated") == 1);
  CHECK(Get(values, "max") == UINT64_MAX);
  CHECK(Get(values, "odd") == 0);
  CHECK(!values.contains("nothing"));
  CHECK(ParseNumber("4096\n") == 4096);
  CHECK(ParseNumber("max\n") == 0);
  CHECK(ParseNumber("") == 0);
  CHECK(ParsePids("1\n0\n2147483647\n2147483648\n-1\nx\n") == std::vector<int>{1, 0, 2147483647});
  CHECK(Words("cpu io\nmemory\n") == std::set<std::string>{"cpu", "io", "memory"});
}

TEST_CASE("counters of disks, of both versions") {
  const auto io = ParseIoStat(
      "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5\n8:16\nx:1 rbytes=1\n8 rbytes=1\n4294967296:0 "
      "rbytes=1\n");
  REQUIRE(io.size() == 2);
  CHECK(io[0].read_bytes == 1);
  CHECK(io[0].write_bytes == 2);
  CHECK(io[0].read_ops == 3);
  CHECK(io[0].write_ops == 4);
  CHECK(io[1].minor == 16);
  std::vector<IoStats> blkio;
  ParseBlkio("8:0 Read 5\n8:0 Write 6\n8:0 Sync 11\n8:16 Read 7\nTotal 18\n8:32:1 Read 1\n",
             &IoStats::read_bytes, &IoStats::write_bytes, blkio);
  ParseBlkio("8:16 Write 9\n", &IoStats::read_ops, &IoStats::write_ops, blkio);
  REQUIRE(blkio.size() == 2);
  CHECK(blkio[0].read_bytes == 5);
  CHECK(blkio[0].write_bytes == 6);
  CHECK(blkio[1].read_bytes == 7);
  CHECK(blkio[1].write_ops == 9);
}

TEST_CASE("pressure is what is a number") {
  const PressureStats stats = ParsePressure(
      "some avg10=1.50 avg60=0.25 avg300=99.00 total=18446744073709551615\nfull avg10=0.00 avg60=0.50 "
      "avg300=0.00 total=7\n");
  CHECK(stats.some_avg10 == 1.5);
  CHECK(stats.some_avg300 == 99);
  CHECK(stats.some_total_us == UINT64_MAX);
  CHECK(stats.full_avg60 == 0.5);
  CHECK(stats.full_total_us == 7);
  for (const char* text :
       {"some avg10=nan avg60=0 avg300=0 total=1\n", "some avg10=inf avg60=0 avg300=0 total=1\n",
        "some avg10=1 avg60=0 total=1\n", "some avg10=1 avg60=0 avg300=0 total=-1\n",
        "same avg10=1 avg60=0 avg300=0 total=1\n"}) {
    CAPTURE(text);
    CHECK(ParsePressure(text).some_avg10 == 0);
    CHECK(ParsePressure(text).full_avg10 == 0);
  }
}

TEST_CASE("a hierarchy whose mount has an empty source is found") {
  const auto found = ParseHierarchies("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup  rw,cpu,clone_children\n",
                                      "/sys/fs/cgroup");
  REQUIRE(found.size() == 1);
  CHECK(found[0].controllers == std::vector<std::string>{"cpu"});
}

TEST_CASE("a home directory is that of the first whole line of the user") {
  const char* passwd =
      "# x:x:0\n"
      "root:x:0:0:root:/root:/bin/sh\n"
      "u:x:1000:1000::/home/u:/bin/sh:more\n"
      "again:x:0:0::/no:/x\n"
      "z:x:007:0::/z:/x\n"
      "e:x::0::/empty:/x\n"
      "s:x: 8:0::/s:/x\n"
      "t:x:11x:0::/t:/x\n"
      "l:x:18446744073709551617:0::/l:/x\n"
      "m:x:4294967295:0::/m:/x\n"
      "short:x:9:0::/short\n"
      "last:x:10:0::/last:";
  CHECK(HomeOf(passwd, 0) == "/root");
  CHECK(HomeOf(passwd, 1000) == "/home/u");
  CHECK(HomeOf(passwd, 7) == "/z");
  CHECK(HomeOf(passwd, 8).empty());
  CHECK(HomeOf(passwd, 11).empty());
  CHECK(HomeOf(passwd, 9).empty());
  CHECK(HomeOf(passwd, 10) == "/last");
  CHECK(HomeOf(passwd, 1).empty());
  CHECK(HomeOf(passwd, UINT32_MAX) == "/m");
  CHECK(HomeOf("", 0).empty());
}

}  // namespace
}  // namespace gcs::engine
