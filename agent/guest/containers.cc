// SPDX-License-Identifier: Apache-2.0
#include "guest/containers.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <tuple>

#include "base/clock.h"
#include "base/log.h"
#include "guest/container.h"

namespace gcs::guest {

using base::MakeError;
using base::Result;

namespace {

constexpr int64_t kTearDownNs = 10 * base::kNsPerSec;
constexpr int64_t kFailedStartNs = 1 * base::kNsPerSec;  // for a process that has told why it ends
constexpr int64_t kFirstRetryNs = 10 * base::kNsPerMs;
constexpr int64_t kLastRetryNs = 1 * base::kNsPerSec;
constexpr int kUnknownExit = 255;

std::chrono::nanoseconds Left(int64_t deadline_ns) {
  return std::chrono::nanoseconds(std::max<int64_t>(deadline_ns - base::MonotonicNs(), 0));
}

// Whether the descriptor becomes readable in time: a pidfd does when its process ends.
bool AwaitReadable(int fd, int64_t deadline_ns) {
  for (;;) {
    pollfd watch{.fd = fd, .events = POLLIN, .revents = 0};
    const int64_t left_ms = std::min<int64_t>(Left(deadline_ns).count() / base::kNsPerMs, INT_MAX);
    const int ready = poll(&watch, 1, static_cast<int>(left_ms));
    if (ready >= 0 || errno != EINTR) return ready > 0;
  }
}

bool AwaitExit(Process& process, int64_t deadline_ns) {
  std::unique_lock lock(process.mutex);
  return process.ended.wait_for(lock, Left(deadline_ns), [&] { return process.exit.has_value(); });
}

std::string StateText(ContainerStatus status) {
  return "the container is " + std::string(StatusName(status));
}

// For one act at a time; those that wait for their turn end at their own deadline.
Result<std::unique_lock<Turn>> TakeTurn(Container& container, std::string_view step, int64_t deadline_ns) {
  std::unique_lock turn(container.life, Left(deadline_ns));
  if (!turn) return MakeError(ETIMEDOUT, step, container.id, "something else is being done with it");
  return turn;
}

base::Error WrongState(std::string_view step, const Container& container) {
  return {std::string(step), EBUSY, container.id, StateText(container.Status())};
}

// Of a process that nobody will ask about, when it ends at last.
void ReapLater(base::Loop* loop, const std::shared_ptr<Process>& process) {
  loop->Post([loop, process] {
    const int pidfd = process->child.pidfd();
    auto added = loop->Add(pidfd, EPOLLIN, [loop, process, pidfd](uint32_t) {
      loop->Remove(pidfd);
      std::ignore = Reap(pidfd);
    });
    if (!added) base::LogError("watch process", added.error(), {{"container", process->container_id}});
  });
}

}  // namespace

std::string_view StatusName(ContainerStatus status) {
  switch (status) {
    case ContainerStatus::kCreating:
      return "creating";
    case ContainerStatus::kCreated:
      return "created";
    case ContainerStatus::kRunning:
      return "running";
    case ContainerStatus::kPaused:
      return "paused";
    case ContainerStatus::kStopped:
      return "stopped";
  }
  return "unknown";
}

bool IsCancelled(int cancel_fd) { return cancel_fd >= 0 && AwaitReadable(cancel_fd, 0); }

Containers::Containers(Backends backends) : backends_(backends) {}

Containers::~Containers() {
  // The loop has stopped, so the exits are collected here.
  const int64_t deadline_ns = base::MonotonicNs() + kTearDownNs;
  for (auto& [id, container] : containers_) {
    if (container->engine == nullptr) continue;
    if (auto killed = container->engine->cgroup->Kill(); !killed)
      base::LogError("kill container", killed.error());
    std::vector<std::shared_ptr<Process>> all{container->init};
    for (const auto& [name, process] : container->processes) all.push_back(process);
    for (const auto& process : all) {
      if (process == nullptr) continue;
      // What the loop holds must not outlive this: it would be the last to hold the container.
      backends_.loop->Remove(process->child.pidfd());
      if (process->Exit()) continue;
      if (AwaitReadable(process->child.pidfd(), deadline_ns)) std::ignore = Reap(process->child.pidfd());
    }
    backends_.loop->Remove(container->memory_events.get());
    if (auto gone = backends_.engine->Destroy(*container->engine, deadline_ns); !gone) {
      base::LogError("remove container", gone.error());
    }
  }
}

Result<std::shared_ptr<Container>> Containers::Find(const std::string& container_id) const {
  const std::lock_guard lock(mutex_);
  const auto it = containers_.find(container_id);
  if (it == containers_.end()) return MakeError(ENOENT, "find container", container_id.substr(0, 64));
  return it->second;
}

Result<std::shared_ptr<Process>> Containers::FindProcess(const std::string& container_id,
                                                         const std::string& process_id) const {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  const std::lock_guard lock(container->mutex);
  if (process_id.empty()) {
    if (container->init == nullptr)
      return MakeError(ENOENT, "find process", container_id, "still being created");
    return container->init;
  }
  const auto it = container->processes.find(process_id);
  if (it == container->processes.end() || it->second == nullptr) {
    return MakeError(ENOENT, "find process", container_id + "/" + process_id.substr(0, 64));
  }
  return it->second;
}

Result<stdio::Config> Containers::MakeStdio(const std::string& name, const StdioRequest& request,
                                            const engine::Process& process, int64_t deadline_ns,
                                            int cancel_fd) {
  stdio::Config config;
  config.name = name;
  config.terminal = process.terminal;
  config.overflow = request.overflow;
  config.ring_bytes = request.ring_bytes;
  config.width = process.console_width;
  config.height = process.console_height;
  config.owner_uid = process.uid;
  config.owner_gid = process.gid;
  if (process.terminal && request.err.mode != stdio::Mode::kNull) {
    return MakeError(EINVAL, "make stdio", "stdio.stderr", "a terminal has one output, stdout");
  }
  for (const auto& [stream, from] : {std::pair(&config.in, &request.in), std::pair(&config.out, &request.out),
                                     std::pair(&config.err, &request.err)}) {
    stream->mode = from->mode;
    if (from->mode != stdio::Mode::kSocket) continue;
    GCS_ASSIGN(stream->socket, backends_.dialer->Dial(from->port, deadline_ns, cancel_fd));
  }
  return config;
}

Result<Spawned> Containers::Create(const CreateContainer& request, int64_t deadline_ns) {
  const std::string& id = request.container_id;
  if (!engine::ValidId(id))
    return MakeError(EINVAL, "create container", id.substr(0, 64), "bad container id");
  const auto container = std::make_shared<Container>(id);
  container->labels = request.labels;
  const std::lock_guard turn(container->life);
  {
    const std::lock_guard lock(mutex_);
    if (!containers_.emplace(id, container).second) return MakeError(EEXIST, "create container", id);
  }
  const auto process = std::make_shared<Process>(id, "");
  process->kept = std::make_shared<KeptProcess>(backends_.keep, ProcessKey(id, ""));
  bool joined = false;
  const auto undo = [&](base::Error error) -> std::unexpected<base::Error> {
    process->kept->Remove();
    backends_.storage->Disown(id);
    if (joined) backends_.pods->Leave(request.pod_id, id);
    const std::lock_guard lock(mutex_);
    containers_.erase(id);
    return std::unexpected(std::move(error));
  };
  const int64_t begin = base::MonotonicNs();
  auto spec = engine::ParseSpec(request.config_json);
  if (!spec) return undo(spec.error());
  if (!spec->process)
    return undo({"parse config.json", EINVAL, "process", "is required to create a container"});

  if (!request.pod_id.empty()) {
    if (auto put = backends_.pods->Join(request.pod_id, id, *spec); !put) return undo(put.error());
    joined = true;
  }
  // Mounts below the root or a bind source must not go away under the container.
  std::vector<std::string> paths{spec->root_path};
  for (const engine::Mount& mount : spec->mounts) {
    if (!mount.source.empty() && mount.source[0] == '/') paths.push_back(mount.source);
  }
  for (const std::string& path : paths) {
    const auto mount = backends_.storage->FindByPath(path);
    if (!mount) continue;  // not one of ours
    if (auto used = backends_.storage->Use(mount->mount_id, id); !used) return undo(used.error());
  }
  for (const std::string& mount : request.owned_mounts) {
    if (auto owned = backends_.storage->SetOwner(mount, id); !owned) return undo(owned.error());
  }
  auto config = MakeStdio(id, request.stdio, *spec->process, deadline_ns, request.cancel_fd);
  if (!config) return undo(config.error());
  config->closed = [kept = process->kept](stdio::Part part) { kept->Closed(part); };
  auto io = stdio::ProcessIo::Create(backends_.loop, std::move(*config));
  if (!io) return undo(io.error());
  const int64_t prepared = base::MonotonicNs();

  process->terminal = spec->process->terminal;
  std::optional<net::DeviceMoves> net_devices;
  auto made = backends_.engine->CreateContainer(
      id, std::move(*spec),
      {.stdio = {io->child.in.get(), io->child.out.get(), io->child.err.get()},
       .allow_vsock = request.allow_vsock,
       .net_devices = &net_devices,
       .deadline_ns = deadline_ns});
  io->child = {};
  if (!made) return undo(made.error());
  Spawned answer{made->init.pid(), {{"stdio", prepared - begin}}};
  answer.timings.insert(answer.timings.end(), made->timings.begin(), made->timings.end());

  const auto destroy = [&](base::Error error) -> std::unexpected<base::Error> {
    if (auto killed = made->cgroup->Kill(); !killed) base::LogError("kill container", killed.error());
    const int64_t limit_ns = base::MonotonicNs() + kTearDownNs;
    process->child = std::move(made->init);
    if (AwaitReadable(process->child.pidfd(), limit_ns)) {
      std::ignore = Reap(process->child.pidfd());
    } else {
      ReapLater(backends_.loop, process);
    }
    if (net_devices) net_devices->TakeBack();
    if (auto gone = backends_.engine->Destroy(*made, limit_ns); !gone) {
      base::LogError("remove container", gone.error());
    }
    return undo(std::move(error));
  };
  if (process->terminal) {
    if (auto attached = io->io->AttachTerminal(made->init.TakeConsole()); !attached)
      return destroy(attached.error());
  }
  if (IsCancelled(request.cancel_fd)) return destroy({"create container", ECANCELED, id, {}});
  const ProcessRecord record{.pid = answer.pid, .terminal = process->terminal, .stdio = request.stdio};
  container->record = {.cgroup_path = made->cgroup->path(),
                       .created_at_ns = base::RealtimeNs(),
                       .labels = request.labels,
                       .owned_mounts = request.owned_mounts,
                       .pod_id = request.pod_id};
  if (auto kept = process->kept->Put(record, made->init.pidfd(), made->init.sync(), *io->io); !kept)
    return destroy(kept.error());
  if (auto kept = KeepContainer(*container, request); !kept) {
    ForgetKept(id);
    return destroy(kept.error());
  }
  process->io = std::move(io->io);
  process->child = std::move(made->init);
  {
    const std::lock_guard lock(container->mutex);
    container->engine = std::make_unique<engine::EngineContainer>(std::move(*made));
    container->init = process;
    container->created_at_ns = container->record.created_at_ns;
    container->status = ContainerStatus::kCreated;
  }
  backends_.journal->Append(id, "", ContainerCreated{answer.pid});
  Watch(container, process);
  return answer;
}

void Containers::Watch(const std::shared_ptr<Container>& container, const std::shared_ptr<Process>& process) {
  backends_.loop->Post([this, container, process] {
    auto added = backends_.loop->Add(process->child.pidfd(), EPOLLIN,
                                     [this, container, process](uint32_t) { OnExit(container, process); });
    if (!added) base::LogError("watch process", added.error(), {{"container", container->id}});
    if (process->id.empty()) WatchMemory(container);
  });
}

// On the loop's thread.
void Containers::OnExit(const std::shared_ptr<Container>& container,
                        const std::shared_ptr<Process>& process) {
  backends_.loop->Remove(process->child.pidfd());
  Collect(container, process, kFirstRetryNs);
}

// On the loop's thread, after the process's end.
void Containers::Collect(const std::shared_ptr<Container>& container, const std::shared_ptr<Process>& process,
                         int64_t retry_ns) {
  const int pidfd = process->child.pidfd();
  auto reaped = PeekExit(pidfd);
  const bool inherited = !reaped && reaped.error().err == ECHILD;
  if (inherited) reaped = process->kept->ExitOfInherited(pidfd);
  if (reaped && !*reaped) {
    // A process that is traced belongs to its tracer first, which may take its time; init reaps when it comes
    // to it. The pidfd stays readable.
    backends_.loop->After(retry_ns, [this, container, process, retry_ns] {
      Collect(container, process, std::min(2 * retry_ns, kLastRetryNs));
    });
    return;
  }
  ExitStatus exit;
  if (reaped) {
    exit = **reaped;
  } else {
    base::LogError("exit status is lost", reaped.error(), {{"container", container->id}});
    exit.exit_code = kUnknownExit;
    exit.exited_at_ns = base::RealtimeNs();
  }
  process->kept->Change([&](ProcessRecord& record) {
    exit.started_at_ns = record.started_at_ns;
    record.exit = exit;
  });
  if (!inherited) std::ignore = Reap(pidfd);
  // Without a pid namespace of its own the end of the first process does not end the others.
  if (process->id.empty() && !container->engine->spec.MakesNamespace(CLONE_NEWPID)) {
    if (auto killed = container->engine->cgroup->Kill(); !killed)
      base::LogError("kill container", killed.error());
  }
  process->io->ProcessExited([this, container, process, exit] { Finish(container, process, exit); });
}

// On the loop's thread, when the output is where it can be read, or the bounded time for that is over.
void Containers::Finish(const std::shared_ptr<Container>& container, const std::shared_ptr<Process>& process,
                        const ExitStatus& reaped) {
  ExitStatus exit = reaped;
  const uint64_t kills = container->engine->cgroup->OomKills();
  std::map<uint64_t, WaitCallback> waiters;
  {
    const std::lock_guard lock(container->mutex);
    if (process->id.empty() && container->starting) {
      // The start is told before the end, by Start.
      container->ended_meanwhile = [this, container, process, reaped] { Finish(container, process, reaped); };
      return;
    }
    exit.oom_killed = kills > process->oom_kills_before;
    if (kills > container->oom_kills) backends_.journal->Append(container->id, "", ContainerOom{kills});
    container->oom_kills = kills;
    // Together: who sees one sees the other.
    const std::lock_guard process_lock(process->mutex);
    if (process->id.empty()) container->status = ContainerStatus::kStopped;
    exit.started_at_ns = process->started_at_ns;
    process->exit = exit;
    process->kept->Change([&](ProcessRecord& record) { record.exit = exit; });
    waiters.swap(process->waiters);
    process->ended.notify_all();
  }
  Tell(*container, process->id, ProcessExited{exit});
  for (auto& [id, done] : waiters) done(exit);
  const std::lock_guard lock(mutex_);
  for (const auto& [id, done] : waiters) waits_.erase(id);
}

Result<std::vector<Timing>> Containers::Start(const std::string& container_id, int64_t deadline_ns) {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  GCS_ASSIGN(const auto turn, TakeTurn(*container, "start container", deadline_ns));
  const int64_t begin = base::MonotonicNs();
  {
    const std::lock_guard lock(container->mutex);
    if (container->status != ContainerStatus::kCreated)
      return MakeError(EBUSY, "start container", container_id, StateText(container->status));
    container->starting = true;
    const std::lock_guard process_lock(container->init->mutex);
    container->init->started_at_ns = base::RealtimeNs();
  }
  container->init->oom_kills_before = container->engine->cgroup->OomKills();
  container->init->kept->Change([&](ProcessRecord& record) {
    record.starting = true;
    record.started_at_ns = container->init->started_at_ns;
    record.oom_kills_before = container->init->oom_kills_before;
  });
  const auto started = backends_.engine->Start(*container->engine, container->init->child, deadline_ns);
  container->init->kept->Change([](ProcessRecord& record) { record.starting = false; });
  container->init->kept->DropSync();
  std::function<void()> ended;
  {
    const std::lock_guard lock(container->mutex);
    container->starting = false;
    ended.swap(container->ended_meanwhile);
    if (started) {
      container->status = ContainerStatus::kRunning;
      Tell(*container, "", ContainerStarted{});
    }
  }
  if (ended) backends_.loop->Post(std::move(ended));
  if (!started) {
    // What has told its failure is about to end with the code for it. Anything else does not run on
    // unnoticed.
    const bool told = started.error().err != ETIMEDOUT;
    if (!told || !AwaitExit(*container->init, base::MonotonicNs() + kFailedStartNs)) {
      if (auto killed = container->engine->cgroup->Kill(); !killed)
        base::LogError("kill container", killed.error());
    }
    return std::unexpected(started.error());
  }
  return std::vector<Timing>{{"start", base::MonotonicNs() - begin}};
}

Result<std::vector<Timing>> Containers::Delete(const std::string& container_id, bool force,
                                               int64_t deadline_ns) {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  // An act that hangs on a process ends with the process. What goes wrong here is told below.
  if (force && container->Status() != ContainerStatus::kCreating)
    std::ignore = container->engine->cgroup->Kill();
  GCS_ASSIGN(const auto turn, TakeTurn(*container, "delete container", deadline_ns));
  const ContainerStatus status = container->Status();
  if (status == ContainerStatus::kCreating)
    return MakeError(ENOENT, "find container", container_id, "was deleted");
  if (status != ContainerStatus::kStopped && !force)
    return std::unexpected(WrongState("delete container", *container));
  const int64_t begin = base::MonotonicNs();
  container->record.deleting = true;
  if (backends_.keep != nullptr)
    GCS_TRY(backends_.keep->Update(ContainerKey(container_id), Encode(container->record)));
  GCS_TRY(container->engine->cgroup->Kill());
  if (!AwaitExit(*container->init, deadline_ns)) {
    return MakeError(ETIMEDOUT, "delete container", container_id, "its first process did not end in time");
  }
  const int64_t killed = base::MonotonicNs();
  GCS_TRY(backends_.engine->Destroy(*container->engine, deadline_ns));
  const int64_t destroyed = base::MonotonicNs();
  ForgetMemory(container);
  auto released =
      backends_.storage->ReleaseOwned(container_id, {.deadline_ns = deadline_ns, .cancel_fd = -1});
  if (!container->record.pod_id.empty()) backends_.pods->Leave(container->record.pod_id, container_id);
  {
    const std::lock_guard lock(container->mutex);
    container->status = ContainerStatus::kCreating;  // for those who have found it before it left the table
  }
  {
    const std::lock_guard lock(mutex_);
    containers_.erase(container_id);
  }
  Tell(*container, "", ContainerDeleted{});
  ForgetKept(container_id);
  container->init->kept->Remove();
  for (const auto& [id, process] : container->processes) {
    if (process != nullptr) process->kept->Remove();
  }
  // The container is gone all the same; its mounts have no owner now and can be unmounted by id.
  if (!released) return std::unexpected(released.error());
  return std::vector<Timing>{
      {"kill", killed - begin}, {"cgroup", destroyed - killed}, {"unmount", base::MonotonicNs() - destroyed}};
}

uint64_t Containers::Wait(const std::string& container_id, const std::string& process_id, WaitCallback done) {
  auto process = FindProcess(container_id, process_id);
  if (!process) {
    done(std::unexpected(process.error()));
    return 0;
  }
  uint64_t id = 0;
  {
    const std::lock_guard lock(mutex_);
    id = next_wait_++;
    waits_[id] = *process;
  }
  std::optional<ExitStatus> exit;
  {
    const std::lock_guard lock((*process)->mutex);
    exit = (*process)->exit;
    if (!exit) {
      (*process)->waiters.emplace(id, std::move(done));
      return id;
    }
  }
  done(*exit);
  const std::lock_guard lock(mutex_);
  waits_.erase(id);
  return id;
}

void Containers::CancelWait(uint64_t wait) {
  std::shared_ptr<Process> process;
  {
    const std::lock_guard lock(mutex_);
    const auto it = waits_.find(wait);
    if (it == waits_.end()) return;
    process = it->second.lock();
    waits_.erase(it);
  }
  if (process == nullptr) return;
  WaitCallback dropped;  // destroyed outside the lock
  const std::lock_guard lock(process->mutex);
  if (auto node = process->waiters.extract(wait); !node.empty()) dropped = std::move(node.mapped());
}

Result<> Containers::Pause(const std::string& container_id, int64_t deadline_ns) {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  GCS_ASSIGN(const auto turn, TakeTurn(*container, "pause container", deadline_ns));
  if (container->Status() != ContainerStatus::kRunning)
    return std::unexpected(WrongState("pause container", *container));
  GCS_TRY(container->engine->cgroup->Freeze(true, deadline_ns));
  {
    const std::lock_guard lock(container->mutex);
    if (container->status == ContainerStatus::kRunning) container->status = ContainerStatus::kPaused;
  }
  backends_.journal->Append(container_id, "", ContainerPaused{});
  return {};
}

Result<> Containers::Resume(const std::string& container_id, int64_t deadline_ns) {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  GCS_ASSIGN(const auto turn, TakeTurn(*container, "resume container", deadline_ns));
  if (container->Status() != ContainerStatus::kPaused)
    return std::unexpected(WrongState("resume container", *container));
  GCS_TRY(container->engine->cgroup->Freeze(false, deadline_ns));
  {
    const std::lock_guard lock(container->mutex);
    if (container->status == ContainerStatus::kPaused) container->status = ContainerStatus::kRunning;
  }
  backends_.journal->Append(container_id, "", ContainerResumed{});
  return {};
}

Result<> Containers::Update(const std::string& container_id, const std::string& resources_json,
                            int64_t deadline_ns) {
  GCS_ASSIGN(const engine::Resources resources, engine::ParseResources(resources_json));
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  GCS_ASSIGN(const auto turn, TakeTurn(*container, "update container", deadline_ns));
  const ContainerStatus status = container->Status();
  if (status == ContainerStatus::kCreating || status == ContainerStatus::kStopped) {
    return std::unexpected(WrongState("update container", *container));
  }
  GCS_TRY(container->engine->cgroup->Update(resources));
  if (!resources.devices.empty()) GCS_TRY(container->engine->cgroup->SetDevices(resources.devices));
  backends_.journal->Append(container_id, "", ContainerUpdated{});
  return {};
}

}  // namespace gcs::guest
