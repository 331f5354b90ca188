// SPDX-License-Identifier: Apache-2.0
#include "storage/job.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <utility>

#include "base/clock.h"

namespace gcs::storage {

namespace {

using base::ErrnoError;
using base::MakeError;
using base::Result;

constexpr int kAbortGraceMs = 200;

// 0 when `fd` became readable, else ETIMEDOUT, ECANCELED or the errno of poll.
int WaitReadable(int fd, const Wait& wait) {
  for (;;) {
    const int64_t left_ns = wait.deadline_ns - base::MonotonicNs();
    const int64_t left_ms = left_ns <= 0 ? 0 : left_ns / base::kNsPerMs + 1;
    std::array<pollfd, 2> fds{{{.fd = fd, .events = POLLIN}, {.fd = wait.cancel_fd, .events = POLLIN}}};
    const int ready = poll(fds.data(), fds.size(), static_cast<int>(std::min<int64_t>(left_ms, INT_MAX)));
    if (ready < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    if (fds[0].revents != 0) return 0;
    if (fds[1].revents != 0) return ECANCELED;
    if (left_ns <= 0) return ETIMEDOUT;
  }
}

}  // namespace

Result<std::shared_ptr<Job>> Job::Prepare(const Wait& wait, const std::string& object) {
  if (base::MonotonicNs() >= wait.deadline_ns) return MakeError(ETIMEDOUT, "wait for the kernel", object);
  auto job = std::make_shared<Job>();
  job->ended_.Reset(eventfd(0, EFD_CLOEXEC));
  if (!job->ended_) return ErrnoError("eventfd", object);
  return job;
}

bool Job::Begin() {
  const std::lock_guard lock(mutex_);
  begun_ = phase_ != Phase::kAbandoned;
  return begun_;
}

bool Job::begun() const {
  const std::lock_guard lock(mutex_);
  return begun_;
}

bool Job::Commit() {
  const std::lock_guard lock(mutex_);
  if (phase_ == Phase::kAbandoned) return false;
  phase_ = Phase::kCommitted;
  return true;
}

bool Job::Abandon() {
  const std::lock_guard lock(mutex_);
  if (phase_ != Phase::kOpen) return false;
  phase_ = Phase::kAbandoned;
  return true;
}

Result<> RunJob(base::Pool& pool, const std::shared_ptr<Job>& job, const Wait& wait,
                const std::string& object, std::function<Result<>(Job&)> work,
                const std::function<void()>& abort) {
  pool.Post([job, work = std::move(work)]() mutable {
    auto result = work(*job);
    work = nullptr;  // what it holds is let go before the caller goes on
    const std::lock_guard lock(job->mutex_);
    job->result_ = std::move(result);
    if (job->phase_ != Job::Phase::kAbandoned) job->phase_ = Job::Phase::kEnded;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(job->ended_.get(), &one, sizeof one);  // from 0: never full
  });

  const int reason = WaitReadable(job->ended_.get(), wait);
  if (reason != 0) {
    if (job->Abandon()) {
      if (abort) {
        abort();
        const int64_t grace_end = base::MonotonicNs() + kAbortGraceMs * base::kNsPerMs;
        if (WaitReadable(job->ended_.get(), {.deadline_ns = grace_end}) == 0) {
          const std::lock_guard lock(job->mutex_);
          if (job->result_) return {};
        }
      }
      return MakeError(reason, "wait for the kernel", object);
    }
    // Past Commit there is only what doesn't block.
    while (WaitReadable(job->ended_.get(), {.deadline_ns = INT64_MAX}) != 0) {
    }
  }
  const std::lock_guard lock(job->mutex_);
  return std::move(job->result_);
}

}  // namespace gcs::storage
