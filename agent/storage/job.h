// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "base/error.h"
#include "base/executor.h"
#include "storage/disk.h"

namespace gcs::storage {

// Work that a kernel call may hold up, done on a worker while its caller waits no longer than it wants to.
class Job {
 public:
  // ETIMEDOUT if the deadline has passed already. What can fail fails here, before the caller notes anything
  // that only the work takes back.
  static base::Result<std::shared_ptr<Job>> Prepare(const Wait& wait, const std::string& object);

  // On the worker, at the start of work that an abort may end but nothing takes back: false if the caller has
  // gone; then the work must not begin.
  bool Begin();
  [[nodiscard]] bool begun() const;

  // On the worker, before the first effect that others can see: false if the caller has gone; then the work
  // has to undo what it did. After true the caller waits for the end.
  bool Commit();

 private:
  friend base::Result<> RunJob(base::Pool&, const std::shared_ptr<Job>&, const Wait&, const std::string&,
                               std::function<base::Result<>(Job&)>, const std::function<void()>&);
  enum class Phase : uint8_t { kOpen, kCommitted, kAbandoned, kEnded };

  bool Abandon();  // the caller: false if the work is past Commit

  mutable std::mutex mutex_;
  bool begun_ = false;
  Phase phase_ = Phase::kOpen;
  base::Fd ended_;  // eventfd
  base::Result<> result_;
};

// Runs `work` on the pool, once and in any case, and returns its result, or ETIMEDOUT or ECANCELED (object:
// `object`) when `wait` ends before the work commits. `abort`, if given, is then called to end a kernel call
// that hangs, and the work gets a moment to clean up, or even to succeed.
base::Result<> RunJob(base::Pool& pool, const std::shared_ptr<Job>& job, const Wait& wait,
                      const std::string& object, std::function<base::Result<>(Job&)> work,
                      const std::function<void()>& abort = nullptr);

}  // namespace gcs::storage
