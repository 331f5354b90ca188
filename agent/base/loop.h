// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::base {

// One epoll loop. Everything but Post and Stop is called on the loop's thread only (or before Run); Post and
// Stop from any thread. Callbacks may add and remove anything, themselves included. No callback may block.
class Loop {
 public:
  using IoCallback = std::function<void(uint32_t events)>;  // EPOLL* bits
  using TimerId = uint64_t;                                 // 0 is never a timer

  static Result<std::unique_ptr<Loop>> Create();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Watches `fd`, which stays the caller's and must be removed before it is closed. One watch per descriptor.
  Result<> Add(int fd, uint32_t events, IoCallback callback);
  Result<> Modify(int fd, uint32_t events);
  void Remove(int fd);

  // Runs `callback` once, `delay_ns` from now (0: in the next round).
  TimerId After(int64_t delay_ns, std::function<void()> callback);
  void Cancel(TimerId id);

  // Queues a function for the loop's thread; runs it even when posted from that thread (in the next round).
  void Post(std::function<void()> task);

  // Runs until Stop. Posted tasks that are still queued at Stop are run before it returns.
  void Run();
  void Stop();

  // One round: waits at most `timeout_ms` (-1: without end) for something to do.
  void RunOnce(int timeout_ms);

 private:
  Loop(Fd epoll, Fd wake);
  void RunPosted();
  int NextTimeout(int limit_ms) const;
  void RunTimers();

  struct Watch {
    uint64_t token;
    std::shared_ptr<IoCallback> callback;
  };
  Fd epoll_;
  Fd wake_;
  uint64_t next_token_ = 1;
  std::unordered_map<int, Watch> watches_;    // by descriptor
  std::unordered_map<uint64_t, int> tokens_;  // token to descriptor: stale events find nothing
  std::map<std::pair<int64_t, TimerId>, std::function<void()>> timers_;  // by due time, CLOCK_MONOTONIC ns
  std::unordered_map<TimerId, int64_t> timer_due_;
  TimerId next_timer_ = 1;
  std::mutex mutex_;  // guards the two below
  std::vector<std::function<void()>> posted_;
  bool stop_ = false;
};

}  // namespace gcs::base
