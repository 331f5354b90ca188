// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gcs::base {

// A bounded pool of threads for kernel calls that may block. One thread lives as long as the pool: containers
// that have used up the machine's threads must not keep the agent from its work. Others start when there is
// more work than that and end after they were idle for some seconds, so that an idle agent is small; where
// none can be made, tasks wait for those there are. Tasks run in the order they came, several at once.
class Pool {
 public:
  explicit Pool(size_t max_threads);
  ~Pool();  // runs what is queued, then joins
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void Post(std::function<void()> task);

 private:
  void Work();
  bool AddThread();  // with mutex_ held

  const size_t max_threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> ended_;  // threads that have left Work and wait to be joined
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool closing_ = false;
};

// Runs tasks one at a time, in order, on a pool. Whoever holds the strand may drop it at any time: queued
// tasks still run.
class Strand : public std::enable_shared_from_this<Strand> {
 public:
  explicit Strand(Pool* pool) : pool_(pool) {}
  void Post(std::function<void()> task);

 private:
  void Drain();

  Pool* const pool_;
  std::mutex mutex_;
  std::deque<std::function<void()>> tasks_;
  bool running_ = false;
};

}  // namespace gcs::base
