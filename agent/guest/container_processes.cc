// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/paths.h"
#include "base/procfs.h"
#include "guest/container.h"
#include "guest/containers.h"

namespace gcs::guest {

using base::MakeError;
using base::Result;

namespace {

// Bounds of what ListProcesses holds, whatever a container does.
constexpr size_t kMaxCommandBytes = 4096;
constexpr size_t kMaxCommandsBytes = 1 << 20;  // of all together; those beyond have none
constexpr size_t kMaxProcesses = 8192;         // beside the managed ones

Result<> CheckSignal(int signal) {
  if (signal < 1 || signal > 64)
    return MakeError(EINVAL, "send signal", std::to_string(signal), "must be from 1 to 64");
  return {};
}

// The first bytes of a process's command line, which may have any length and is the process's own to write.
Result<std::string> ReadCommand(const std::string& dir) {
  GCS_ASSIGN(const base::Fd fd, base::OpenFile(dir + "/cmdline", O_RDONLY));
  std::string command(kMaxCommandBytes, '\0');
  const ssize_t n = read(fd.get(), command.data(), command.size());
  if (n < 0) return base::ErrnoError("read", dir + "/cmdline");
  command.resize(static_cast<size_t>(n));
  return command;
}

// What /proc tells about one process; nothing if it is gone.
std::optional<ProcessInfo> ReadProcess(int pid) {
  const std::string dir = "/proc/" + std::to_string(pid);
  const auto command = ReadCommand(dir);
  const auto status = base::ReadFile(dir + "/status");
  const auto stat = base::ReadFile(dir + "/stat");
  if (!command || !status || !stat) return std::nullopt;
  ProcessInfo info{.pid = pid, .command = *command};
  while (!info.command.empty() && info.command.back() == '\0') info.command.pop_back();
  std::ranges::replace(info.command, '\0', ' ');
  info.uid = static_cast<uint32_t>(base::ParseStatusNumber(*status, "Uid"));
  info.rss_bytes = base::ParseStatusNumber(*status, "VmRSS") * 1024;
  const int64_t tick_ns = base::kNsPerSec / sysconf(_SC_CLK_TCK);
  if (const auto times = base::ParseProcessStat(*stat)) {
    info.cpu_time_ns = static_cast<int64_t>(times->user_ticks + times->system_ticks) * tick_ns;
    const int64_t since_boot = static_cast<int64_t>(times->start_ticks) * tick_ns;
    info.started_at_ns = base::RealtimeNs() - base::BoottimeNs() + since_boot;
  }
  return info;
}

// Whether the process is in the cgroup (v2) or below it. False if it is gone.
bool IsInCgroup(int pid, const std::string& cgroup) {
  const auto text = base::ReadFile("/proc/" + std::to_string(pid) + "/cgroup");
  if (!text) return false;
  const std::string_view path = base::ParseUnifiedCgroup(*text);
  return path.starts_with(cgroup) && (path.size() == cgroup.size() || path[cgroup.size()] == '/');
}

ContainerInfo Describe(const Container& container) {
  ContainerInfo info{.container_id = container.id};
  {
    const std::lock_guard lock(container.mutex);
    info.status = container.status;
    info.created_at_ns = container.created_at_ns;
    info.labels = container.labels;
    const std::shared_ptr<Process>& init = container.init;
    if (init == nullptr) return info;
    const std::lock_guard process_lock(init->mutex);
    info.started_at_ns = init->started_at_ns;
    info.exit = init->exit;
    info.pid = init->exit ? 0 : init->child.pid();
  }
  info.args = container.engine->spec.process->args;
  info.root_path = container.engine->spec.root_path;
  info.cgroup_path = container.engine->cgroup->path();
  info.pod_id = container.record.pod_id;
  return info;
}

}  // namespace

Result<Spawned> Containers::Exec(const ExecProcess& request, int64_t deadline_ns) {
  const std::string name = request.container_id + "/" + request.process_id;
  if (!engine::ValidId(request.process_id)) {
    return MakeError(EINVAL, "exec", request.process_id.substr(0, 64), "bad process id");
  }
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(request.container_id));
  {
    // A null entry holds the id while the process is being made.
    const std::lock_guard lock(container->mutex);
    if (container->status != ContainerStatus::kRunning) {
      return MakeError(EBUSY, "exec", name, "the container is " + std::string(StatusName(container->status)));
    }
    if (!container->processes.emplace(request.process_id, nullptr).second)
      return MakeError(EEXIST, "exec", name);
  }
  const auto undo = [&](base::Error error) -> std::unexpected<base::Error> {
    const std::lock_guard lock(container->mutex);
    container->processes.erase(request.process_id);
    return std::unexpected(std::move(error));
  };
  const int64_t begin = base::MonotonicNs();
  auto spec = engine::ParseProcess(request.process_json, *container->engine->spec.process);
  if (!spec) return undo(spec.error());
  auto config = MakeStdio(name, request.stdio, *spec, deadline_ns, request.cancel_fd);
  if (!config) return undo(config.error());
  const auto kept =
      std::make_shared<KeptProcess>(backends_.keep, ProcessKey(request.container_id, request.process_id));
  config->closed = [kept](stdio::Part part) { kept->Closed(part); };
  auto io = stdio::ProcessIo::Create(backends_.loop, std::move(*config));
  if (!io) return undo(io.error());

  Spawned answer;
  answer.timings.push_back({"stdio", base::MonotonicNs() - begin});
  const auto process = std::make_shared<Process>(request.container_id, request.process_id);
  process->terminal = spec->terminal;
  process->kept = kept;
  auto child =
      backends_.engine->Exec(*container->engine, *spec,
                             {.stdio = {io->child.in.get(), io->child.out.get(), io->child.err.get()},
                              .init_pidfd = container->init->child.pidfd(),
                              .timings = &answer.timings,
                              .deadline_ns = deadline_ns});
  io->child = {};
  if (!child) return undo(child.error());
  process->child = std::move(*child);
  process->io = std::move(io->io);
  process->started_at_ns = base::RealtimeNs();
  answer.pid = process->child.pid();
  // From here on somebody reaps it, whatever happens.
  const auto abandon = [&](base::Error error) {
    if (auto killed = process->child.Signal(SIGKILL); !killed && killed.error().err != ESRCH) {
      base::LogError("kill process", killed.error());
    }
    kept->Remove();
    Watch(container, process);
    return undo(std::move(error));
  };
  if (process->terminal) {
    if (auto attached = process->io->AttachTerminal(process->child.TakeConsole()); !attached) {
      return abandon(attached.error());
    }
  }
  const base::Error cancelled{"exec", ECANCELED, name, {}};
  if (IsCancelled(request.cancel_fd)) return abandon(cancelled);
  process->oom_kills_before = container->engine->cgroup->OomKills();
  const int64_t ready = base::MonotonicNs();
  const ProcessRecord record{.pid = answer.pid,
                             .terminal = process->terminal,
                             .stdio = request.stdio,
                             .starting = true,
                             .started_at_ns = process->started_at_ns,
                             .oom_kills_before = process->oom_kills_before};
  if (auto put = kept->Put(record, process->child.pidfd(), process->child.sync(), *process->io); !put)
    return abandon(put.error());
  if (auto started = process->child.Start(deadline_ns); !started) return abandon(started.error());
  kept->Change([](ProcessRecord& changed) { changed.starting = false; });
  kept->DropSync();
  if (IsCancelled(request.cancel_fd)) return abandon(cancelled);
  answer.timings.push_back({"start", base::MonotonicNs() - ready});
  {
    const std::lock_guard lock(container->mutex);
    container->processes[request.process_id] = process;
  }
  backends_.journal->Append(request.container_id, request.process_id, ProcessStarted{answer.pid});
  Watch(container, process);
  return answer;
}

Result<> Containers::Signal(const std::string& container_id, const std::string& process_id, int signal) {
  GCS_TRY(CheckSignal(signal));
  GCS_ASSIGN(const std::shared_ptr<Process> process, FindProcess(container_id, process_id));
  if (process->Exit()) return MakeError(ESRCH, "send signal", container_id, "the process has ended");
  return process->child.Signal(signal);
}

Result<> Containers::SignalAll(const std::string& container_id, int signal) {
  GCS_TRY(CheckSignal(signal));
  GCS_ASSIGN(const std::shared_ptr<Process> init, FindProcess(container_id, ""));
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  if (init->Exit()) return MakeError(ESRCH, "send signal", container_id, "the container has ended");
  if (signal == SIGKILL) return container->engine->cgroup->Kill();
  GCS_ASSIGN(const std::vector<int> pids, container->engine->cgroup->Pids());
  for (const int pid : pids) {
    const base::Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (!pidfd.valid()) continue;
    // Still a process of the container now that the pidfd holds it: not somebody else's with a reused number.
    if (!IsInCgroup(pid, container->engine->cgroup->path())) continue;
    if (syscall(SYS_pidfd_send_signal, pidfd.get(), signal, nullptr, 0) != 0 && errno != ESRCH) {
      return base::ErrnoError("pidfd_send_signal", container_id, std::to_string(pid));
    }
  }
  return {};
}

std::vector<ContainerInfo> Containers::List() const {
  std::vector<std::shared_ptr<Container>> all;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, container] : containers_) all.push_back(container);
  }
  std::vector<ContainerInfo> infos;
  infos.reserve(all.size());
  for (const auto& container : all) infos.push_back(Describe(*container));
  std::ranges::stable_sort(infos, {}, &ContainerInfo::created_at_ns);
  return infos;
}

Result<ContainerInfo> Containers::State(const std::string& container_id) const {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  return Describe(*container);
}

Result<std::string> Containers::OciState(const std::string& container_id) const {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  const ContainerInfo info = Describe(*container);
  base::Json state{{"ociVersion", "1.2.0"}, {"id", info.container_id}, {"status", StatusName(info.status)}};
  // There is no bundle directory in the guest; the one that holds the root file system comes nearest.
  state["bundle"] = info.root_path.substr(0, std::max<size_t>(info.root_path.rfind('/'), 1));
  if (info.pid != 0) state["pid"] = info.pid;
  if (info.status != ContainerStatus::kCreating) {
    for (const auto& [key, value] : container->engine->spec.annotations) state["annotations"][key] = value;
  }
  return state.dump(-1, ' ', false, base::Json::error_handler_t::replace);
}

size_t Containers::count() const {
  const std::lock_guard lock(mutex_);
  return containers_.size();
}

Result<std::vector<ContainerStats>> Containers::Stats(const std::vector<std::string>& container_ids) const {
  std::vector<std::shared_ptr<Container>> wanted;
  if (container_ids.empty()) {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, container] : containers_) wanted.push_back(container);
  }
  for (const std::string& id : container_ids) {
    GCS_ASSIGN(std::shared_ptr<Container> container, Find(id));
    wanted.push_back(std::move(container));
  }
  std::vector<ContainerStats> all;
  for (const auto& container : wanted) {
    if (container->Status() == ContainerStatus::kCreating) continue;
    auto stats = container->engine->cgroup->Stats();
    if (stats) {
      all.push_back({container->id, std::move(*stats)});
    } else if (!container_ids.empty()) {
      return std::unexpected(stats.error());
    }
  }
  return all;
}

Result<std::vector<ProcessInfo>> Containers::ListProcesses(const std::string& container_id) const {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  std::vector<std::shared_ptr<Process>> managed;
  {
    const std::lock_guard lock(container->mutex);
    if (container->init == nullptr)
      return MakeError(ENOENT, "find process", container_id, "still being created");
    managed.push_back(container->init);
    for (const auto& [id, process] : container->processes) {
      if (process != nullptr) managed.push_back(process);
    }
  }
  std::vector<ProcessInfo> infos;
  std::set<int> seen;
  size_t command_bytes = 0;
  for (const auto& process : managed) {
    const auto exit = process->Exit();
    ProcessInfo info;
    if (!exit) info = ReadProcess(process->child.pid()).value_or(ProcessInfo{});
    info.process_id = process->id;
    info.pid = exit ? 0 : process->child.pid();
    info.managed = true;
    info.exit = exit;
    {
      const std::lock_guard lock(process->mutex);
      info.started_at_ns = process->started_at_ns;
    }
    seen.insert(info.pid);
    command_bytes += info.command.size();
    infos.push_back(std::move(info));
  }
  GCS_ASSIGN(const std::vector<int> pids, container->engine->cgroup->Pids());
  size_t others = 0;
  for (const int pid : pids) {
    if (seen.contains(pid)) continue;
    if (++others > kMaxProcesses) break;
    auto info = ReadProcess(pid);
    if (!info) continue;
    command_bytes += info->command.size();
    if (command_bytes > kMaxCommandsBytes) info->command.clear();
    infos.push_back(std::move(*info));
  }
  return infos;
}

Result<> Containers::DeleteProcess(const std::string& container_id, const std::string& process_id) {
  if (process_id.empty()) {
    return MakeError(EINVAL, "delete process", container_id, "the first process goes with the container");
  }
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  GCS_ASSIGN(const std::shared_ptr<Process> process, FindProcess(container_id, process_id));
  if (!process->Exit())
    return MakeError(EBUSY, "delete process", container_id + "/" + process_id, "it still runs");
  const std::lock_guard lock(container->mutex);
  // Unless a concurrent delete was first and the id is in use again.
  if (const auto it = container->processes.find(process_id);
      it != container->processes.end() && it->second == process) {
    process->kept->Remove();
    container->processes.erase(it);
  }
  return {};
}

Result<> Containers::Resize(const std::string& container_id, const std::string& process_id, uint32_t width,
                            uint32_t height) {
  GCS_ASSIGN(const std::shared_ptr<Process> process, FindProcess(container_id, process_id));
  return process->io->Resize(width, height);
}

Result<std::unique_ptr<stdio::Session>> Containers::Attach(const std::string& container_id,
                                                           const std::string& process_id,
                                                           stdio::AttachOptions options) {
  GCS_ASSIGN(const std::shared_ptr<Process> process, FindProcess(container_id, process_id));
  return process->io->Attach(std::move(options));
}

}  // namespace gcs::guest
