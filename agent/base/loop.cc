// SPDX-License-Identifier: Apache-2.0
#include "base/loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>

#include "base/clock.h"

namespace gcs::base {

Result<std::unique_ptr<Loop>> Loop::Create() {
  Fd epoll(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return ErrnoError("epoll_create1");
  Fd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return ErrnoError("eventfd");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = 0}};
  if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0) return ErrnoError("epoll_ctl", "wake");
  return std::unique_ptr<Loop>(new Loop(std::move(epoll), std::move(wake)));
}

Loop::Loop(Fd epoll, Fd wake) : epoll_(std::move(epoll)), wake_(std::move(wake)) {}
Loop::~Loop() = default;

Result<> Loop::Add(int fd, uint32_t events, IoCallback callback) {
  const uint64_t token = next_token_++;
  epoll_event event{.events = events, .data = {.u64 = token}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return ErrnoError("epoll_ctl add", std::to_string(fd));
  }
  watches_[fd] = Watch{token, std::make_shared<IoCallback>(std::move(callback))};
  tokens_[token] = fd;
  return {};
}

Result<> Loop::Modify(int fd, uint32_t events) {
  auto it = watches_.find(fd);
  if (it == watches_.end()) return MakeError(ENOENT, "epoll_ctl modify", std::to_string(fd));
  epoll_event event{.events = events, .data = {.u64 = it->second.token}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0) {
    return ErrnoError("epoll_ctl modify", std::to_string(fd));
  }
  return {};
}

void Loop::Remove(int fd) {
  auto it = watches_.find(fd);
  if (it == watches_.end()) return;
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  tokens_.erase(it->second.token);
  watches_.erase(it);
}

Loop::TimerId Loop::After(int64_t delay_ns, std::function<void()> callback) {
  const TimerId id = next_timer_++;
  const int64_t due = MonotonicNs() + std::max<int64_t>(delay_ns, 0);
  timers_.emplace(std::make_pair(due, id), std::move(callback));
  timer_due_[id] = due;
  return id;
}

void Loop::Cancel(TimerId id) {
  auto it = timer_due_.find(id);
  if (it == timer_due_.end()) return;
  timers_.erase({it->second, id});
  timer_due_.erase(it);
}

void Loop::Post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(task));
  }
  const uint64_t one = 1;
  // The counter can only be full when the loop is already due to wake.
  [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof one);
}

void Loop::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof one);
}

void Loop::RunPosted() {
  std::vector<std::function<void()>> tasks;
  {
    const std::lock_guard lock(mutex_);
    tasks.swap(posted_);
  }
  for (auto& task : tasks) task();
}

int Loop::NextTimeout(int limit_ms) const {
  if (timers_.empty()) return limit_ms;
  const int64_t left_ns = timers_.begin()->first.first - MonotonicNs();
  // Rounded up, so that a timer is not polled for in the last fraction of a millisecond.
  const int64_t left_ms = left_ns <= 0 ? 0 : (left_ns + 999'999) / 1'000'000;
  const int64_t bounded = std::min<int64_t>(left_ms, 3'600'000);
  return limit_ms < 0 ? static_cast<int>(bounded) : static_cast<int>(std::min<int64_t>(bounded, limit_ms));
}

void Loop::RunTimers() {
  const int64_t now = MonotonicNs();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    auto node = timers_.extract(timers_.begin());
    timer_due_.erase(node.key().second);
    node.mapped()();
  }
}

void Loop::RunOnce(int timeout_ms) {
  std::array<epoll_event, 64> events;
  const int n = epoll_wait(epoll_.get(), events.data(), events.size(), NextTimeout(timeout_ms));
  for (int i = 0; i < n; ++i) {
    const uint64_t token_value = events[i].data.u64;  // a copy, because epoll_event is packed
    if (token_value == 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = read(wake_.get(), &count, sizeof count);
      continue;
    }
    auto token = tokens_.find(token_value);
    if (token == tokens_.end()) continue;
    auto watch = watches_.find(token->second);
    if (watch == watches_.end()) continue;
    const auto callback = watch->second.callback;  // keeps it alive if it removes itself
    (*callback)(events[i].events);
  }
  RunTimers();
  RunPosted();
}

void Loop::Run() {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (stop_) break;
    }
    RunOnce(-1);
  }
  RunPosted();
  const std::lock_guard lock(mutex_);
  stop_ = false;
}

}  // namespace gcs::base
