// SPDX-License-Identifier: Apache-2.0
#include "init/service.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "base/clock.h"
#include "base/init_control.h"

namespace gcs::init {

namespace {

constexpr int kControlFd = 3;
constexpr int kExecFailed = 127;

// The search path is the host's business too: the Windows shim runs programs of the VM by name.
constexpr const char* kPath = "PATH=/sbin:/usr/sbin:/bin:/usr/bin";

// In a copy of init. CLONE_CLEAR_SIGHAND has reset the handlers; the mask and ignored signals are reset here.
void ResetSignals() {
  signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

}  // namespace

std::string DescribeStatus(int status) {
  if (WIFEXITED(status)) return "exit code " + std::to_string(WEXITSTATUS(status));
  if (!WIFSIGNALED(status)) return "wait status " + std::to_string(status);
  const int sig = WTERMSIG(status);
  const char* name = sigabbrev_np(sig);
  return "killed by signal " + std::to_string(sig) +
         (name != nullptr ? std::string(" (SIG") + name + ")" : "");
}

Service::Service(Kind kind, std::string name, std::vector<std::string> argv, int cgroup)
    : kind_(kind), name_(std::move(name)), argv_(std::move(argv)), cgroup_(cgroup), output_(name_) {}

base::Result<> Service::Open() {
  if (kind_ == Kind::kAgent) return output_.Open();
  return {};
}

base::Result<> Service::Start() {
  base::FdPair control;
  if (kind_ == Kind::kAgent) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
      return base::ErrnoError("socketpair", name_);
    control.first.Reset(fds[0]);
    control.second.Reset(fds[1]);
  }
  clone_args args{};
  args.flags = CLONE_CLEAR_SIGHAND;
  args.exit_signal = SIGCHLD;
  if (cgroup_ >= 0) {
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = static_cast<uint64_t>(cgroup_);
  }
  // No pidfd: init is the parent and the only one that reaps, so the number stays this process's until
  // OnExit.
  const long pid = syscall(SYS_clone3, &args, sizeof args);
  if (pid < 0) return base::ErrnoError("clone3", argv_[0]);
  if (pid == 0) Child(control.second.get());
  pid_ = static_cast<pid_t>(pid);
  control_ = std::move(control.first);
  started_ns_ = base::MonotonicNs();
  ++starts_;
  complaints_ = 0;
  return {};
}

void Service::Child(int control) {
  setsid();
  std::vector<char*> environment = {const_cast<char*>(kPath), const_cast<char*>("HOME=/")};
  std::string init_fd;
  if (kind_ == Kind::kAgent) {
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) dup2(null, 0);
    dup2(output_.write_fd(), 1);
    dup2(output_.write_fd(), 2);
    if (control != kControlFd) {
      dup2(control, kControlFd);
    } else {
      fcntl(control, F_SETFD, 0);
    }
    init_fd = std::string(base::kInitFdVariable) + "=" + std::to_string(kControlFd);
    environment.push_back(init_fd.data());
  } else {
    const int console = open("/dev/console", O_RDWR);
    if (console < 0) {
      LogError(name_, base::ErrnoError("open", "/dev/console").error());
      _exit(kExecFailed);
    }
    for (int fd = 0; fd < 3; ++fd) dup2(console, fd);
    ioctl(0, TIOCSCTTY, 1);
    environment.push_back(const_cast<char*>("TERM=linux"));
  }
  environment.push_back(nullptr);
  // From here on only what was made for the program survives exec; the kernel log stays usable until then.
  if (file_limit_) setrlimit(RLIMIT_NOFILE, &*file_limit_);
  syscall(SYS_close_range, kind_ == Kind::kAgent ? kControlFd + 1 : 3, ~0U, CLOSE_RANGE_CLOEXEC);
  ResetSignals();
  std::vector<char*> argv;
  for (const std::string& word : argv_) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  if (argv_[0].find('/') != std::string::npos) {
    execve(argv[0], argv.data(), environment.data());
  } else {
    execvpe(argv[0], argv.data(), environment.data());
  }
  LogError("start", base::ErrnoError("execve", argv_[0]).error());
  _exit(kExecFailed);
}

void Service::OnExit(int status, bool restart) {
  output_.Pump();
  output_.Flush();
  const int64_t lived_ns = base::MonotonicNs() - started_ns_;
  pid_ = 0;
  last_status_ = status;
  control_.Reset();
  const int64_t delay_ns = backoff_.Next(lived_ns);
  next_start_ns_ = base::MonotonicNs() + delay_ns;
  std::string text =
      name_ + " ended after " + std::to_string(lived_ns / base::kNsPerMs) + " ms: " + DescribeStatus(status);
  if (restart) text += "; next start in " + std::to_string(delay_ns / base::kNsPerMs) + " ms";
  Log(restart ? Priority::kError : Priority::kInfo, text);
}

void Service::OnFailedStart(const base::Error& error) {
  LogError("start " + name_, error);
  pid_ = 0;
  control_.Reset();
  next_start_ns_ = base::MonotonicNs() + backoff_.Next(0);
}

}  // namespace gcs::init
