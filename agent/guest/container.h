// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "guest/containers.h"
#include "stdio/process_io.h"

namespace gcs::guest {

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
  bool terminal = false;

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
  std::mutex life;

  mutable std::mutex mutex;  // guards what follows; held for bounded work only
  ContainerStatus status = ContainerStatus::kCreating;
  int64_t created_at_ns = 0;
  std::shared_ptr<Process> init;                              // set from kCreated on
  std::map<std::string, std::shared_ptr<Process>> processes;  // of Exec; null while one is being made
  std::vector<std::pair<std::string, std::string>> labels;
  uint64_t oom_kills = 0;  // already told

  // Constant from kCreated on, but for the cgroup's limits (under `life`).
  std::unique_ptr<engine::EngineContainer> engine;

  [[nodiscard]] ContainerStatus Status() const {
    const std::lock_guard lock(mutex);
    return status;
  }
};

std::string_view StatusName(ContainerStatus status);  // as in the OCI runtime specification

}  // namespace gcs::guest
