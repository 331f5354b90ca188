// SPDX-License-Identifier: Apache-2.0
#include "engine/hooks.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/fd.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

namespace {

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// posix_spawn(3): the daemon may be large and has threads, so it must not be forked.
Result<pid_t> Spawn(Hook hook, const std::string& bundle, int input, std::string_view step) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  if (!bundle.empty()) posix_spawn_file_actions_addchdir_np(&actions, bundle.c_str());
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  if (hook.args.empty()) hook.args.push_back(hook.path);
  std::vector<char*> args = Pointers(hook.args);
  std::vector<char*> env = Pointers(hook.env);
  pid_t pid = 0;
  const int err = posix_spawn(&pid, hook.path.c_str(), &actions, &attributes, args.data(), env.data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (err != 0) return MakeError(err, step, hook.path, "can't be executed");
  return pid;
}

// A hook that doesn't read its state is no error, nor is one that is too slow: that shows soon enough. 0 or
// an errno.
int WriteState(int fd, std::string_view text, int64_t deadline_ns) {
  while (!text.empty()) {
    const ssize_t n = send(fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      text.remove_prefix(static_cast<size_t>(n));
      continue;
    }
    if (errno == EPIPE || errno == ECONNRESET) return 0;
    if (errno != EAGAIN && errno != EINTR) return errno;
    const int64_t left = deadline_ns - base::MonotonicNs();
    pollfd poll_fd{fd, POLLOUT, 0};
    if (left <= 0) return 0;
    if (poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left / base::kNsPerMs + 1, 60'000))) < 0 &&
        errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

// Kills at the deadline. The exit status, or nothing then.
Result<std::optional<int>> Await(pid_t pid, int pidfd, const Hook& hook, std::string_view step,
                                 int64_t deadline_ns) {
  bool late = false;
  for (;;) {
    const int64_t left = deadline_ns - base::MonotonicNs();
    if (left <= 0) {
      late = true;
      // Not reaped yet, so its group's number is still its own.
      kill(-pid, SIGKILL);
      break;
    }
    pollfd poll_fd{pidfd, POLLIN, 0};
    if (poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left / base::kNsPerMs + 1, 60'000))) > 0) break;
  }
  siginfo_t info{};
  while (waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED) != 0) {
    if (errno != EINTR) return ErrnoError("waitid", hook.path, step);
  }
  if (late) return std::nullopt;
  return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

Result<> RunHook(const Hook& hook, const std::string& state, const std::string& bundle, std::string_view step,
                 int64_t deadline_ns) {
  if (hook.timeout_ns > 0) deadline_ns = std::min(deadline_ns, base::MonotonicNs() + hook.timeout_ns);
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoError("socketpair", hook.path);
  Fd ours(pair[0]);
  Fd theirs(pair[1]);
  GCS_ASSIGN(const pid_t pid, Spawn(hook, bundle, theirs.get(), step));
  theirs.Reset();
  const Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) {
    // It can't be gone, as it is not reaped; without a pidfd there is no wait with a limit.
    const int err = errno;
    kill(pid, SIGKILL);
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return MakeError(err, "pidfd_open", hook.path, step);
  }
  const int unwritten = WriteState(ours.get(), state, deadline_ns);
  ours.Reset();
  if (unwritten != 0) {
    kill(-pid, SIGKILL);
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return MakeError(unwritten, step, hook.path, "can't be given the state");
  }
  GCS_ASSIGN(const std::optional<int> status, Await(pid, pidfd.get(), hook, step, deadline_ns));
  if (!status) return MakeError(ETIMEDOUT, step, hook.path, "killed at its time limit");
  if (*status >= 128)
    return MakeError(EINTR, step, hook.path, "ended by signal " + std::to_string(*status - 128));
  if (*status != 0) return MakeError(ECHILD, step, hook.path, "exit status " + std::to_string(*status));
  return {};
}

}  // namespace

Result<> RunHooks(const std::vector<Hook>& hooks, const base::Json& state, const std::string& bundle,
                  std::string_view step, int64_t deadline_ns) {
  if (hooks.empty()) return {};
  const std::string text = state.dump(-1, ' ', false, base::Json::error_handler_t::replace);
  for (const Hook& hook : hooks) GCS_TRY(RunHook(hook, text, bundle, step, deadline_ns));
  return {};
}

}  // namespace gcs::engine
