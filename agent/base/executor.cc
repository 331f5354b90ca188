// SPDX-License-Identifier: Apache-2.0
#include "base/executor.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

namespace gcs::base {

namespace {
constexpr std::chrono::seconds kIdleLife{10};
}  // namespace

Pool::Pool(size_t max_threads) : max_threads_(std::max<size_t>(max_threads, 1)) {
  const std::lock_guard lock(mutex_);
  AddThread();
}

Pool::~Pool() {
  std::unique_lock lock(mutex_);
  closing_ = true;
  wake_.notify_all();
  if (threads_.empty()) {  // Not even the first could be made.
    lock.unlock();
    Work();
    lock.lock();
  }
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
    const bool short_of_threads = idle_ < tasks_.size() && threads_.size() < max_threads_;
    if (!short_of_threads || !AddThread()) wake_.notify_one();
  }
  for (auto& thread : ended) thread.join();
}

bool Pool::AddThread() {
  try {
    threads_.emplace_back([this] { Work(); });
    return true;
  } catch (const std::system_error&) {
    return false;  // EAGAIN: no memory for a stack, or the machine's threads are used up
  }
}

void Pool::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (tasks_.empty()) {
      if (closing_) return;
      ++idle_;
      const auto due = [this] { return !tasks_.empty() || closing_; };
      const bool last = threads_.size() <= 1;
      if (last) wake_.wait(lock, due);
      const bool woken = last || wake_.wait_for(lock, kIdleLife, due);
      --idle_;
      if (!woken && threads_.size() > 1) {
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
