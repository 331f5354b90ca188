// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "init/backoff.h"

using gcs::base::kNsPerMs;
using gcs::base::kNsPerSec;
using gcs::init::Backoff;

TEST_CASE("restarts of a crashing program wait 100 ms, doubling up to 5 s") {
  Backoff backoff;
  for (const int64_t ms : {100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000})
    CHECK(backoff.Next(0) == ms * kNsPerMs);
}

TEST_CASE("a program that has lived 2 s is restarted at once, and a crash loop is one from its first round") {
  Backoff backoff;
  for (int i = 0; i < 8; ++i) backoff.Next(0);
  CHECK(backoff.Next(2 * kNsPerSec - 1) == 5 * kNsPerSec);
  CHECK(backoff.Next(2 * kNsPerSec) == 0);
  CHECK(backoff.Next(0) == 100 * kNsPerMs);
}
