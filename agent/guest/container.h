// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/fd.h"
#include "engine/engine.h"
#include "guest/container_keep.h"
#include "guest/containers.h"
#include "stdio/process_io.h"

namespace gcs::guest {

// A lock that is waited for up to a deadline. (std::timed_mutex waits by pthread_mutex_clocklock, which the
// thread sanitizer of g++ 12 does not know.)
class Turn {
 public:
  void lock() {
    std::unique_lock lock(mutex_);
    free_.wait(lock, [&] { return !taken_; });
    taken_ = true;
  }
  bool try_lock_for(std::chrono::nanoseconds time) {
    std::unique_lock lock(mutex_);
    if (!free_.wait_for(lock, time, [&] { return !taken_; })) return false;
    taken_ = true;
    return true;
  }
  void unlock() {
    const std::lock_guard lock(mutex_);
    taken_ = false;
    free_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  bool taken_ = false;
};

// A process that Create or Exec has started, until it is deleted.
class Process {
 public:
  Process(std::string container, std::string process)
      : container_id(std::move(container)), id(std::move(process)) {}

  const std::string container_id;
  const std::string id;  // "" is the container's first process

  // Set before the process is in any table, constant from then on.
  engine::ChildProcess child;
  std::unique_ptr<stdio::ProcessIo> io;
  std::shared_ptr<KeptProcess> kept;
  bool terminal = false;
  uint64_t oom_kills_before = 0;  // the cgroup's count at the start; constant once the program runs

  mutable std::mutex mutex;  // guards what follows
  std::condition_variable ended;
  int64_t started_at_ns = 0;
  std::optional<ExitStatus> exit;
  std::map<uint64_t, Containers::WaitCallback> waiters;

  [[nodiscard]] std::optional<ExitStatus> Exit() const {
    const std::lock_guard lock(mutex);
    return exit;
  }
};

class Container {
 public:
  explicit Container(std::string container_id) : id(std::move(container_id)) {}

  const std::string id;
  // Serializes Create, Start, Delete, Pause, Resume, Update. Nothing that must be quick takes it.
  Turn life;

  mutable std::mutex mutex;  // guards what follows; held for bounded work only; taken before a process's
  ContainerStatus status = ContainerStatus::kCreating;
  int64_t created_at_ns = 0;
  std::shared_ptr<Process> init;                              // set from kCreated on
  std::map<std::string, std::shared_ptr<Process>> processes;  // of Exec; null while one is being made
  std::vector<std::pair<std::string, std::string>> labels;
  uint64_t oom_kills = 0;                 // already told
  bool starting = false;                  // Start does not know yet whether the program runs
  std::function<void()> ended_meanwhile;  // what the first process's end is to cause once it does

  base::Fd memory_events;  // of the loop's thread: the cgroup's file of that name, or none

  ContainerRecord record;  // as it is kept; constant from kCreated on, but for `deleting`, under `life`
  bool restored = false;   // of an agent that may have told what happens to it; constant

  // Constant from kCreated on, but for the cgroup's limits (under `life`).
  std::unique_ptr<engine::EngineContainer> engine;

  [[nodiscard]] ContainerStatus Status() const {
    const std::lock_guard lock(mutex);
    return status;
  }
};

// Whether the caller that gave the descriptor (see CreateContainer) has gone.
bool IsCancelled(int cancel_fd);

std::string_view StatusName(ContainerStatus status);  // as in the OCI runtime specification

}  // namespace gcs::guest
