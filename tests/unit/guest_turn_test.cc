// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <chrono>
#include <mutex>
#include <thread>

#include "guest/container.h"

namespace {

using gcs::guest::Turn;
using namespace std::chrono_literals;

TEST_CASE("a turn is waited for no longer than its deadline says") {
  Turn turn;
  std::unique_lock first(turn);
  std::thread other([&] {
    const auto begin = std::chrono::steady_clock::now();
    const std::unique_lock late(turn, 50ms);
    CHECK_FALSE(late.owns_lock());
    CHECK(std::chrono::steady_clock::now() - begin >= 50ms);
    CHECK_FALSE(std::unique_lock(turn, 0ns).owns_lock());
  });
  other.join();
  std::thread next([&] {
    const std::unique_lock taken(turn, 20s);
    CHECK(taken.owns_lock());
  });
  first.unlock();
  next.join();
  const std::unique_lock again(turn, 0ns);
  CHECK(again.owns_lock());
}

}  // namespace
