// SPDX-License-Identifier: Apache-2.0
// Containers across the life of the agent: what is kept of them, and how the next agent takes them over.
#include <csignal>
#include <tuple>

#include "base/clock.h"
#include "base/log.h"
#include "guest/container.h"
#include "guest/containers.h"

namespace gcs::guest {

using base::MakeError;
using base::Result;

namespace {

constexpr int64_t kStartNs = 2 * base::kNsPerSec;    // what an exec has that was being started
constexpr int64_t kFinishNs = 30 * base::kNsPerSec;  // what is to be finished

// "process/<container>/<process>"; neither may hold a "/".
std::pair<std::string, std::string> SplitProcessKey(std::string_view key) {
  key.remove_prefix(key.find('/') + 1);
  const size_t slash = key.find('/');
  return {std::string(key.substr(0, slash)), std::string(key.substr(slash + 1))};
}

}  // namespace

void Containers::Tell(const Container& container, const std::string& process_id, EventBody body) {
  if (container.restored) {
    backends_.journal->AppendOnce(container.id, process_id, std::move(body));
  } else {
    backends_.journal->Append(container.id, process_id, std::move(body));
  }
}

Result<> Containers::KeepContainer(Container& container, const CreateContainer& request) {
  if (backends_.keep == nullptr) return {};
  GCS_TRY(backends_.keep->Put(ConfigKey(container.id), request.config_json));
  return backends_.keep->Put(ContainerKey(container.id), Encode(container.record));
}

// The container's own entry first: without it the others are nothing.
void Containers::ForgetKept(const std::string& container_id) {
  if (backends_.keep == nullptr) return;
  backends_.keep->Remove(ContainerKey(container_id));
  backends_.keep->Remove(ConfigKey(container_id));
}

std::vector<std::string> Containers::CgroupPaths() const {
  std::vector<std::string> paths;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, container] : containers_) {
    if (container->engine != nullptr) paths.push_back(container->engine->cgroup->path());
  }
  return paths;
}

Result<std::shared_ptr<Process>> Containers::RestoreProcess(Container& container,
                                                            const std::string& process_id,
                                                            Keep::Entry entry) {
  GCS_ASSIGN(const ProcessRecord record, DecodeProcess(entry.value));
  const std::string name = process_id.empty() ? container.id : container.id + "/" + process_id;
  if (entry.fds.size() != kPartsIndex + record.parts.size() || !entry.fds[kPidfdIndex].valid())
    return MakeError(EINVAL, "restore process", name, "not with the descriptors that it was kept with");
  auto process = std::make_shared<Process>(container.id, process_id);
  process->kept = std::make_shared<KeptProcess>(backends_.keep, entry.key);
  process->terminal = record.terminal;
  process->oom_kills_before = record.oom_kills_before;
  process->started_at_ns = record.started_at_ns;
  process->exit = record.exit;
  const engine::EngineContainer& engine = *container.engine;
  process->child = engine::ChildProcess::Attach(
      record.pid, std::move(entry.fds[kPidfdIndex]), std::move(entry.fds[kSyncIndex]), name,
      engine::ListenerOf(engine.spec, engine.options, engine.seccomp.get(), "creating"), record.starting);
  stdio::Config config;
  config.name = name;
  config.terminal = record.terminal;
  config.in.mode = record.stdio.in.mode;
  config.out.mode = record.stdio.out.mode;
  config.err.mode = record.stdio.err.mode;
  config.overflow = record.stdio.overflow;
  config.ring_bytes = record.stdio.ring_bytes;
  config.closed = [kept = process->kept](stdio::Part part) { kept->Closed(part); };
  std::map<stdio::Part, base::Fd> parts;
  for (size_t i = 0; i < record.parts.size(); ++i) {
    if (entry.fds[kPartsIndex + i].valid()) parts[record.parts[i]] = std::move(entry.fds[kPartsIndex + i]);
  }
  process->kept->Adopt(record);
  GCS_ASSIGN(process->io, stdio::ProcessIo::Restore(backends_.loop, std::move(config), std::move(parts)));
  if (record.exit) process->io->ProcessExited([] {});
  return process;
}

Result<std::shared_ptr<Container>> Containers::RestoreContainer(const std::string& container_id,
                                                                const std::string& config,
                                                                ContainerRecord record) {
  auto container = std::make_shared<Container>(container_id);
  GCS_ASSIGN(engine::Spec spec, engine::ParseSpec(config));
  if (!record.pod_id.empty()) GCS_TRY(backends_.pods->Join(record.pod_id, container_id, spec));
  GCS_ASSIGN(engine::EngineContainer engine,
             backends_.engine->Adopt(container_id, std::move(spec), record.cgroup_path, ""));
  container->engine = std::make_unique<engine::EngineContainer>(std::move(engine));
  container->labels = record.labels;
  container->created_at_ns = record.created_at_ns;
  container->oom_kills = container->engine->cgroup->OomKills();
  container->record = std::move(record);
  container->restored = true;
  return container;
}

void Containers::FinishRemoval(const std::string& container_id, const std::vector<std::string>& owned,
                               const std::string& pod_id) {
  for (const std::string& mount : owned) std::ignore = backends_.storage->SetOwner(mount, container_id);
  const auto released = backends_.storage->ReleaseOwned(
      container_id, {.deadline_ns = base::MonotonicNs() + kFinishNs, .cancel_fd = -1});
  if (!released) base::LogError("release mounts", released.error(), {{"container", container_id}});
  if (!pod_id.empty()) backends_.pods->Leave(pod_id, container_id);
  backends_.journal->AppendOnce(container_id, "", ContainerDeleted{});
  ForgetKept(container_id);
  const std::lock_guard lock(mutex_);
  containers_.erase(container_id);
}

std::vector<std::function<void()>> Containers::Restore(std::vector<Keep::Entry> entries) {
  std::map<std::string, std::string> configs;
  std::map<std::string, std::map<std::string, Keep::Entry>> processes;
  std::vector<std::pair<std::string, ContainerRecord>> records;
  for (Keep::Entry& entry : entries) {
    const std::string id = entry.key.substr(entry.key.find('/') + 1);
    if (entry.key == ConfigKey(id)) {
      configs[id] = std::move(entry.value);
    } else if (entry.key == ContainerKey(id)) {
      auto record = DecodeContainer(entry.value);
      if (record) {
        records.emplace_back(id, std::move(*record));
      } else {
        base::LogError("restore container", record.error(), {{"container", id}});
      }
    } else if (entry.key.starts_with("process/")) {
      auto [container, process] = SplitProcessKey(entry.key);
      processes[container][process] = std::move(entry);
    }
  }
  std::vector<std::function<void()>> unfinished;
  const auto give_up = [&](const std::string& id, const std::vector<std::string>& owned,
                           const std::string& pod_id) {
    // Nobody has the id until it is done.
    const std::lock_guard lock(mutex_);
    containers_.emplace(id, std::make_shared<Container>(id));
    unfinished.emplace_back([this, id, owned, pod_id] { FinishRemoval(id, owned, pod_id); });
  };
  for (auto& [id, record] : records) {
    const bool deleting = record.deleting;
    const std::vector<std::string> owned = record.owned_mounts;
    const std::string pod_id = record.pod_id;
    auto restored = RestoreContainer(id, configs[id], std::move(record));
    if (!restored) {
      // Of one that was being deleted the cgroup may be gone already, and all that is left are its mounts.
      if (!deleting) base::LogError("restore container", restored.error(), {{"container", id}});
      give_up(id, owned, pod_id);
      continue;
    }
    const std::shared_ptr<Container>& container = *restored;
    bool starting = false;
    for (auto& [process_id, entry] : std::exchange(processes[id], {})) {
      const std::string key = entry.key;
      const auto kept = DecodeProcess(entry.value);
      auto process = RestoreProcess(*container, process_id, std::move(entry));
      // One that was just being started: it is to run, or to be gone.
      const bool unstarted = kept && kept->starting && !kept->exit;
      if (process && unstarted && !process_id.empty()) {
        auto started = (*process)->child.Start(base::MonotonicNs() + kStartNs);
        if (started) {
          (*process)->kept->Change([](ProcessRecord& changed) { changed.starting = false; });
          (*process)->kept->DropSync();
        } else {
          std::ignore = (*process)->child.Signal(SIGKILL);
          process = std::unexpected(started.error());
        }
      }
      if (!process) {
        base::LogError("restore process", process.error(), {{"container", id}, {"process", process_id}});
        backends_.keep->Remove(key);
        continue;
      }
      if (process_id.empty()) {
        container->init = *process;
        starting = unstarted;
      } else {
        container->processes[process_id] = *process;
      }
    }
    if (container->init == nullptr) {
      base::LogError("restore container", {"find first process", ENOENT, id, {}});
      give_up(id, owned, pod_id);
      continue;
    }
    const Process& init = *container->init;
    const bool started = init.started_at_ns != 0 && !starting;
    container->status = init.exit                             ? ContainerStatus::kStopped
                        : !started                            ? ContainerStatus::kCreated
                        : container->engine->cgroup->Frozen() ? ContainerStatus::kPaused
                                                              : ContainerStatus::kRunning;
    // The same as Create has done; mounts that are gone have been told of.
    std::vector<std::string> paths{container->engine->spec.root_path};
    for (const engine::Mount& mount : container->engine->spec.mounts) {
      if (!mount.source.empty() && mount.source[0] == '/') paths.push_back(mount.source);
    }
    for (const std::string& path : paths) {
      if (const auto mount = backends_.storage->FindByPath(path))
        std::ignore = backends_.storage->Use(mount->mount_id, id);
    }
    for (const std::string& mount : owned) std::ignore = backends_.storage->SetOwner(mount, id);
    {
      const std::lock_guard lock(mutex_);
      containers_.emplace(id, container);
    }
    // What the agent before this one did not come to tell.
    Tell(*container, "", ContainerCreated{init.child.pid()});
    if (started) Tell(*container, "", ContainerStarted{});
    std::vector<std::shared_ptr<Process>> all{container->init};
    for (const auto& [process_id, process] : container->processes) {
      Tell(*container, process_id, ProcessStarted{process->child.pid()});
      all.push_back(process);
    }
    for (const auto& process : all) {
      if (process->exit) {
        Tell(*container, process->id, ProcessExited{*process->exit});
      } else {
        Watch(container, process);
      }
    }
    if (deleting) {
      unfinished.emplace_back([this, id] {
        if (auto gone = Delete(id, true, base::MonotonicNs() + kFinishNs); !gone)
          base::LogError("finish deletion", gone.error(), {{"container", id}});
      });
    } else if (starting) {
      unfinished.emplace_back([this, id] {
        if (auto started_now = Start(id, base::MonotonicNs() + kFinishNs); !started_now)
          base::LogError("finish start", started_now.error(), {{"container", id}});
      });
    }
  }
  // Of a create that did not come to its end: who is left in them is in no cgroup of a container, and goes
  // with that.
  for (auto& [id, left] : processes) {
    for (auto& [process_id, entry] : left) backends_.keep->Remove(ProcessKey(id, process_id));
  }
  return unfinished;
}

}  // namespace gcs::guest
