// SPDX-License-Identifier: Apache-2.0
#include "rpc/request_cache.h"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "unit/keep_rig.h"

namespace {

using gcs::base::kNsPerSec;
using gcs::guest::test::Life;
using gcs::rpc::RequestCache;

RequestCache::Answer Ok(std::string response) { return {grpc::Status::OK, std::move(response)}; }

// The answer that a repetition gets, or "new".
std::string Repeat(RequestCache& cache, const std::string& key, int64_t now) {
  std::string got = "waits";
  if (cache.Begin(key, {}, [&](const RequestCache::Answer& answer) { got = answer.response; }, now))
    return "new";
  return got;
}

TEST_CASE("a repeated key gets the first answer until its time is over") {
  RequestCache cache({.life_ns = 600 * kNsPerSec, .entries = 10, .bytes = 1 << 20});
  CHECK(Repeat(cache, "a", 0) == "new");
  cache.Complete("a", Ok("one"), 0);
  CHECK(Repeat(cache, "a", 599 * kNsPerSec) == "one");
  CHECK(Repeat(cache, "b", 599 * kNsPerSec) == "new");
  CHECK(Repeat(cache, "a", 601 * kNsPerSec) == "new");
}

TEST_CASE("failures are answers too") {
  RequestCache cache;
  CHECK(cache.Begin("a", {}, nullptr, 0));
  cache.Complete("a", {grpc::Status(grpc::StatusCode::NOT_FOUND, "no such thing", "details"), ""}, 0);
  grpc::Status status;
  CHECK(!cache.Begin("a", {}, [&](const RequestCache::Answer& answer) { status = answer.status; }, 1));
  CHECK(status.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(status.error_details() == "details");
}

TEST_CASE("repetitions during the act wait for its answer") {
  RequestCache cache;
  CHECK(cache.Begin("a", {}, nullptr, 0));
  int delivered = 0;
  for (int i = 0; i < 3; ++i) {
    CHECK(!cache.Begin(
        "a", {}, [&](const RequestCache::Answer& answer) { delivered += answer.response == "x"; }, 0));
  }
  CHECK(delivered == 0);
  cache.Complete("a", Ok("x"), 0);
  CHECK(delivered == 3);
  cache.Complete("a", Ok("second"), 0);  // no effect
  CHECK(Repeat(cache, "a", 0) == "x");
}

TEST_CASE("entries and bytes are bounded, the oldest answer goes first, acts in progress never") {
  RequestCache cache({.life_ns = 600 * kNsPerSec, .entries = 3, .bytes = 100'000});
  CHECK(Repeat(cache, "acting", 0) == "new");
  for (const char* key : {"a", "b", "c", "d"}) {
    CHECK(Repeat(cache, key, 0) == "new");
    cache.Complete(key, Ok(key), 0);
  }
  CHECK(cache.entries() == 4);  // acting, b, c, d
  CHECK(Repeat(cache, "b", 0) == "b");
  CHECK(Repeat(cache, "acting", 0) == "waits");
  CHECK(Repeat(cache, "big", 0) == "new");
  cache.Complete("big", Ok(std::string(200'000, 'x')), 0);
  CHECK(cache.entries() == 2);  // acting, big
  CHECK(Repeat(cache, "big", 0).size() == 200'000);
}

TEST_CASE("of many threads with one key exactly one acts") {
  RequestCache cache;
  for (int round = 0; round < 200; ++round) {
    const std::string key = std::to_string(round);
    std::atomic<int> acts = 0;
    std::atomic<int> answers = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        if (cache.Begin(
                key, {}, [&](const RequestCache::Answer& answer) { answers += answer.response == "done"; },
                0)) {
          ++acts;
          cache.Complete(key, Ok("done"), 0);
        }
      });
    }
    for (auto& thread : threads) thread.join();
    CHECK(acts == 1);
    CHECK(answers == 3);
  }
}

TEST_CASE("answers outlive the agent, and what it was at is ended or made anew") {
  gcs::init::Store store;
  {
    const Life life(&store);
    RequestCache cache;
    CHECK(cache.KeepIn(life.keep.get(), {}, 0).empty());
    CHECK(Repeat(cache, "fine", 0) == "new");
    cache.Complete("fine", Ok(std::string("a\0b", 3)), 0);
    CHECK(Repeat(cache, "failed", 0) == "new");
    cache.Complete("failed", {{grpc::StatusCode::NOT_FOUND, "why", "details"}, {}}, 0);
    CHECK(cache.Begin("done", "subject\nprocess", {}, 0));
    CHECK(cache.Begin("undone", "other", {}, 0));
  }
  const Life life(&store);
  RequestCache cache;
  auto open = cache.KeepIn(life.keep.get(), life.keep->TakeEntries(), 0);
  REQUIRE(open.size() == 2);
  CHECK(open[0].key == "done");
  CHECK(open[0].subject == "subject\nprocess");
  CHECK(open[0].begun_ns > 0);
  CHECK(open[1].key == "undone");
  CHECK(Repeat(cache, "fine", 0) == std::string("a\0b", 3));
  RequestCache::Answer failed;
  CHECK_FALSE(cache.Begin("failed", {}, [&](const RequestCache::Answer& answer) { failed = answer; }, 0));
  CHECK(failed.status.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(failed.status.error_message() == "why");
  CHECK(failed.status.error_details() == "details");
  // Those that ask meanwhile wait.
  RequestCache::Answer done;
  RequestCache::Answer undone;
  CHECK_FALSE(cache.Begin("done", {}, [&](const RequestCache::Answer& answer) { done = answer; }, 0));
  CHECK_FALSE(cache.Begin("undone", {}, [&](const RequestCache::Answer& answer) { undone = answer; }, 0));
  cache.Complete("done", Ok("late"), 0);
  cache.Abort("undone");
  CHECK(done.response == "late");
  CHECK(undone.status.error_code() == grpc::StatusCode::UNAVAILABLE);
  CHECK(Repeat(cache, "done", 0) == "late");
  CHECK(Repeat(cache, "undone", 0) == "new");
}

TEST_CASE("answers that are given up are not kept") {
  gcs::init::Store store;
  {
    const Life life(&store);
    RequestCache cache({.life_ns = kNsPerSec, .entries = 2, .bytes = 1 << 20});
    cache.KeepIn(life.keep.get(), {}, 0);
    for (const char* key : {"a", "b", "c", "d"}) {
      CHECK(Repeat(cache, key, 0) == "new");
      cache.Complete(key, Ok(key), 0);
    }
  }
  const Life life(&store);
  RequestCache cache;
  cache.KeepIn(life.keep.get(), life.keep->TakeEntries(), 0);
  CHECK(cache.entries() == 2);
}

}  // namespace
