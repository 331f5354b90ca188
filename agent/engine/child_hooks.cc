// SPDX-License-Identifier: Apache-2.0
// Hooks that run inside the container's namespaces.
#include <fcntl.h>
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

// The program: state on its stdin, the null device for its output, nothing else open. Where it can't be
// executed, errno goes to `failure`, which closes otherwise.
[[noreturn]] void ExecHook(const Child& child, const PlanHook& hook, int input, int null,
                           int failure) noexcept {
  constexpr int kFailure = 3;
  // A group of its own, so that a signal to it does not reach the container's process.
  if (setpgid(0, 0) == 0 && dup2(input, 0) >= 0 && dup2(null, 1) >= 0 && dup2(null, 2) >= 0 &&
      (failure == kFailure || dup3(failure, kFailure, O_CLOEXEC) >= 0)) {
    failure = kFailure;
    if (syscall(SYS_close_range, kFailure + 1, ~0U, 0) == 0)
      execve(child.Text(hook.path), child.Pointers(hook.args), child.Pointers(hook.env));
  }
  const int err = errno;
  send(failure, &err, sizeof err, MSG_NOSIGNAL);
  _exit(126);
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

// Writes the state object; a hook that does not read it is no error, nor is one that is too slow: that shows
// soon enough. 0 or an errno.
int WriteState(const Child& child, int fd, int64_t deadline) noexcept {
  char pid[16];
  snprintf(pid, sizeof pid, "%d", static_cast<int>(getpid()));
  for (const char* part : {child.Text(child.plan->state_before), static_cast<const char*>(pid),
                           child.Text(child.plan->state_after)}) {
    for (size_t left = strlen(part); left > 0;) {
      const ssize_t n = send(fd, part, left, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) {
        part += n;
        left -= static_cast<size_t>(n);
      } else if (errno == EPIPE || errno == ECONNRESET) {
        return 0;
      } else if (errno == EAGAIN) {
        if (!Await(fd, POLLOUT, deadline)) return 0;
      } else if (errno != EINTR) {
        return errno;
      }
    }
  }
  return 0;
}

struct Sockets {
  int ours = -1, theirs = -1;
  void CloseAll() const noexcept {
    if (ours >= 0) close(ours);
    if (theirs >= 0) close(theirs);
  }
};

// Sockets, not pipes: a write to one whose reader is gone must not raise SIGPIPE. 0 or an errno.
int MakeSockets(Sockets& made) noexcept {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return errno;
  made = {.ours = pair[0], .theirs = pair[1]};
  return 0;
}

// Waits for the end of the hook. 0, or the errno that tells how it failed.
int Finish(pid_t pid, int pidfd, int unwritten, int failure, int64_t deadline) noexcept {
  const bool late = unwritten == 0 && !Await(pidfd, POLLIN, deadline);
  if (late || unwritten != 0) {
    // Its group, as far as it has made one by now.
    kill(-pid, SIGKILL);
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0);
  }
  siginfo_t info{};
  while (waitid(static_cast<idtype_t>(P_PIDFD), pidfd, &info, WEXITED) != 0 && errno == EINTR) {
  }
  // It has not been executed, or the socket has closed by that.
  int err = 0;
  ssize_t told = 0;
  do {
    told = recv(failure, &err, sizeof err, MSG_DONTWAIT);
  } while (told < 0 && errno == EINTR);
  if (told < 0 && errno != EAGAIN) return errno;
  if (told == sizeof err && err != 0) return err;
  if (unwritten != 0) return unwritten;
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

// 0, or the errno that tells how it failed.
int RunHook(const Child& child, const PlanHook& hook, int null) noexcept {
  Sockets state;
  Sockets failure;
  int err = MakeSockets(state);
  if (err == 0) err = MakeSockets(failure);
  int pidfd = -1;
  long pid = -1;
  if (err == 0) {
    clone_args args{};
    args.flags = CLONE_PIDFD;
    args.pidfd = reinterpret_cast<uint64_t>(&pidfd);
    args.exit_signal = SIGCHLD;
    pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) ExecHook(child, hook, state.theirs, null, failure.theirs);
    if (pid < 0) err = errno;
  }
  if (err != 0) {
    state.CloseAll();
    failure.CloseAll();
    return err;
  }
  close(state.theirs);
  close(failure.theirs);
  const int64_t deadline = hook.timeout_ns > 0 ? base::MonotonicNs() + hook.timeout_ns : 0;
  const int unwritten = WriteState(child, state.ours, deadline);
  close(state.ours);
  err = Finish(static_cast<pid_t>(pid), pidfd, unwritten, failure.ours, deadline);
  close(failure.ours);
  close(pidfd);
  return err;
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
