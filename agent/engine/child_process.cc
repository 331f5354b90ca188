// SPDX-License-Identifier: Apache-2.0
#include "engine/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "base/clock.h"
#include "base/paths.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::MonotonicNs;
using base::Result;

namespace {

constexpr int64_t kTearDownNs = 10 * base::kNsPerSec;

// Waits until `fd` is readable.
Result<> AwaitReadable(int fd, std::string_view what, int64_t deadline_ns) {
  for (;;) {
    const int64_t left = deadline_ns - MonotonicNs();
    if (left <= 0) return MakeError(ETIMEDOUT, "wait for container process", what);
    pollfd poll_fd{fd, POLLIN, 0};
    const int ready =
        poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left / base::kNsPerMs + 1, 60'000)));
    if (ready < 0 && errno != EINTR) return ErrnoError("poll", what);
    if (ready > 0) return {};
  }
}

// How long a receive from a sync socket blocks before the deadline is looked at again: spares a poll for each
// report.
constexpr int64_t kReceiveNs = base::kNsPerSec;

bool LimitReceive(int sync) {
  const timeval limit{.tv_sec = kReceiveNs / base::kNsPerSec, .tv_usec = 0};
  return setsockopt(sync, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0;
}

// One report from zygote, stage or child; `fd` gets the descriptor that came with it. Nothing: all of them
// have closed the socket.
Result<std::optional<ReportMessage>> ReceiveReport(int sync, Fd& fd, int64_t deadline_ns) {
  ReportMessage message;
  iovec iov{&message, sizeof message};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  // ECONNRESET: the child ended with something of ours unread. The kernel says so once, and before it hands
  // out what the child has said.
  ssize_t n = 0;
  do {
    if (deadline_ns - MonotonicNs() < kReceiveNs) GCS_TRY(AwaitReadable(sync, "sync socket", deadline_ns));
    n = recvmsg(sync, &header, MSG_CMSG_CLOEXEC);
  } while (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET));
  if (n == 0) return std::nullopt;
  if (n < 0) return ErrnoError("recvmsg", "sync socket");
  const cmsghdr* part = CMSG_FIRSTHDR(&header);
  if (part != nullptr && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
    int received = -1;
    memcpy(&received, CMSG_DATA(part), sizeof received);
    fd.Reset(received);
  }
  if (n != sizeof message) return MakeError(EPROTO, "receive report", "sync socket");
  // A pidfd can be had otherwise (OwnChild).
  if ((header.msg_flags & MSG_CTRUNC) != 0 && message.report != Report::kSpawned)
    return MakeError(EMFILE, "receive descriptor", "sync socket");
  return message;
}

base::Error StepError(const CompiledPlan& plan, const ReportMessage& report) {
  return {std::string(StepName(report.step)),
          report.err == 0 ? EIO : report.err,
          StepObject(plan, report.step, report.index),
          {}};
}

void KillAndReap(int pidfd) {
  syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0);
  siginfo_t info;
  while (waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED) != 0 &&
         errno == EINTR) {
  }
}

// The pidfd of a child of ours that has just been cloned. Where there were too few descriptors to send or to
// receive it, it is opened here; a child of which we can't have one is not kept.
Result<Fd> OwnChild(int pid, Fd sent) {
  if (sent.valid()) return sent;
  Fd opened(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (opened.valid()) return opened;
  auto error = ErrnoError("pidfd_open", std::to_string(pid));
  // Not reaped yet, so the number is still its own.
  kill(pid, SIGKILL);
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return error;
}

struct SyncPair {
  Fd ours, theirs;
};

Result<SyncPair> MakeSync(std::string_view object) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoError("socketpair", object);
  SyncPair sync{Fd(pair[0]), Fd(pair[1])};
  if (!LimitReceive(sync.ours.get())) return ErrnoError("setsockopt", object, "sync socket");
  return sync;
}

Result<> Continue(int sync, std::string_view object) {
  const char byte = 1;
  while (send(sync, &byte, sizeof byte, MSG_NOSIGNAL) != sizeof byte) {
    if (errno != EINTR) return ErrnoError("send", object, "sync socket");
  }
  return {};
}

}  // namespace

// One launch, from the plan's departure to the child that waits for its start.
class Launcher {
 public:
  Launcher(CompiledPlan plan, const ChildProcess::LaunchOptions& options)
      : plan_(std::move(plan)), options_(options) {}

  Result<ChildProcess> Run(Zygote& zygote, std::vector<Fd> sources) {
    GCS_ASSIGN(SyncPair sync, MakeSync(plan_.program));
    child_.sync_ = std::move(sync.ours);
    child_.program_ = plan_.program;
    child_.start_hooks_ = plan_.start_hooks;
    child_.listener_ = options_.listener;
    std::vector<int> fds(kFdFirstSource, sync.theirs.get());
    if (!plan_.terminal) {
      const ChildStdio& stdio = options_.stdio;
      if (stdio.in < 0 || stdio.out < 0 || stdio.err < 0)
        return MakeError(EBADF, "launch", plan_.program, "standard streams");
      fds[kFdStdin] = stdio.in;
      fds[kFdStdin + 1] = stdio.out;
      fds[kFdStdin + 2] = stdio.err;
    }
    if (options_.cgroup_fd >= 0) fds[kFdCgroup] = options_.cgroup_fd;
    for (const Fd& source : sources) fds.push_back(source.get());
    GCS_TRY(zygote.Spawn(plan_.builder.Finish(), fds));
    sync.theirs.Reset();
    sources.clear();

    auto done = Converse();
    if (!done) {
      // What the child has told is the reason for whatever we could not do with it.
      base::Error error = failed_.value_or(done.error());
      Abandon(error);
      return std::unexpected(error);
    }
    ReapStage();
    return std::move(child_);
  }

 private:
  // Zygote, stage and child report independently, so the child may be ready, or have failed, before the one
  // that cloned it has told its pid.
  Result<> Converse() {
    bool ready = false;
    while (!child_.pidfd_.valid() || (!ready && !failed_)) {
      Fd fd;
      GCS_ASSIGN(const auto report, ReceiveReport(child_.sync_.get(), fd, options_.deadline_ns));
      if (!report) {
        return std::unexpected(failed_.value_or(
            base::Error{"launch", ECHILD, plan_.program, "the process ended before it was ready"}));
      }
      switch (report->report) {
        case Report::kSpawned:
          GCS_TRY(OnSpawned(*report, std::move(fd), failed_.has_value()));
          break;
        case Report::kTime:
          time_due_ = true;
          break;
        case Report::kConsole:
          child_.console_ = std::move(fd);
          break;
        case Report::kHooks:
          hooks_due_ = true;
          break;
        case Report::kListener:
          listener_ = std::move(fd);
          break;
        case Report::kReady:
          ready = true;
          break;
        case Report::kFailed:
          failed_ = StepError(plan_, *report);
          // Up to here there is no child to wait for.
          if (report->step <= Step::kClone || InStage(report->step)) return std::unexpected(*failed_);
          break;
      }
      if (time_due_ && stage_.valid()) {
        time_due_ = false;
        GCS_TRY(WriteTimeOffsets());
        GCS_TRY(Continue(child_.sync_.get(), plan_.program));
      }
      if (listener_.valid() && child_.pidfd_.valid()) {
        GCS_TRY(HandOver(child_, std::move(listener_)));
      }
      if (hooks_due_ && child_.pidfd_.valid()) {
        hooks_due_ = false;
        if (options_.hooks) GCS_TRY(options_.hooks(child_.pid_));
        GCS_TRY(Continue(child_.sync_.get(), plan_.program));
      }
    }
    if (failed_) return std::unexpected(*failed_);
    return {};
  }

  friend class ChildProcess;
  static Result<> HandOver(const ChildProcess& child, Fd listener) {
    if (child.listener_) return child.listener_(child.pid_, std::move(listener));
    return MakeError(EOPNOTSUPP, "hand over seccomp listener", child.program_, "nobody takes it");
  }

  // A failure of the stage before it has cloned the child.
  [[nodiscard]] bool InStage(Step step) const {
    return plan_.staged && (step == Step::kJoin || step == Step::kTimeNamespace);
  }

  [[nodiscard]] bool IsStage(const ReportMessage& report) const { return plan_.staged && report.index == 0; }

  Result<> OnSpawned(const ReportMessage& report, Fd pidfd, bool failed) {
    const bool stage = IsStage(report);
    const int pid = report.pid;
    GCS_ASSIGN(pidfd, OwnChild(pid, std::move(pidfd)));
    if (stage) {
      stage_ = std::move(pidfd);
      stage_pid_ = pid;
    } else {
      child_.pid_ = pid;
      child_.pidfd_ = std::move(pidfd);
    }
    // The first one; the stage's child is where the stage is.
    if (options_.enter_cgroup && (stage || !plan_.staged)) {
      GCS_TRY(options_.enter_cgroup(pid));
      GCS_TRY(Continue(child_.sync_.get(), plan_.program));
    }
    if (stage) return {};
    if (!plan_.oom_score_adj) return {};
    auto set = base::WriteFile("/proc/" + std::to_string(pid) + "/oom_score_adj",
                               std::to_string(*plan_.oom_score_adj));
    // A child that has failed may be gone already.
    if (!set && (failed || set.error().err == ESRCH || set.error().err == ENOENT)) return {};
    return set;
  }

  Result<> WriteTimeOffsets() {
    std::string text;
    for (const TimeOffset& offset : plan_.time_offsets) {
      text += offset.clock + " " + std::to_string(offset.seconds) + " " + std::to_string(offset.nanoseconds) +
              "\n";
    }
    if (text.empty()) return {};
    auto written = base::WriteFile("/proc/" + std::to_string(stage_pid_) + "/timens_offsets", text);
    if (!written) written.error().object = "linux.timeOffsets";
    return written;
  }

  // Nobody is left behind: whoever waits for us ends when the socket does, and who is cloned is told before
  // the cloning process ends.
  void Abandon(base::Error& error) {
    shutdown(child_.sync_.get(), SHUT_WR);
    const int64_t patience = MonotonicNs() + kTearDownNs;
    // Whoever has gone while we wanted something of it has told why.
    bool asks = error.err == EPIPE || error.err == ESRCH || error.err == ENOENT || error.err == ECONNRESET;
    for (;;) {
      if (child_.pidfd_.valid() && !asks) break;
      Fd fd;
      const auto report = ReceiveReport(child_.sync_.get(), fd, patience);
      // One whose descriptor is lost has been read all the same.
      if (!report && report.error().err == EMFILE) continue;
      if (!report || !*report) break;
      if ((*report)->report == Report::kFailed) {
        if (asks) error = StepError(plan_, **report);
        asks = false;
        if ((*report)->step <= Step::kClone && !stage_.valid()) break;
      }
      if ((*report)->report != Report::kSpawned) continue;
      auto pidfd = OwnChild((*report)->pid, std::move(fd));
      if (IsStage(**report)) {
        if (pidfd) stage_ = std::move(*pidfd);
        continue;
      }
      if (!pidfd) break;
      child_.pidfd_ = std::move(*pidfd);
    }
    ReapStage();
    if (child_.pidfd_.valid()) KillAndReap(child_.pidfd_.get());
  }

  // It ends by itself, at once; but it is of a plan that may be hostile.
  void ReapStage() {
    if (!stage_.valid()) return;
    [[maybe_unused]] const auto ended = AwaitReadable(stage_.get(), "stage", MonotonicNs() + kTearDownNs);
    KillAndReap(stage_.get());
    stage_.Reset();
  }

  CompiledPlan plan_;
  const ChildProcess::LaunchOptions& options_;
  ChildProcess child_;
  Fd stage_;
  int stage_pid_ = 0;
  std::optional<base::Error> failed_;  // as stage or child has told
  Fd listener_;
  // What a process waits for that is told before the pid of that process.
  bool time_due_ = false, hooks_due_ = false;
};

Result<ChildProcess> ChildProcess::Launch(Zygote& zygote, CompiledPlan plan, std::vector<Fd> sources,
                                          const LaunchOptions& options) {
  return Launcher(std::move(plan), options).Run(zygote, std::move(sources));
}

ChildProcess ChildProcess::Attach(int pid, Fd pidfd, Fd connection, std::string program,
                                  std::function<Result<>(int pid, Fd listener)> listener, bool asked) {
  ChildProcess child;
  child.asked_ = asked;
  child.listener_ = std::move(listener);
  child.pid_ = pid;
  child.pidfd_ = std::move(pidfd);
  child.sync_ = std::move(connection);
  // Fails for what is no socket, and that receives nothing either.
  [[maybe_unused]] const bool limited = LimitReceive(child.sync_.get());
  child.program_ = std::move(program);
  return child;
}

Result<> ChildProcess::Signal(int signal) const {
  if (syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0) != 0) {
    return ErrnoError("pidfd_send_signal", std::to_string(pid_), "signal " + std::to_string(signal));
  }
  return {};
}

void ChildProcess::Kill() { KillAndReap(pidfd_.get()); }

Result<> ChildProcess::Start(int64_t deadline_ns) {
  const auto asked = Continue(sync_.get(), program_);
  // A process that has failed meanwhile has told why.
  if (!asked && asked.error().err != EPIPE) return asked;
  std::optional<ReportMessage> report;
  for (;;) {
    Fd fd;
    // The socket closes by execve; anything said before is a failure, or comes with a listener.
    GCS_ASSIGN(report, ReceiveReport(sync_.get(), fd, deadline_ns));
    if (!report || report->report != Report::kListener) break;
    GCS_TRY(Launcher::HandOver(*this, std::move(fd)));
  }
  sync_.Reset();
  if (!report) return asked_ ? Result<>() : asked;
  const bool hook = report->step == Step::kStartContainerHook && report->index < start_hooks_.size();
  return MakeError(report->err == 0 ? EIO : report->err, StepName(report->step),
                   hook ? start_hooks_[report->index] : program_);
}

Result<Fd> MakeUserNamespace(Zygote& zygote, const std::vector<IdMapping>& uids,
                             const std::vector<IdMapping>& gids, int64_t deadline_ns) {
  GCS_ASSIGN(SyncPair sync, MakeSync("user namespace"));
  PlanBuilder builder;
  builder.header().flags = kPlanStaged | kPlanHolder;
  builder.header().sync_fd = kFdSync;
  const std::array<int, 1> fds{sync.theirs.get()};
  GCS_TRY(zygote.Spawn(builder.Finish(), fds));
  sync.theirs.Reset();
  Fd pidfd;
  int pid = 0;
  bool ready = false;
  std::optional<base::Error> failed;
  while (!failed && (!pidfd || !ready)) {
    Fd fd;
    const auto report = ReceiveReport(sync.ours.get(), fd, deadline_ns);
    if (!report) {
      failed = report.error();
    } else if (!*report) {
      failed = base::Error{"make user namespace", ECHILD, {}, {}};
    } else if ((*report)->report == Report::kSpawned) {
      pid = (*report)->pid;
      auto own = OwnChild(pid, std::move(fd));
      if (own) {
        pidfd = std::move(*own);
      } else {
        failed = own.error();
      }
    } else if ((*report)->report == Report::kReady) {
      ready = true;
    } else {
      failed = base::Error{std::string(StepName((*report)->step)), (*report)->err, "user namespace", {}};
    }
  }
  // It may have been cloned all the same, and nobody else reaps it.
  if (failed) shutdown(sync.ours.get(), SHUT_WR);
  const int64_t patience = MonotonicNs() + kTearDownNs;
  while (failed && !pidfd) {
    Fd fd;
    const auto report = ReceiveReport(sync.ours.get(), fd, patience);
    if (!report || !*report) break;
    if ((*report)->report != Report::kSpawned) continue;
    auto own = OwnChild((*report)->pid, std::move(fd));
    if (!own) break;
    pidfd = std::move(*own);
  }
  Result<Fd> ns = failed ? std::unexpected(*failed) : Result<Fd>(Fd());
  const std::string proc = "/proc/" + std::to_string(pid);
  const auto write_map = [&](const char* file, const std::vector<IdMapping>& mappings) {
    std::string text;
    for (const IdMapping& m : mappings) {
      text += std::to_string(m.container_id) + " " + std::to_string(m.host_id) + " " +
              std::to_string(m.size) + "\n";
    }
    if (!ns) return;
    // All lines in one write, as the kernel wants.
    if (auto written = base::WriteFile(proc + file, text); !written) {
      ns = MakeError(written.error().err, "write id map", file + 1,
                     "ranges that overlap or are not to be had");
    }
  };
  write_map("/uid_map", uids);
  write_map("/gid_map", gids);
  if (ns) ns = base::OpenFile(proc + "/ns/user", O_RDONLY);
  if (pidfd.valid()) KillAndReap(pidfd.get());
  return ns;
}

}  // namespace gcs::engine
