// SPDX-License-Identifier: Apache-2.0
#include "guest/exit_status.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

namespace gcs::guest {

namespace {

using base::Result;

// linux/pidfd.h; younger than the headers that this is built with.
struct PidfdInfo {
  uint64_t mask;
  uint64_t cgroup_id;
  uint32_t ids[11];
  int32_t exit_code;  // as of wait(2)
};
static_assert(sizeof(PidfdInfo) == 64);  // PIDFD_INFO_SIZE_VER0
constexpr unsigned long kPidfdGetInfo = _IOWR(0xff, 11, PidfdInfo);
constexpr uint64_t kPidfdInfoExit = 1 << 3;

int64_t Nanoseconds(const timeval& time) { return time.tv_sec * base::kNsPerSec + time.tv_usec * 1000; }

Result<std::optional<ExitStatus>> Ask(int pidfd, int options) {
  siginfo_t info{};
  rusage usage{};
  // The raw call, since waitid(3) has no place for the rusage.
  while (syscall(SYS_waitid, P_PIDFD, pidfd, &info, WEXITED | WNOHANG | options, &usage) != 0) {
    if (errno != EINTR) return base::ErrnoError("waitid");
  }
  if (info.si_pid == 0) return std::nullopt;
  ExitStatus exit;
  const bool killed = info.si_code != CLD_EXITED;
  exit.signal = killed ? info.si_status : 0;
  exit.exit_code = killed ? 128 + info.si_status : info.si_status;
  exit.exited_at_ns = base::RealtimeNs();
  exit.user_time_ns = Nanoseconds(usage.ru_utime);
  exit.system_time_ns = Nanoseconds(usage.ru_stime);
  exit.max_rss_kib = usage.ru_maxrss;
  return exit;
}

}  // namespace

Result<std::optional<ExitStatus>> PeekExit(int pidfd) { return Ask(pidfd, WNOWAIT); }
Result<std::optional<ExitStatus>> Reap(int pidfd) { return Ask(pidfd, 0); }

ExitStatus FromWaitStatus(int status) {
  ExitStatus exit;
  exit.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  exit.exit_code = exit.signal != 0 ? 128 + exit.signal : WEXITSTATUS(status);
  exit.exited_at_ns = base::RealtimeNs();
  return exit;
}

Result<std::optional<ExitStatus>> ExitByPidfd(int pidfd) {
  pollfd ended{.fd = pidfd, .events = POLLIN, .revents = 0};
  if (poll(&ended, 1, 0) < 0) return base::ErrnoError("poll", "pidfd");
  if (ended.revents == 0) return std::nullopt;
  PidfdInfo info{};
  info.mask = kPidfdInfoExit;
  if (ioctl(pidfd, kPidfdGetInfo, &info) != 0)
    return base::MakeError(EOPNOTSUPP, "find exit", {}, "the kernel keeps no exit code with a pidfd");
  if ((info.mask & kPidfdInfoExit) == 0) return std::nullopt;
  return FromWaitStatus(info.exit_code);
}

}  // namespace gcs::guest
