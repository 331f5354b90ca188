// SPDX-License-Identifier: Apache-2.0
#include "host/vm/process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "base/paths.h"

namespace gcs::host {

namespace {

// Between fork and exec of a program with threads: system calls only. Reports errno through `report` and
// exits.
[[noreturn]] void Child(char* const* argv, int null_fd, int log_fd, int report, pid_t parent) {
  const auto fail = [report] {
    const int err = errno;
    [[maybe_unused]] const ssize_t n = write(report, &err, sizeof err);
    _exit(127);
  };
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) fail();
  // The parent may have died before the line above.
  if (getppid() != parent) _exit(127);
  if (dup2(null_fd, 0) < 0 || dup2(log_fd, 1) < 0 || dup2(log_fd, 2) < 0) fail();
  execvp(argv[0], argv);
  fail();
  _exit(127);
}

}  // namespace

base::Result<Process> Spawn(const std::vector<std::string>& command, const std::string& log) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  GCS_ASSIGN(const base::Fd null_fd, base::OpenFile("/dev/null", O_RDONLY));
  GCS_ASSIGN(const base::Fd log_fd, base::OpenFile(log, O_WRONLY | O_CREAT | O_APPEND, 0644));
  std::array<int, 2> pipe_fds;
  if (pipe2(pipe_fds.data(), O_CLOEXEC) != 0) return base::ErrnoError("pipe2");
  const base::Fd report_read(pipe_fds[0]);
  base::Fd report_write(pipe_fds[1]);

  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return base::ErrnoError("fork", command[0]);
  if (pid == 0) Child(argv.data(), null_fd.get(), log_fd.get(), report_write.get(), parent);
  report_write.Reset();

  Process process = {.pid = pid, .pidfd = base::Fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)))};
  int err = 0;
  ssize_t n = 0;
  do {
    n = read(report_read.get(), &err, sizeof err);
  } while (n < 0 && errno == EINTR);
  const bool failed = n == static_cast<ssize_t>(sizeof err);
  if (failed || !process.pidfd) {
    if (!failed) err = errno;
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return base::MakeError(err, failed ? "exec" : "pidfd_open", command[0]);
  }
  return process;
}

}  // namespace gcs::host
