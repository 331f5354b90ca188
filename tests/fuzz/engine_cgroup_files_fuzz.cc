// SPDX-License-Identifier: Apache-2.0
// Files of cgroups: any bytes are read without fault, and counters and pressure of any value are read back
// from the text that the kernel writes.
#include <cstdio>
#include <cstring>
#include <string>

#include "engine/cgroup_parse.h"
#include "fuzz/require.h"

namespace {

using namespace gcs::engine;

void ReadAll(std::string_view text) {
  for (const auto& [key, value] : ParseKeyed(text))
    REQUIRE(!key.contains('\n') && Get(ParseKeyed(text), key) == value);
  for (const int pid : ParsePids(text)) REQUIRE(pid >= 0);
  for (const std::string& word : Words(text))
    REQUIRE(!word.empty() && word.find_first_of(" \n") == std::string::npos);
  std::vector<IoStats> blkio;
  ParseBlkio(text, &IoStats::read_bytes, &IoStats::write_bytes, blkio);
  for (size_t i = 0; i < blkio.size(); ++i) {
    for (size_t j = 0; j < i; ++j)
      REQUIRE(blkio[i].major != blkio[j].major || blkio[i].minor != blkio[j].minor);
  }
  (void)ParseIoStat(text);
  const PressureStats stats = ParsePressure(text);
  for (const double value : {stats.some_avg10, stats.some_avg60, stats.some_avg300, stats.full_avg10,
                             stats.full_avg60, stats.full_avg300}) {
    REQUIRE(value - value == 0);  // a number, which JSON can say
  }
  for (const CgroupHierarchy& hierarchy : ParseHierarchies(text, "/sys/fs/cgroup")) {
    REQUIRE(!hierarchy.name.empty() && !hierarchy.name.contains('/'));
    REQUIRE(hierarchy.mount_point == "/sys/fs/cgroup/" + hierarchy.name);
  }
}

void ReadBack(const uint64_t (&n)[6]) {
  const auto major = static_cast<uint32_t>(n[0]);
  const auto minor = static_cast<uint32_t>(n[1]);
  char text[1024];
  snprintf(text, sizeof text, "%u:%u rbytes=%lu wbytes=%lu rios=%lu wios=%lu dbytes=9 dios=9\n", major, minor,
           n[2], n[3], n[4], n[5]);
  const auto io = ParseIoStat(text);
  REQUIRE(io.size() == 1 && io[0].major == major && io[0].minor == minor);
  REQUIRE(io[0].read_bytes == n[2] && io[0].write_bytes == n[3] && io[0].read_ops == n[4] &&
          io[0].write_ops == n[5]);
  snprintf(text, sizeof text, "%u:%u Read %lu\n%u:%u Write %lu\n%u:%u Sync 1\nTotal 9\n", major, minor, n[2],
           major, minor, n[3], major, minor);
  std::vector<IoStats> blkio;
  ParseBlkio(text, &IoStats::read_ops, &IoStats::write_ops, blkio);
  REQUIRE(blkio.size() == 1 && blkio[0].read_ops == n[2] && blkio[0].write_ops == n[3]);
  const auto hundredths = static_cast<unsigned>(n[0] % 10001);
  snprintf(text, sizeof text,
           "some avg10=%u.%02u avg60=0.00 avg300=0.00 total=%lu\nfull avg10=0.00 avg60=0.00 avg300=%u.%02u "
           "total=%lu\n",
           hundredths / 100, hundredths % 100, n[2], hundredths / 100, hundredths % 100, n[3]);
  const PressureStats stats = ParsePressure(text);
  REQUIRE(stats.some_avg10 == hundredths / 100.0 && stats.full_avg300 == hundredths / 100.0);
  REQUIRE(stats.some_total_us == n[2] && stats.full_total_us == n[3]);
  snprintf(text, sizeof text, "low %lu\nmax %lu\noom_kill %lu\n", n[2], n[3], n[4]);
  const KeyedValues values = ParseKeyed(text);
  REQUIRE(Get(values, "low") == n[2] && Get(values, "max") == n[3] && Get(values, "oom_kill") == n[4] &&
          Get(values, "oom") == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 4096) return 0;  // The checks above are quadratic.
  ReadAll({reinterpret_cast<const char*>(data), size});
  uint64_t numbers[6];
  if (size >= sizeof numbers) {
    memcpy(numbers, data, sizeof numbers);
    ReadBack(numbers);
  }
  return 0;
}
