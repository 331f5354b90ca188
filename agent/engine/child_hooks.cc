// SPDX-License-Identifier: Apache-2.0
// Hooks that run inside the container's namespaces.
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/clock.h"
#include "engine/child.h"

namespace gcs::engine {

namespace {

// The program: state on its stdin, the null device for its output, nothing else open.
[[noreturn]] void ExecHook(const Child& child, const PlanHook& hook, int input, int null) noexcept {
  // A group of its own, so that a signal to it does not reach the container's process.
  setpgid(0, 0);
  if (dup2(input, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0) _exit(126);
  syscall(SYS_close_range, 3, ~0U, 0);
  execve(child.Text(hook.path), child.Pointers(hook.args), child.Pointers(hook.env));
  _exit(errno == ENOENT ? 127 : 126);
}

// Waits for `events` of `fd`, until `deadline` (0: for ever). False: too late.
bool Await(int fd, short events, int64_t deadline) noexcept {
  for (;;) {
    const int64_t left = deadline - base::MonotonicNs();
    if (deadline != 0 && left <= 0) return false;
    pollfd poll_fd{fd, events, 0};
    const int64_t wait_ms = deadline == 0 ? -1 : std::min<int64_t>(left / base::kNsPerMs + 1, 60'000);
    if (poll(&poll_fd, 1, static_cast<int>(wait_ms)) > 0) return true;
  }
}

// Writes the state object; a hook that does not read it is no error.
void WriteState(const Child& child, int fd, int64_t deadline) noexcept {
  char pid[16];
  snprintf(pid, sizeof pid, "%d", static_cast<int>(getpid()));
  for (const char* part : {child.Text(child.plan->state_before), static_cast<const char*>(pid),
                           child.Text(child.plan->state_after)}) {
    for (size_t left = strlen(part); left > 0;) {
      const ssize_t n = send(fd, part, left, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) {
        part += n;
        left -= static_cast<size_t>(n);
      } else if (errno != EAGAIN || !Await(fd, POLLOUT, deadline)) {
        return;
      }
    }
  }
}

// 0, or the errno that tells how it failed.
int RunHook(const Child& child, const PlanHook& hook, int null) noexcept {
  int pair[2];
  // A socket, not a pipe: a write to one whose reader is gone must not raise SIGPIPE.
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return errno;
  int pidfd = -1;
  clone_args args{};
  args.flags = CLONE_PIDFD;
  args.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  args.exit_signal = SIGCHLD;
  const long pid = syscall(SYS_clone3, &args, sizeof args);
  if (pid == 0) ExecHook(child, hook, pair[0], null);
  const int err = pid < 0 ? errno : 0;
  close(pair[0]);
  if (err != 0) {
    close(pair[1]);
    return err;
  }
  const int64_t deadline = hook.timeout_ns > 0 ? base::MonotonicNs() + hook.timeout_ns : 0;
  WriteState(child, pair[1], deadline);
  close(pair[1]);
  const bool late = !Await(pidfd, POLLIN, deadline);
  if (late) {
    // Its group, as far as it has made one by now.
    kill(static_cast<pid_t>(-pid), SIGKILL);
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0);
  }
  siginfo_t info{};
  while (waitid(static_cast<idtype_t>(P_PIDFD), pidfd, &info, WEXITED) != 0 && errno == EINTR) {
  }
  close(pidfd);
  if (late) return ETIMEDOUT;
  if (info.si_code != CLD_EXITED) return EINTR;
  switch (info.si_status) {
    case 0:
      return 0;
    case 127:
      return ENOENT;
    case 126:
      return EACCES;
    default:
      return ECHILD;
  }
}

}  // namespace

void RunHooks(const Child& child, ArrayRef hooks, int null, Step step) noexcept {
  const auto* items = child.Items<PlanHook>(hooks);
  for (uint32_t i = 0; i < hooks.count; ++i) {
    const int err = RunHook(child, items[i], null);
    if (err != 0) child.Fail(step, err, i);
  }
}

}  // namespace gcs::engine
