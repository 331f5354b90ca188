// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace gcs::test {

// Notes in the file that GCS_TEST_SKIPS names that the running test case cannot run here; scripts/test then
// counts it as skipped and prints the reason. Only a kernel or hardware feature is a reason: a missing
// package, root or time is a failure.
inline void RecordSkip(std::string_view feature) {
  const std::string name = doctest::getContextOptions()->currentTest->m_name;
  MESSAGE("skipped, missing: " << std::string(feature));
  const char* path = getenv("GCS_TEST_SKIPS");
  if (path == nullptr) return;
  FILE* file = fopen(path, "ae");
  REQUIRE(file != nullptr);
  fprintf(file, "%s\t%.*s\n", name.c_str(), static_cast<int>(feature.size()), feature.data());
  REQUIRE(fclose(file) == 0);
}

}  // namespace gcs::test

// Ends the test case (or subcase) as skipped; to be used in the TEST_CASE itself.
#define GCS_SKIP(feature)           \
  do {                              \
    gcs::test::RecordSkip(feature); \
    return;                         \
  } while (false)
