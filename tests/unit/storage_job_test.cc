// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <future>

#include "base/clock.h"
#include "storage/job.h"

namespace gcs::storage {
namespace {

using base::MakeError;
using base::Result;

int64_t In(int64_t ms) { return base::MonotonicNs() + ms * base::kNsPerMs; }

Result<> Run(base::Pool& pool, const Wait& wait, const std::string& object,
             std::function<Result<>(Job&)> work, const std::function<void()>& abort = nullptr) {
  GCS_ASSIGN(const auto job, Job::Prepare(wait, object));
  return RunJob(pool, job, wait, object, std::move(work), abort);
}

TEST_CASE("a job's result is its caller's") {
  base::Pool pool(2);
  CHECK(Run(pool, {.deadline_ns = In(10'000)}, "x", [](Job& job) -> Result<> {
    CHECK(job.Commit());
    return {};
  }));
  const auto failed = Run(pool, {.deadline_ns = In(10'000)}, "x",
                          [](Job&) -> Result<> { return MakeError(EXDEV, "step", "object"); });
  CHECK(failed.error().err == EXDEV);
}

TEST_CASE("a caller leaves a job that hangs at the deadline, and the job learns it") {
  std::promise<void> go;
  std::promise<bool> committed;
  base::Pool pool(1);  // ends before what its threads use, here and below
  const int64_t begin = base::MonotonicNs();
  const auto result = Run(pool, {.deadline_ns = In(50)}, "disk", [&](Job& job) -> Result<> {
    go.get_future().wait();
    committed.set_value(job.Commit());
    return {};
  });
  CHECK(base::MonotonicNs() - begin < 5 * base::kNsPerSec);
  REQUIRE_FALSE(result);
  CHECK(result.error().err == ETIMEDOUT);
  CHECK(result.error().object == "disk");
  go.set_value();
  CHECK_FALSE(committed.get_future().get());
}

TEST_CASE("an abort lets a job that has begun succeed, and one that has not never begins") {
  std::promise<void> go;
  std::promise<bool> begun;
  base::Pool pool(1);
  const auto ended = Run(
      pool, {.deadline_ns = In(50)}, "share",
      [&](Job& job) -> Result<> {
        CHECK(job.Begin());
        go.get_future().wait();
        return {};
      },
      [&] { go.set_value(); });
  CHECK(ended);
  std::promise<void> free;
  pool.Post([&] { free.get_future().wait(); });
  const auto late = Run(pool, {.deadline_ns = In(50)}, "share", [&](Job& job) -> Result<> {
    begun.set_value(job.Begin());
    return MakeError(ECANCELED, "unmount", "share");
  });
  REQUIRE_FALSE(late);
  CHECK(late.error().err == ETIMEDOUT);
  free.set_value();
  CHECK_FALSE(begun.get_future().get());
}

TEST_CASE("a job whose deadline has passed is not begun") {
  std::atomic<bool> begun = false;
  Result<> result;
  {
    base::Pool pool(1);
    result = Run(pool, {.deadline_ns = In(-1)}, "x", [&](Job&) -> Result<> {
      begun = true;
      return {};
    });
  }
  CHECK(result.error().err == ETIMEDOUT);
  CHECK_FALSE(begun);
}

TEST_CASE("a job that has committed is waited for beyond the deadline") {
  base::Pool pool(1);
  const auto result = Run(pool, {.deadline_ns = In(20)}, "x", [](Job& job) -> Result<> {
    if (!job.Commit()) return MakeError(EINVAL, "commit");
    usleep(100'000);
    return {};
  });
  CHECK(result);
}

TEST_CASE("a job is aborted once at the deadline and gets a moment to clean up") {
  std::promise<void> unblock;
  std::atomic<bool> cleaned = false;
  int aborts = 0;
  base::Pool pool(1);
  const auto result = Run(
      pool, {.deadline_ns = In(20)}, "x",
      [&](Job&) -> Result<> {
        unblock.get_future().wait();
        usleep(20'000);
        cleaned = true;
        return MakeError(EIO, "read");
      },
      [&] {
        ++aborts;
        unblock.set_value();
      });
  CHECK(result.error().err == ETIMEDOUT);
  CHECK(aborts == 1);
  CHECK(cleaned);
}

TEST_CASE("a cancelled caller leaves with ECANCELED") {
  const base::Fd cancel(eventfd(1, EFD_CLOEXEC));
  std::promise<void> go;
  auto wait = go.get_future();
  base::Pool pool(1);
  const auto result =
      Run(pool, {.deadline_ns = In(60'000), .cancel_fd = cancel.get()}, "x", [&](Job&) -> Result<> {
        wait.wait();
        return {};
      });
  CHECK(result.error().err == ECANCELED);
  go.set_value();
}

}  // namespace
}  // namespace gcs::storage
