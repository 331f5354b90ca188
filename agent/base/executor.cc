// SPDX-License-Identifier: Apache-2.0
#include "base/executor.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace gcs::base {

namespace {
constexpr std::chrono::seconds kIdleLife{10};
}  // namespace

Pool::Pool(size_t max_threads) : max_threads_(std::max<size_t>(max_threads, 1)) {}

Pool::~Pool() {
  std::unique_lock lock(mutex_);
  closing_ = true;
  wake_.notify_all();
  while (!threads_.empty() || !ended_.empty()) {
    auto joinable = std::exchange(threads_, {});
    for (auto& thread : std::exchange(ended_, {})) joinable.push_back(std::move(thread));
    lock.unlock();
    for (auto& thread : joinable) thread.join();
    lock.lock();
  }
}

void Pool::Post(std::function<void()> task) {
  std::vector<std::thread> ended;
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    ended = std::exchange(ended_, {});
    if (idle_ < tasks_.size() && threads_.size() < max_threads_) {
      threads_.emplace_back([this] { Work(); });
    } else {
      wake_.notify_one();
    }
  }
  for (auto& thread : ended) thread.join();
}

void Pool::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (tasks_.empty()) {
      if (closing_) return;
      ++idle_;
      const bool woken = wake_.wait_for(lock, kIdleLife, [this] { return !tasks_.empty() || closing_; });
      --idle_;
      if (!woken) {
        const auto self = std::ranges::find(threads_, std::this_thread::get_id(), &std::thread::get_id);
        if (self != threads_.end()) {
          ended_.push_back(std::move(*self));
          threads_.erase(self);
        }
        return;
      }
      continue;
    }
    auto task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what the task holds is let go outside the lock
    lock.lock();
  }
}

void Strand::Post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    if (running_) return;
    running_ = true;
  }
  pool_->Post([self = shared_from_this()] { self->Drain(); });
}

void Strand::Drain() {
  for (;;) {
    std::function<void()> task;
    {
      const std::lock_guard lock(mutex_);
      if (tasks_.empty()) {
        running_ = false;
        return;
      }
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace gcs::base
