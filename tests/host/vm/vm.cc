// SPDX-License-Identifier: Apache-2.0
#include "host/vm/vm.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <future>
#include <mutex>
#include <utility>

#include "base/clock.h"
#include "base/paths.h"
#include "host/vm/accel.h"
#include "host/vm/command.h"
#include "host/vm/process.h"
#include "host/vm/wait.h"
#include "host/vsock/device.h"

namespace gcs::host {

namespace {

constexpr size_t kMaxRunDir = 80;  // leaves room for "/vsock_" and a port in a unix socket's 107 bytes

std::string Tail(const std::string& path, size_t bytes) {
  const base::Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return {};
  const off_t size = lseek(fd.get(), 0, SEEK_END);
  if (size < 0) return {};
  const off_t from = size > static_cast<off_t>(bytes) ? size - static_cast<off_t>(bytes) : 0;
  std::string out(size - from, '\0');
  const ssize_t n = pread(fd.get(), out.data(), out.size(), from);
  out.resize(n < 0 ? 0 : n);
  return out;
}

}  // namespace

struct Vm::State {
  explicit State(VmOptions vm_options, std::string dir)
      : options(std::move(vm_options)), control(std::move(dir)) {}
  ~State();
  base::Result<> StartQemu();
  base::Result<> WaitReady(const base::Fd& listener);
  base::Result<bool> Reap(bool block);
  std::unexpected<base::Error> EarlyEnd(const base::Error& error) const;

  VmOptions options;
  VmControl control;
  bool own_dir = false;
  std::string vsock_path;
  std::string vhost_path;
  std::string log_path;
  std::string console_path;
  std::unique_ptr<vsock::DeviceThread> device;
  Process process;
  std::optional<VmExit> exit;
  int64_t started_ns = 0;
  int64_t ready_ns = 0;
};

Vm::State::~State() {
  if (process.pid > 0 && !exit) {
    kill(process.pid, SIGKILL);
    [[maybe_unused]] const auto reaped = Reap(true);
  }
  device.reset();
  unlink(log_path.c_str());
  unlink(control.qmp_path().c_str());
  if (options.ready_port != 0) unlink(control.ListenPath(options.ready_port).c_str());
  if (options.console_log.empty()) unlink(console_path.c_str());
  if (own_dir) rmdir(control.run_dir().c_str());
}

base::Result<> Vm::State::StartQemu() {
  const VmPaths paths = {.qmp = control.qmp_path(), .vhost = vhost_path, .console = console_path};
  GCS_ASSIGN(const std::vector<std::string> command, QemuCommand(options, paths));
  // From the device's thread, which lives as long as the VM: PDEATHSIG follows the thread that forked.
  std::promise<base::Result<Process>> promise;
  auto future = promise.get_future();
  started_ns = base::MonotonicNs();
  device->loop().Post([&] { promise.set_value(Spawn(command, log_path)); });
  GCS_ASSIGN(process, future.get());
  return {};
}

std::unexpected<base::Error> Vm::State::EarlyEnd(const base::Error& error) const {
  base::Error full = error;
  if (!full.message.empty()) full.message += "\n";
  full.message += "QEMU: " + Tail(log_path, 2000) + "\nconsole: " + Tail(console_path, 4000);
  return std::unexpected(std::move(full));
}

base::Result<bool> Vm::State::Reap(bool block) {
  if (exit) return true;
  int status = 0;
  pid_t got = 0;
  do {
    got = waitpid(process.pid, &status, block ? 0 : WNOHANG);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return base::ErrnoError("waitpid", "QEMU");
  if (got == 0) return false;
  exit = WIFEXITED(status) ? VmExit{.code = WEXITSTATUS(status), .signal = 0}
                           : VmExit{.code = 0, .signal = WTERMSIG(status)};
  return true;
}

base::Result<> Vm::State::WaitReady(const base::Fd& listener) {
  const int64_t deadline = started_ns + (options.start_timeout_ms * base::kNsPerMs);
  std::array<pollfd, 3> fds = {pollfd{.fd = listener.get(), .events = POLLIN, .revents = 0},
                               pollfd{.fd = process.pidfd.get(), .events = POLLIN, .revents = 0},
                               pollfd{.fd = options.cancel_fd, .events = POLLIN, .revents = 0}};
  for (;;) {
    GCS_ASSIGN(const int ready, PollUntil(fds, deadline));
    if (ready == 0) {
      return EarlyEnd({"wait for the guest", ETIMEDOUT, "ready port " + std::to_string(options.ready_port),
                       "no call within " + std::to_string(options.start_timeout_ms) + " ms"});
    }
    if (fds[0].revents != 0) {
      const base::Fd call(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!call) continue;
      ready_ns = base::MonotonicNs();
      return {};
    }
    if (fds[2].revents != 0) return base::MakeError(ECANCELED, "wait for the guest", "QEMU");
    if (fds[1].revents != 0) {
      GCS_TRY(Reap(true));
      return EarlyEnd(
          {"wait for the guest", ESRCH, "QEMU",
           "ended with status " + std::to_string(exit->code) + ", signal " + std::to_string(exit->signal)});
    }
  }
}

base::Result<std::unique_ptr<Vm>> Vm::Start(VmOptions options) {
  if (options.kernel.empty()) return base::MakeError(EINVAL, "vm options", "kernel", "no kernel given");
  for (const std::string* file : {&options.kernel, &options.initrd}) {
    if (!file->empty() && access(file->c_str(), R_OK) != 0) return base::ErrnoError("open", *file);
  }
  GCS_ASSIGN(options.accel, ResolveAccel(options.accel, options.qemu, options.kernel));

  std::string dir = options.run_dir;
  if (dir.empty()) {
    std::array<char, 32> path = {"/tmp/gcs-vm.XXXXXX"};
    if (mkdtemp(path.data()) == nullptr) return base::ErrnoError("mkdtemp", path.data());
    dir = path.data();
  } else {
    if (dir.size() > kMaxRunDir) return base::MakeError(ENAMETOOLONG, "vm options", dir, "run directory");
    GCS_TRY(base::MakeDirs(dir, 0700));
  }
  // From here on everything is undone by State's destructor.
  const bool own_dir = options.run_dir.empty();
  auto state = std::make_unique<State>(std::move(options), dir);
  state->own_dir = own_dir;
  state->vsock_path = state->control.vsock_path();
  state->vhost_path = dir + "/vhost";
  state->log_path = dir + "/qemu.log";
  state->console_path =
      state->options.console_log.empty() ? dir + "/console.log" : state->options.console_log;
  unlink(state->log_path.c_str());

  GCS_ASSIGN(state->device, vsock::DeviceThread::Start({.vhost_socket = state->vhost_path,
                                                        .uds_path = state->vsock_path,
                                                        .guest_cid = state->options.cid,
                                                        .mux = {},
                                                        .hybrid = {}}));
  base::Fd listener;
  if (state->options.ready_port != 0) {
    GCS_ASSIGN(listener, state->control.Listen(state->options.ready_port));
  }
  GCS_TRY(state->StartQemu());
  if (listener) {
    GCS_TRY(state->WaitReady(listener));
  }
  return std::unique_ptr<Vm>(new Vm(std::move(state)));
}

Vm::Vm(std::unique_ptr<State> state) : state_(std::move(state)) {}
Vm::~Vm() = default;

base::Result<base::Fd> Vm::Connect(uint32_t port, int64_t timeout_ms) const {
  return state_->control.Connect(port, timeout_ms);
}
base::Result<base::Fd> Vm::Listen(uint32_t port) const { return state_->control.Listen(port); }
const VmControl& Vm::control() const { return state_->control; }

base::Result<VmExit> Vm::Wait(int64_t timeout_ms) {
  if (!state_->exit) {
    const int64_t deadline = base::MonotonicNs() + (timeout_ms * base::kNsPerMs);
    GCS_TRY(WaitFd(state_->process.pidfd.get(), POLLIN, deadline, "wait for QEMU's end"));
    GCS_TRY(state_->Reap(true));
  }
  return *state_->exit;
}

base::Result<VmExit> Vm::Stop(int64_t grace_ms) {
  auto ended = Wait(grace_ms);
  if (ended || ended.error().err != ETIMEDOUT) return ended;
  kill(state_->process.pid, SIGKILL);
  GCS_TRY(state_->Reap(true));
  return *state_->exit;
}

pid_t Vm::pid() const { return state_->process.pid; }
const std::string& Vm::run_dir() const { return state_->control.run_dir(); }
const std::string& Vm::vsock_path() const { return state_->vsock_path; }
const std::string& Vm::console_path() const { return state_->console_path; }
std::string Vm::ConsoleTail(size_t bytes) const { return Tail(state_->console_path, bytes); }
std::string Vm::QemuMessages() const { return Tail(state_->log_path, 1 << 20); }
bool Vm::kvm() const { return state_->options.accel == Accel::kKvm; }
int64_t Vm::started_ns() const { return state_->started_ns; }
int64_t Vm::ready_ns() const { return state_->ready_ns; }

}  // namespace gcs::host
