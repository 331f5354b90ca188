// SPDX-License-Identifier: Apache-2.0
// create, run, start, kill, delete.
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <sstream>

#include "base/clock.h"
#include "base/log.h"
#include "base/paths.h"
#include "base/procfs.h"
#include "engine/cli/cli.h"

namespace gcs::oci {

using base::Fd;
using base::MakeError;
using base::Result;

namespace {

constexpr int64_t kCreateSeconds = 300;  // hooks may take their time
constexpr int64_t kTearDownSeconds = 10;

std::string Now() {
  const int64_t now = base::RealtimeNs();
  const time_t seconds = now / base::kNsPerSec;
  tm utc{};
  gmtime_r(&seconds, &utc);
  char text[64];
  const size_t length = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  snprintf(text + length, sizeof text - length, ".%09ldZ", static_cast<long>(now % base::kNsPerSec));
  return text;
}

Result<std::string> AbsolutePath(const std::string& path) {
  char resolved[PATH_MAX];
  if (realpath(path.c_str(), resolved) == nullptr) return base::ErrnoError("find bundle", path);
  return std::string(resolved);
}

// sd_listen_fds(3): sockets that our caller hands on to the container, as descriptors from 3.
Result<int> ListenedFds() {
  constexpr int kMost = 200;
  const char* text = getenv("LISTEN_FDS");
  if (text == nullptr || *text == '\0') return 0;
  int count = 0;
  const char* end = text + strlen(text);
  const auto parsed = std::from_chars(text, end, count);
  if (parsed.ec != std::errc() || parsed.ptr != end || count < 0 || count > kMost) {
    return MakeError(EINVAL, "pass descriptors", "LISTEN_FDS", text);
  }
  return count;
}

// Of a new container. EEXIST if there are processes in it: they would be deleted with the container.
Result<std::string> CgroupPath(const engine::Engine& engine, const std::string& id,
                               const engine::Spec& spec) {
  GCS_ASSIGN(std::string path, engine.CgroupPath(id, spec.cgroups_path));
  GCS_ASSIGN(const std::unique_ptr<engine::CgroupRoot> root, engine::CgroupRoot::Open(kCgroupMount));
  const auto there = root->Find(path);
  const auto pids = there ? (*there)->Pids() : std::vector<int>();
  if (pids && !pids->empty()) return MakeError(EEXIST, "make cgroup", path, "exists and is in use");
  return path;
}

// What create and run share: a container that waits for its start.
struct Made {
  Store store;
  std::unique_ptr<engine::Engine> engine;  // whose cgroup tree the container's cgroup points into
  engine::EngineContainer container;
  base::Fd console;  // not sent to a console socket
};

Result<Made> MakeContainer(const Global& global, const CreateCommand& command, bool listen,
                           std::unique_ptr<engine::Zygote> zygote) {
  GCS_ASSIGN(const int listened, ListenedFds());
  GCS_ASSIGN(std::vector<int> preserved, PreservedFds(command.process, listened));
  GCS_ASSIGN(const std::string bundle, AbsolutePath(command.bundle));
  GCS_ASSIGN(const std::string config, base::ReadFile(bundle + "/config.json", 16 << 20));
  GCS_ASSIGN(engine::Spec spec, engine::ParseSpec(config, bundle));
  if (!spec.process) return MakeError(EINVAL, "create container", "process", "is required");
  GCS_TRY(CheckTerminal(spec.process->terminal, command.process));
  if (listened > 0) {
    spec.process->env.push_back("LISTEN_FDS=" + std::to_string(listened));
    spec.process->env.emplace_back("LISTEN_PID=1");
  }
  GCS_ASSIGN(std::unique_ptr<engine::Engine> engine, MakeEngine(std::move(zygote)));
  Record record{.id = command.id,
                .bundle = bundle,
                .rootfs = spec.root_path,
                .creator = {.pid = getpid(), .start_time = StartTime(getpid())},
                .created = Now(),
                .owner = geteuid() == 0 ? "root" : std::to_string(geteuid())};
  GCS_ASSIGN(Store store, Store::Create(global.root, command.id));
  const auto undo = [&](base::Error error) -> std::unexpected<base::Error> {
    [[maybe_unused]] const auto removed = store.Remove();
    return std::unexpected(std::move(error));
  };
  auto cgroup_path = CgroupPath(*engine, command.id, spec);
  if (!cgroup_path) return undo(cgroup_path.error());
  record.cgroup_path = std::move(*cgroup_path);
  // Before there is anything of the container, so that a delete finds what we leave if we are killed.
  for (const auto& saved : {store.SaveConfig(config), store.Save(record)}) {
    if (!saved) return undo(saved.error());
  }
  Fd listener;
  if (listen) {
    auto listening = store.Listen();
    if (!listening) return undo(listening.error());
    listener = std::move(*listening);
  }
  const bool terminal = spec.process->terminal;
  std::optional<net::DeviceMoves> net_devices;
  auto container = engine->CreateContainer(command.id, std::move(spec),
                                           {.stdio = {0, 1, 2},
                                            .bundle = bundle,
                                            .preserved = std::move(preserved),
                                            .start_listener = listener.get(),
                                            .new_keyring = !command.no_new_keyring,
                                            .net_devices = &net_devices,
                                            .deadline_ns = Deadline(kCreateSeconds)});
  engine->StopZygote();
  if (!container) return undo(container.error());
  const auto destroy = [&](base::Error error) -> std::unexpected<base::Error> {
    container->init.Kill();
    if (net_devices) net_devices->TakeBack();
    if (auto gone = engine::Engine::Destroy(*container, Deadline(kTearDownSeconds)); !gone) {
      base::LogError("remove container", gone.error());
    }
    return undo(std::move(error));
  };
  Fd console;
  if (terminal) {
    console = container->init.TakeConsole();
    if (!command.process.console_socket.empty()) {
      if (auto sent = SendConsole(command.process.console_socket, console); !sent)
        return destroy(sent.error());
      console.Reset();
    }
  }
  record.pid = container->init.pid();
  record.start_time = StartTime(record.pid);
  // Without it the process could not be told from a later one of that number: the container would seem
  // stopped.
  if (record.start_time == 0) return destroy(MakeError(ESRCH, "find process", command.id).error());
  record.made_rdt = container->rdt && container->rdt->made();
  for (const auto& done : {store.Save(record), WritePidFile(command.process.pid_file, record.pid)}) {
    if (!done) return destroy(done.error());
  }
  return Made{std::move(store), std::move(engine), std::move(*container), std::move(console)};
}

Result<> Remove(Loaded& loaded) {
  engine::EngineContainer& container = loaded.container;
  if (container.cgroup == nullptr) {
    // A create that was killed may have made it in some v1 hierarchies only: what is whole can be removed.
    if (loaded.cgroups->Create(loaded.record.cgroup_path)) {
      GCS_ASSIGN(container.cgroup, loaded.cgroups->Find(loaded.record.cgroup_path));
    }
  }
  if (container.spec.intel_rdt) {
    // What can't be found any more needs no removing.
    if (auto resctrl = engine::Resctrl::Open({})) {
      container.rdt = engine::RdtGroup::Find(std::move(*resctrl), *container.spec.intel_rdt, container.id,
                                             loaded.record.made_rdt);
    }
  }
  if (container.cgroup != nullptr) {
    GCS_TRY(engine::Engine::Destroy(container, Deadline(kTearDownSeconds)));
  }
  return loaded.store.Remove();
}

// Kills a call that is making a container, with its children: hooks and the container's process. What it has
// made is left to who removes the container.
void KillCreator(const Store& store, const Record& record) {
  constexpr int64_t kStopSeconds = 2;
  const auto creator = OpenProcess(record.creator, record.id);
  if (!creator) return;
  // Still at it: who has finished has a process to tell of.
  const auto again = store.Load();
  if (!again || again->pid != 0 || again->creator.pid != record.creator.pid) return;
  // As long as it is stopped and not reaping, its children keep their numbers.
  syscall(SYS_pidfd_send_signal, creator->get(), SIGSTOP, nullptr, 0);
  const std::string process = "/proc/" + std::to_string(record.creator.pid);
  const int64_t deadline = Deadline(kStopSeconds);
  const auto stopped = [&] {
    const auto stat = base::ParseProcessStat(base::ReadFile(process + "/stat").value_or(""));
    return stat && stat->state == 'T';
  };
  bool quiet = stopped();
  for (; !quiet && base::MonotonicNs() < deadline; quiet = stopped()) usleep(1000);
  if (quiet) {
    std::istringstream children(
        base::ReadFile(process + "/task/" + std::to_string(record.creator.pid) + "/children").value_or(""));
    for (int child = 0; children >> child;) {
      // Hooks lead a process group with what they have started.
      if (getpgid(child) == child) kill(-child, SIGKILL);
      kill(child, SIGKILL);
    }
  }
  syscall(SYS_pidfd_send_signal, creator->get(), SIGKILL, nullptr, 0);
}

// The container to be deleted, locked. With `force` a call that is still making it is ended; any other one
// has some seconds to come to its end.
Result<Store> OpenToDelete(const Global& global, const std::string& id, bool force) {
  constexpr int64_t kLockSeconds = 10;
  constexpr int64_t kStepNs = 20 * base::kNsPerMs;
  const int64_t deadline = Deadline(kLockSeconds);
  for (;;) {
    auto store = Store::Open(global.root, id, Access::kChange, base::MonotonicNs() + kStepNs);
    if (store || store.error().err != EWOULDBLOCK) return store;
    GCS_ASSIGN(const Store other, Store::Open(global.root, id, Access::kRead, 0));
    if (const auto record = other.Load(); record && record->pid == 0) {
      if (!force) {
        return MakeError(EBUSY, "delete container", id,
                         "cannot delete container that is not stopped: creating");
      }
      KillCreator(other, *record);
    }
    if (base::MonotonicNs() >= deadline) {
      return MakeError(EBUSY, "delete container", id,
                       "another call has been changing it for " + std::to_string(kLockSeconds) + " s");
    }
  }
}

}  // namespace

Result<int> Create(const Global& global, const CreateCommand& command,
                   std::unique_ptr<engine::Zygote> zygote) {
  CreateCommand detached = command;
  detached.process.detach = true;
  GCS_TRY(MakeContainer(global, detached, true, std::move(zygote)));
  return 0;
}

Result<int> Run(const Global& global, const CreateCommand& command, std::unique_ptr<engine::Zygote> zygote) {
  if (!command.process.detach) BlockSignals();
  GCS_ASSIGN(Made made, MakeContainer(global, command, false, std::move(zygote)));
  const int pid = made.container.init.pid();
  const auto start_time = StartTime(pid);
  const auto remove = [&]() -> Result<> {
    auto store = Store::Open(global.root, command.id, Access::kChange, Deadline(kCreateSeconds));
    if (!store && store.error().err == ENOENT) return {};
    if (!store) return std::unexpected(store.error());
    // Others may have deleted it, and even made another one of that name.
    const auto record = store->Load();
    if (!record || record->pid != pid || record->start_time != start_time) return {};
    GCS_TRY(engine::Engine::Destroy(made.container, Deadline(kTearDownSeconds)));
    return store->Remove();
  };
  const auto cleanup = [&] {
    if (const auto removed = remove(); !removed) base::LogError("remove container", removed.error());
  };
  auto started = engine::Engine::Start(made.container, made.container.init, Deadline(kCreateSeconds));
  // Others need not wait for the process's end.
  made.store.Unlock();
  if (!started) {
    made.container.init.Kill();
    cleanup();
    return std::unexpected(started.error());
  }
  if (command.process.detach) return 0;
  auto code = Attend(made.container.init.pidfd(), std::move(made.console));
  if (!command.keep) cleanup();
  return code;
}

Result<int> Start(const Global& global, const std::string& id) {
  GCS_ASSIGN(Loaded loaded, Load(global, id, Access::kChange));
  if (loaded.status == Status::kStopped) {
    return MakeError(EINVAL, "start container", id, "cannot start a container that has stopped");
  }
  if (loaded.status == Status::kPaused) {
    return MakeError(EINVAL, "start container", id, "cannot start a paused container");
  }
  if (loaded.status != Status::kCreated) {
    return MakeError(EINVAL, "start container", id, "cannot start an already running container");
  }
  GCS_ASSIGN(Fd connection, loaded.store.Connect());
  const engine::EngineContainer& container = loaded.container;
  std::optional<engine::SeccompFilter> seccomp;
  if (container.spec.seccomp) {
    GCS_ASSIGN(seccomp, engine::CompileSeccomp(*container.spec.seccomp));
  }
  auto init = engine::ChildProcess::Attach(
      loaded.record.pid, std::move(loaded.pidfd), std::move(connection), container.spec.process->args[0],
      engine::ListenerOf(container.spec, container.options, seccomp ? &*seccomp : nullptr, "creating"));
  GCS_TRY(engine::Engine::Start(container, init, Deadline(kCreateSeconds)));
  return 0;
}

Result<int> Kill(const Global& global, const std::string& id, const std::string& signal, bool all) {
  GCS_ASSIGN(const int number, ParseSignal(signal));
  GCS_ASSIGN(Loaded loaded, Load(global, id, Access::kRead));
  // Without a pid namespace of its own SIGKILL to the first process would leave the others.
  const bool everybody = all || (number == SIGKILL && !loaded.container.spec.MakesNamespace(CLONE_NEWPID));
  if (everybody && loaded.container.cgroup != nullptr) {
    if (number == SIGKILL) {
      GCS_TRY(loaded.container.cgroup->Kill());
      return 0;
    }
    GCS_ASSIGN(const std::vector<int> pids, loaded.container.cgroup->Pids());
    for (const int pid : pids) {
      const Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
      // Still in there now that the pidfd holds it.
      GCS_ASSIGN(const std::vector<int> again, loaded.container.cgroup->Pids());
      if (!pidfd.valid() || std::ranges::find(again, pid) == again.end()) continue;
      syscall(SYS_pidfd_send_signal, pidfd.get(), number, nullptr, 0);
    }
    return 0;
  }
  if (!loaded.pidfd.valid()) return MakeError(ESRCH, "kill container", id, "container not running");
  if (syscall(SYS_pidfd_send_signal, loaded.pidfd.get(), number, nullptr, 0) != 0) {
    return base::ErrnoError("kill container", id, signal);
  }
  // A frozen process would take it only when it is thawed.
  if (number == SIGKILL && loaded.status == Status::kPaused) {
    GCS_TRY(loaded.container.cgroup->Freeze(false, Deadline(kTearDownSeconds)));
  }
  return 0;
}

Result<int> Delete(const Global& global, const std::string& id, bool force) {
  auto store = OpenToDelete(global, id, force);
  if (!store && force && store.error().err == ENOENT) return 0;
  if (!store) return std::unexpected(store.error());
  if (auto record = store->Load(); !record && force && record.error().err == ENOENT) {
    // Of a create that was killed before it had made anything.
    GCS_TRY(store->Remove());
    return 0;
  }
  auto loaded = Load(std::move(*store));
  if (!loaded) return std::unexpected(loaded.error());
  if (loaded->status != Status::kStopped && !force) {
    return MakeError(
        EBUSY, "delete container", id,
        "cannot delete container that is not stopped: " + std::string(StatusName(loaded->status)));
  }
  GCS_TRY(Remove(*loaded));
  return 0;
}

}  // namespace gcs::oci
