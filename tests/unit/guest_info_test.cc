// SPDX-License-Identifier: Apache-2.0
#include "guest/info.h"

#include <doctest/doctest.h>

#include "guest/machine.h"

namespace {

TEST_CASE("boot phases are lines of a name and nanoseconds") {
  const auto phases = gcs::guest::ParseBootPhases("kernel 12\nmounts 345678901234\n");
  REQUIRE(phases.has_value());
  REQUIRE(phases->size() == 2);
  CHECK((*phases)[1].name == "mounts");
  CHECK((*phases)[1].boottime_ns == 345678901234);
  CHECK(gcs::guest::ParseBootPhases("")->empty());
}

TEST_CASE("a line that is no boot phase is an error that shows it") {
  for (const char* bad : {"name", "name ", " 5", "name 5x", "name -5", "name 99999999999999999999"}) {
    const auto phases = gcs::guest::ParseBootPhases(std::string("kernel 1\n") + bad + "\n");
    REQUIRE_MESSAGE(!phases.has_value(), bad);
    CHECK(phases.error().object == bad);
  }
}

TEST_CASE("a missing boot file means no phases") {
  const auto phases = gcs::guest::ReadBootPhases("/nonexistent/boot");
  REQUIRE(phases.has_value());
  CHECK(phases->empty());
}

TEST_CASE("the machine's figures are plausible") {
  const auto info = gcs::guest::ReadMachineInfo();
  REQUIRE(info.has_value());
  CHECK(info->cpus >= 1);
  CHECK(info->memory_total_bytes > info->memory_available_bytes);
  CHECK(info->time_ns > info->uptime_ns);
  CHECK(!info->kernel_release.empty());
}

TEST_CASE("time and entropy refuse what makes no sense") {
  CHECK(gcs::guest::SetWallClock(0).error().err == EINVAL);
  CHECK(gcs::guest::SetWallClock(-1).error().err == EINVAL);
  CHECK(gcs::guest::AddEntropy("").error().err == EINVAL);
  CHECK(gcs::guest::AddEntropy(std::string(4097, 'x')).error().err == EINVAL);
}

}  // namespace
