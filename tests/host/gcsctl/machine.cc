// SPDX-License-Identifier: Apache-2.0
#include "host/gcsctl/machine.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/clock.h"
#include "base/paths.h"
#include "host/cache.h"
#include "host/gcsctl/share.h"

namespace gcs::gcsctl {

namespace {

using Json = nlohmann::json;

constexpr uint32_t kAgentPort = 1024;
constexpr uint32_t kReadyPort = 1025;

std::string StateFile(const std::string& dir) { return dir + "/vm.json"; }

base::Result<> CheckName(const std::string& name) {
  const bool good =
      !name.empty() && name.size() <= 64 && name[0] != '.' &&
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
          std::string::npos;
  if (!good) return base::MakeError(EINVAL, "vm name", name, "letters, digits, . _ and -");
  return {};
}

Json ToJson(const Machine& machine) {
  return {{"name", machine.name},           {"run_dir", machine.run_dir},
          {"image_dir", machine.image_dir}, {"machine", machine.machine},
          {"accel", machine.accel},         {"supervisor", machine.supervisor},
          {"qemu", machine.qemu},           {"memory_mib", machine.memory_mib},
          {"boot_ns", machine.boot_ns},     {"started_at_ns", machine.started_at_ns}};
}

base::Result<Machine> FromJson(const std::string& text, const std::string& dir) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return base::MakeError(EBADMSG, "read vm state", StateFile(dir));
  Machine machine;
  machine.dir = dir;
  machine.name = json.value("name", "");
  machine.run_dir = json.value("run_dir", "");
  machine.image_dir = json.value("image_dir", "");
  machine.machine = json.value("machine", "");
  machine.accel = json.value("accel", "");
  machine.supervisor = json.value("supervisor", 0);
  machine.qemu = json.value("qemu", 0);
  machine.memory_mib = json.value("memory_mib", 0U);
  machine.boot_ns = json.value("boot_ns", int64_t{0});
  machine.started_at_ns = json.value("started_at_ns", int64_t{0});
  return machine;
}

base::Result<Machine> StartVm(const StartOptions& options, const std::string& dir, const base::Fd& signals,
                              std::unique_ptr<host::Vm>& vm) {
  host::VmOptions boot;
  boot.kernel = options.image_dir + "/vmlinux";
  boot.initrd = options.image_dir + "/initrd.img";
  boot.memory_mib = options.memory_mib;
  boot.cpus = options.cpus;
  boot.machine = options.machine;
  boot.accel = options.accel;
  boot.ready_port = kReadyPort;
  boot.console_log = dir + "/console.log";
  boot.start_timeout_ms = options.timeout_ms;
  boot.cancel_fd = signals.get();
  // A guest cannot switch microvm off.
  if (options.machine == host::Machine::kMicrovm) boot.command_line = "gcs.poweroff=reboot";
  if (!options.append.empty()) boot.command_line += " " + options.append;
  GCS_ASSIGN(vm, host::Vm::Start(boot));
  Machine machine;
  machine.name = options.name;
  machine.dir = dir;
  machine.run_dir = vm->run_dir();
  machine.image_dir = options.image_dir;
  machine.machine = options.machine == host::Machine::kMicrovm ? "microvm" : "q35";
  machine.accel = vm->kvm() ? "kvm" : "tcg";
  machine.supervisor = getpid();
  machine.qemu = vm->pid();
  machine.memory_mib = options.memory_mib;
  machine.boot_ns = vm->ready_ns() - vm->started_ns();
  machine.started_at_ns = base::RealtimeNs();
  GCS_TRY(base::ReplaceFile(StateFile(dir), ToJson(machine).dump(2) + "\n", 0600));
  return machine;
}

void Tell(int fd, const Json& json) {
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  for (size_t at = 0; at < text.size();) {
    const ssize_t n = write(fd, text.data() + at, text.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    at += n;
  }
}

// What of the VM is left in its directory goes; the logs stay for whoever wants to know why it ended.
void CleanDir(const std::string& dir) {
  std::error_code error;
  std::filesystem::remove(StateFile(dir), error);
  EndAllShares(dir);
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (entry.path().filename().string().starts_with("scratch-")) {
      std::error_code ignored;
      std::filesystem::remove(entry.path(), ignored);
    }
  }
}

// Takes the lock of a VM that is to run, for the supervisor. Who only looks at the VM (FindMachine) holds it
// shared for a moment.
base::Result<> LockAlive(const base::Fd& alive, const std::string& name) {
  constexpr int64_t kLookNs = 5 * base::kNsPerSec;
  const int64_t deadline = base::MonotonicNs() + kLookNs;
  while (flock(alive.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return base::ErrnoError("flock", name);
    if (flock(alive.get(), LOCK_SH | LOCK_NB) != 0) {
      return base::MakeError(EEXIST, "start vm", name, "it runs already");
    }
    if (base::MonotonicNs() > deadline) return base::MakeError(EBUSY, "start vm", name, "its lock is held");
    flock(alive.get(), LOCK_UN);
    const timespec pause = {.tv_sec = 0, .tv_nsec = 10 * base::kNsPerMs};
    nanosleep(&pause, nullptr);
  }
  return {};
}

void RemoveDir(const std::string& dir) {
  std::error_code ignored;
  std::filesystem::remove_all(dir, ignored);
}

sigset_t EndingSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) sigaddset(&signals, signal);
  return signals;
}

// The supervisor's life, with EndingSignals blocked. `alive` is locked for as long as it lives; `result` gets
// one JSON document.
[[noreturn]] void Supervise(const StartOptions& options, const std::string& dir, const base::Fd& alive,
                            base::Fd result) {
  const sigset_t signals = EndingSignals();
  const base::Fd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC));
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  int code = 0;
  {
    std::unique_ptr<host::Vm> vm;
    const auto machine = StartVm(options, dir, signal_fd, vm);
    if (!machine) {
      const base::Error& error = machine.error();
      Tell(result.get(),
           {{"step", error.step}, {"err", error.err}, {"object", error.object}, {"message", error.message}});
      code = 1;
    } else {
      // The VM is the caller's until it is up.
      if (!options.one_shot) prctl(PR_SET_PDEATHSIG, 0);
      Tell(result.get(), ToJson(*machine));
      result.Reset();
      const base::Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, machine->qemu, 0)));
      std::array<pollfd, 2> fds = {pollfd{.fd = signal_fd.get(), .events = POLLIN, .revents = 0},
                                   pollfd{.fd = pidfd.get(), .events = POLLIN, .revents = 0}};
      while (poll(fds.data(), fds.size(), -1) < 0 && errno == EINTR) {
      }
      const auto ended = vm->Stop(fds[1].revents != 0 ? 1000 : 0);
      if (!ended) fprintf(stderr, "%s\n", ended.error().ToString().c_str());
      const std::string messages = vm->QemuMessages();
      fputs(messages.c_str(), stderr);
    }
    CleanDir(dir);
    if (options.one_shot) RemoveDir(dir);
  }
  fflush(nullptr);
  static_cast<void>(alive);
  _exit(code);
}

}  // namespace

std::string StateRoot() {
  if (const char* state = getenv("GCSCTL_STATE"); state != nullptr && *state != '\0') return state;
  if (const char* state = getenv("XDG_STATE_HOME"); state != nullptr && *state != '\0') {
    return std::string(state) + "/gcsctl";
  }
  return host::HomeDirectory() + "/.local/state/gcsctl";
}

host::Client::Connector Machine::connector() const {
  return [control = control()] { return control.Connect(kAgentPort); };
}

base::Result<Starting> Starting::Begin(const StartOptions& options) {
  GCS_TRY(CheckName(options.name));
  if (options.image_dir.empty()) {
    return base::MakeError(EINVAL, "start vm", "--image-dir",
                           "needs the directory that scripts/build-image prints (or GCS_IMAGE_DIR)");
  }
  for (const char* file : {"vmlinux", "initrd.img"}) {
    const std::string path = options.image_dir + "/" + file;
    if (access(path.c_str(), R_OK) != 0) return base::ErrnoError("start vm", path);
  }
  const std::string dir = StateRoot() + "/" + options.name;
  GCS_TRY(base::MakeDirs(dir, 0700));
  GCS_ASSIGN(base::Fd alive, base::OpenFile(dir + "/alive", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  GCS_TRY(LockAlive(alive, options.name));
  CleanDir(dir);
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return base::ErrnoError("pipe2");
  base::Fd read_end(ends[0]);
  base::Fd write_end(ends[1]);
  const base::Fd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  GCS_ASSIGN(const base::Fd log,
             base::OpenFile(dir + "/supervisor.log", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  fflush(nullptr);
  const pid_t parent = getpid();
  // The child is never without its mask.
  const sigset_t signals = EndingSignals();
  sigset_t before;
  sigprocmask(SIG_BLOCK, &signals, &before);
  const pid_t child = fork();
  if (child != 0) sigprocmask(SIG_SETMASK, &before, nullptr);
  if (child < 0) return base::ErrnoError("fork");
  if (child == 0) {
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    // It has died before the line above.
    if (getppid() != parent) kill(getpid(), SIGTERM);
    dup2(null.get(), STDIN_FILENO);
    dup2(log.get(), STDOUT_FILENO);
    dup2(log.get(), STDERR_FILENO);
    read_end.Reset();
    Supervise(options, dir, alive, std::move(write_end));
  }
  return Starting(std::move(read_end), child, options);
}

base::Result<Machine> Starting::Finish() {
  GCS_ASSIGN(const std::string text, base::ReadFd(result_.get(), "supervisor", 1 << 20));
  const std::string dir = StateRoot() + "/" + options_.name;
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return base::MakeError(ECHILD, "start vm", options_.name,
                           "the supervisor died; see " + dir + "/supervisor.log");
  }
  if (json.contains("err")) {
    int status = 0;
    waitpid(supervisor_, &status, 0);
    return base::MakeError(json.value("err", EIO), json.value("step", ""), json.value("object", ""),
                           json.value("message", ""));
  }
  return FromJson(text, dir);
}

void Starting::Abandon() {
  // Our child, which nobody has waited for yet: the pid is still its own.
  if (waitpid(supervisor_, nullptr, WNOHANG) == 0) {
    kill(supervisor_, SIGTERM);
    waitpid(supervisor_, nullptr, 0);
  }
  RemoveDir(StateRoot() + "/" + options_.name);
}

base::Result<std::optional<Machine>> FindMachine(const std::string& name) {
  GCS_TRY(CheckName(name));
  const std::string dir = StateRoot() + "/" + name;
  const base::Fd alive(open((dir + "/alive").c_str(), O_RDWR | O_CLOEXEC));
  if (!alive) {
    if (errno == ENOENT) return std::nullopt;
    return base::ErrnoError("open", dir + "/alive");
  }
  // Shared: looking must keep nobody from starting it.
  if (flock(alive.get(), LOCK_SH | LOCK_NB) == 0) return std::nullopt;
  if (errno != EWOULDBLOCK) return base::ErrnoError("flock", dir + "/alive");
  auto text = base::ReadFile(StateFile(dir));
  // On its way up, or down.
  if (!text && text.error().err == ENOENT) return std::nullopt;
  if (!text) return std::unexpected(text.error());
  GCS_ASSIGN(Machine machine, FromJson(*text, dir));
  return machine;
}

base::Result<Machine> RequireMachine(const std::string& name) {
  GCS_ASSIGN(std::optional<Machine> machine, FindMachine(name));
  if (!machine) {
    return base::MakeError(ENOENT, "find vm", name, "it does not run; `gcsctl vm start` starts it");
  }
  return std::move(*machine);
}

void RemoveMachineDir(const Machine& machine) { RemoveDir(machine.dir); }

base::Result<> WaitGone(const Machine& machine, int64_t timeout_ms) {
  const std::string path = machine.dir + "/alive";
  const base::Fd alive(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!alive && errno != ENOENT) return base::ErrnoError("open", path);
  const int64_t deadline = base::MonotonicNs() + (timeout_ms * base::kNsPerMs);
  // Without the file, a supervisor of one run has ended.
  while (alive && flock(alive.get(), LOCK_SH | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return base::ErrnoError("flock", path);
    if (base::MonotonicNs() > deadline) return base::MakeError(ETIMEDOUT, "stop vm", machine.name);
    const timespec pause = {.tv_sec = 0, .tv_nsec = 10 * base::kNsPerMs};
    nanosleep(&pause, nullptr);
  }
  // A child of ours, if this process has started it.
  waitpid(machine.supervisor, nullptr, WNOHANG);
  return {};
}

}  // namespace gcs::gcsctl
