// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <tuple>

#include "base/fd.h"
#include "guest/exit_status.h"
#include "support/skip.h"

namespace gcs::guest {
namespace {

using base::Fd;

Fd OpenPid(pid_t pid) { return Fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

std::optional<ExitStatus> Await(const Fd& pidfd, base::Result<std::optional<ExitStatus>> (*ask)(int)) {
  for (int i = 0; i < 5000; ++i) {
    auto reaped = ask(pidfd.get());
    if (!reaped) {
      CHECK(reaped.error().err == EOPNOTSUPP);
      return std::nullopt;
    }
    if (*reaped) return *reaped;
    usleep(1000);
  }
  return std::nullopt;
}

TEST_CASE("a child is reaped once, and tells its times") {
  const pid_t pid = fork();
  if (pid == 0) {
    for (int i = 0; i < 200'000; ++i) std::ignore = getppid();
    _exit(3);
  }
  const Fd pidfd = OpenPid(pid);
  CHECK_FALSE(*Reap(pidfd.get()));
  const auto peeked = Await(pidfd, PeekExit);
  REQUIRE(peeked);
  CHECK(peeked->exit_code == 3);
  const auto exit = Await(pidfd, Reap);
  REQUIRE(exit);
  CHECK(exit->exit_code == 3);
  CHECK(exit->signal == 0);
  CHECK(exit->user_time_ns + exit->system_time_ns > 0);
  CHECK(waitpid(pid, nullptr, 0) == -1);
}

// What an agent that crashed leaves: somebody else's children, reaped by whoever adopts them.
TEST_CASE("the pidfd of a process that somebody else has reaped tells how it ended") {
  for (const auto& [end, code, signal] :
       {std::tuple(std::function<void()>([] { _exit(42); }), 42, 0),
        std::tuple(std::function<void()>([] { raise(SIGKILL); }), 137, 9)}) {
    int line[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line) == 0);
    const pid_t parent = fork();
    if (parent == 0) {
      const pid_t child = fork();
      if (child == 0) {
        char go = 0;
        if (read(line[1], &go, 1) == 1) end();
        _exit(1);
      }
      if (write(line[1], &child, sizeof child) != sizeof child) _exit(1);
      // The zombie stays a moment.
      siginfo_t ended{};
      waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT);
      usleep(50'000);
      _exit(waitpid(child, nullptr, 0) == child ? 0 : 1);
    }
    const Fd ours(line[0]);
    const Fd theirs(line[1]);
    pid_t child = 0;
    REQUIRE(read(ours.get(), &child, sizeof child) == sizeof child);
    const Fd pidfd = OpenPid(child);
    REQUIRE(pidfd.valid());
    CHECK(Reap(pidfd.get()).error().err == ECHILD);
    CHECK(PeekExit(pidfd.get()).error().err == ECHILD);
    CHECK_FALSE(ExitByPidfd(pidfd.get()).value_or(std::nullopt));  // lives
    REQUIRE(write(ours.get(), "g", 1) == 1);
    const auto exit = Await(pidfd, ExitByPidfd);
    int status = 0;
    REQUIRE(waitpid(parent, &status, 0) == parent);
    CHECK(status == 0);
    if (!exit) GCS_SKIP("pidfds that keep the exit code (Linux 6.15)");
    CHECK(exit->exit_code == code);
    CHECK(exit->signal == signal);
  }
}

}  // namespace
}  // namespace gcs::guest
