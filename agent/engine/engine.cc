// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/capability.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/clock.h"
#include "base/paths.h"
#include "engine/source_mount.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::MonotonicNs;
using base::Result;

namespace {

constexpr int64_t kTearDownNs = 10 * base::kNsPerSec;

class Stopwatch {
 public:
  explicit Stopwatch(std::vector<Timing>* timings) : timings_(timings), last_(MonotonicNs()) {}
  void Lap(std::string step) {
    const int64_t now = MonotonicNs();
    if (timings_ != nullptr) timings_->push_back({std::move(step), now - last_});
    last_ = now;
  }

 private:
  std::vector<Timing>* timings_;
  int64_t last_;
};

// One report from the child or zygote; `fd` gets the descriptor that came with it. Nothing: the other side
// closed the socket.
Result<std::optional<ReportMessage>> ReceiveReport(int sync, Fd& fd, int64_t deadline_ns) {
  for (;;) {
    const int64_t left = deadline_ns - MonotonicNs();
    if (left <= 0) return MakeError(ETIMEDOUT, "wait for container process");
    pollfd poll_fd{sync, POLLIN, 0};
    const int ready =
        poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left / base::kNsPerMs + 1, 60'000)));
    if (ready < 0 && errno != EINTR) return ErrnoError("poll", "sync socket");
    if (ready > 0) break;
  }
  ReportMessage message;
  iovec iov{&message, sizeof message};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  const ssize_t n = recvmsg(sync, &header, MSG_CMSG_CLOEXEC);
  // ECONNRESET: the child ended with something of ours unread.
  if (n == 0 || (n < 0 && errno == ECONNRESET)) return std::nullopt;
  if (n < 0) return ErrnoError("recvmsg", "sync socket");
  const cmsghdr* part = CMSG_FIRSTHDR(&header);
  if (part != nullptr && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
    int received = -1;
    memcpy(&received, CMSG_DATA(part), sizeof received);
    fd.Reset(received);
  }
  if (n != sizeof message) return MakeError(EPROTO, "receive report", "sync socket");
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
  while (waitid(static_cast<idtype_t>(P_PIDFD), pidfd, &info, WEXITED) != 0 && errno == EINTR) {
  }
}

uint64_t OwnCapabilities() {
  uint64_t set = 0;
  const cap_t caps = cap_get_proc();
  if (caps == nullptr) return 0;
  for (cap_value_t cap = 0; cap < 64; ++cap) {
    cap_flag_value_t value = CAP_CLEAR;
    if (cap_get_flag(caps, cap, CAP_PERMITTED, &value) == 0 && value == CAP_SET) set |= uint64_t{1} << cap;
  }
  cap_free(caps);
  return set;
}

bool Within(const std::string& path, const std::string& directory) {
  return path == directory || path.starts_with(directory + "/");
}

}  // namespace

bool ValidId(std::string_view id) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '+' || c == '-';
  };
  return !id.empty() && id.size() <= 1024 && allowed(id[0]) &&
         std::ranges::all_of(id, [&](char c) { return allowed(c) || c == '.'; });
}

Result<> ChildProcess::Signal(int signal) const {
  if (syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0) != 0) {
    return ErrnoError("pidfd_send_signal", std::to_string(pid_), "signal " + std::to_string(signal));
  }
  return {};
}

Result<> ChildProcess::Start(int64_t deadline_ns) {
  const char start = 1;
  if (send(sync_.get(), &start, sizeof start, MSG_NOSIGNAL) != sizeof start)
    return ErrnoError("start process", program_);
  Fd none;
  // The socket closes by execve; anything said before is a failure.
  GCS_ASSIGN(const auto report, ReceiveReport(sync_.get(), none, deadline_ns));
  sync_.Reset();
  if (!report) return {};
  return MakeError(report->err == 0 ? EIO : report->err, StepName(report->step), program_);
}

Engine::Engine(Options options, std::unique_ptr<Zygote> zygote, CgroupRoot cgroups)
    : options_(std::move(options)), zygote_(std::move(zygote)), cgroups_(std::move(cgroups)) {}

Result<std::unique_ptr<Engine>> Engine::Create(Options options, std::unique_ptr<Zygote> zygote) {
  GCS_ASSIGN(CgroupRoot cgroups, CgroupRoot::Open(options.cgroup_mount));
  std::unique_ptr<Engine> engine(new Engine(std::move(options), std::move(zygote), std::move(cgroups)));
  engine->available_caps_ = OwnCapabilities();
  GCS_ASSIGN(const std::string last_cap, base::ReadFile("/proc/sys/kernel/cap_last_cap"));
  engine->last_cap_ = static_cast<uint32_t>(strtoul(last_cap.c_str(), nullptr, 10));
  return engine;
}

Result<std::string> Engine::CgroupPath(const std::string& id, const std::string& configured) const {
  std::string path = options_.cgroup_parent + "/" + id;
  if (!configured.empty()) {
    // ".." is resolved against the tree's root, so it can't lead anywhere else.
    path = configured[0] == '/' ? CleanPath(configured) : options_.cgroup_parent + CleanPath(configured);
  }
  const bool reserved = std::ranges::any_of(options_.reserved_cgroups,
                                            [&](const std::string& own) { return Within(path, own); });
  if (path == "/" || path == options_.cgroup_parent || reserved) {
    return MakeError(EPERM, "make cgroup", "linux.cgroupsPath", path + " is not for containers");
  }
  return path;
}

Result<ChildProcess> Engine::Launch(CompiledPlan plan, std::vector<Fd> sources, const Cgroup& cgroup,
                                    const ChildStdio& stdio, int target_pidfd, int64_t deadline_ns) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoError("socketpair", plan.program);
  ChildProcess child;
  child.sync_ = Fd(pair[0]);
  child.program_ = plan.program;
  Fd theirs(pair[1]);
  std::vector<int> fds(kFdFirstSource, theirs.get());
  if (!plan.terminal) {
    if (stdio.in < 0 || stdio.out < 0 || stdio.err < 0)
      return MakeError(EBADF, "launch", plan.program, "standard streams");
    fds[kFdStdin] = stdio.in;
    fds[kFdStdin + 1] = stdio.out;
    fds[kFdStdin + 2] = stdio.err;
  }
  fds[kFdCgroup] = cgroup.fd();
  if (target_pidfd >= 0) fds.push_back(target_pidfd);
  for (const Fd& source : sources) fds.push_back(source.get());
  GCS_TRY(zygote_->Spawn(plan.builder.Finish(), fds));
  theirs.Reset();
  sources.clear();

  const auto fail = [&](base::Error error) -> std::unexpected<base::Error> {
    // The zygote answers every plan; a child whose pid comes late must be reaped as well.
    const int64_t patience = MonotonicNs() + kTearDownNs;
    while (!child.pidfd_.valid()) {
      Fd fd;
      const auto report = ReceiveReport(child.sync_.get(), fd, patience);
      if (!report || !*report || ((*report)->report == Report::kFailed && (*report)->step <= Step::kClone))
        break;
      if ((*report)->report == Report::kSpawned) child.pidfd_ = std::move(fd);
    }
    if (child.pidfd_.valid()) KillAndReap(child.pidfd_.get());
    return std::unexpected(std::move(error));
  };
  // Child and zygote report independently, so the child may be ready, or have failed, before the zygote has
  // told its pid.
  std::optional<base::Error> failed;
  bool ready = false;
  while (!child.pidfd_.valid() || (!ready && !failed)) {
    Fd fd;
    const auto report = ReceiveReport(child.sync_.get(), fd, deadline_ns);
    if (!report) return fail(report.error());
    if (!*report)
      return fail(failed.value_or(
          base::Error{"launch", ECHILD, plan.program, "the process ended before it was ready"}));
    switch ((*report)->report) {
      case Report::kSpawned: {
        child.pid_ = (*report)->pid;
        child.pidfd_ = std::move(fd);
        // The zygote shares the agent's protection from the OOM killer; a container must not.
        const std::string path = "/proc/" + std::to_string(child.pid_) + "/oom_score_adj";
        auto set = base::WriteFile(path, std::to_string(plan.oom_score_adj));
        // A child that has failed may be gone already.
        if (!set && !failed && set.error().err != ESRCH && set.error().err != ENOENT)
          return fail(set.error());
        break;
      }
      case Report::kConsole:
        child.console_ = std::move(fd);
        break;
      case Report::kReady:
        ready = true;
        break;
      case Report::kFailed:
        failed = StepError(plan, **report);
        // Up to the clone there is no child to wait for.
        if ((*report)->step <= Step::kClone) return std::unexpected(*failed);
        break;
    }
  }
  if (failed) return fail(*failed);
  return child;
}

Result<EngineContainer> Engine::CreateContainer(const std::string& id, Spec spec, const ChildStdio& stdio,
                                                bool allow_vsock, int64_t deadline_ns) {
  if (!ValidId(id)) return MakeError(EINVAL, "create container", id.substr(0, 64), "bad container id");
  std::vector<Timing> timings;
  Stopwatch watch(&timings);
  std::shared_ptr<const SeccompFilter> seccomp;
  if (spec.seccomp) {
    GCS_ASSIGN(seccomp, seccomp_.Get(*spec.seccomp));
  }
  CompileOptions options{.container_id = id,
                         .vsock_guard = options_.vsock_guard && !allow_vsock,
                         .available_caps = available_caps_,
                         .last_cap = last_cap_};
  GCS_ASSIGN(CompiledPlan plan, CompileCreate(spec, options, seccomp));
  GCS_ASSIGN(const std::string cgroup_path, CgroupPath(id, spec.cgroups_path));
  watch.Lap("plan");

  GCS_ASSIGN(Cgroup cgroup, Cgroup::Create(cgroups_, cgroup_path));
  const auto undo = [&](base::Error error) -> std::unexpected<base::Error> {
    if (auto killed = cgroup.Kill(); killed) {
      // The first error is what the caller needs; a cgroup that can't be removed stays visible in the tree.
      [[maybe_unused]] const auto removed = cgroup.Remove(MonotonicNs() + kTearDownNs);
    }
    return std::unexpected(std::move(error));
  };
  if (auto applied = cgroup.Apply(spec.resources); !applied) return undo(applied.error());
  if (auto filtered = cgroup.SetDevices(spec.resources.devices); !filtered) return undo(filtered.error());
  watch.Lap("cgroup");

  std::vector<Fd> sources;
  for (const PlanSource& source : plan.sources) {
    auto opened = OpenSource(source, cgroup.fd());
    if (!opened) return undo(opened.error());
    sources.push_back(std::move(*opened));
  }
  watch.Lap("sources");
  auto child = Launch(std::move(plan), std::move(sources), cgroup, stdio, -1, deadline_ns);
  if (!child) return undo(child.error());
  watch.Lap("launch");

  uint32_t namespaces = 0;
  // The pid namespace is the zygote's business at exec, see zygote.cc.
  for (const Namespace& ns : spec.namespaces) {
    if (ns.flag != CLONE_NEWPID) namespaces |= static_cast<uint32_t>(ns.flag);
  }
  return EngineContainer{.id = id,
                         .spec = std::move(spec),
                         .cgroup = std::move(cgroup),
                         .init = std::move(*child),
                         .namespaces = namespaces,
                         .seccomp = std::move(seccomp),
                         .options = std::move(options),
                         .timings = std::move(timings)};
}

Result<ChildProcess> Engine::Exec(const EngineContainer& container, const Process& process,
                                  const ChildStdio& stdio, int64_t deadline_ns, std::vector<Timing>* timings,
                                  int init_pidfd) {
  Stopwatch watch(timings);
  const int target = init_pidfd >= 0 ? init_pidfd : container.init.pidfd();
  if (target < 0) return MakeError(ESRCH, "exec", container.id, "no first process");
  GCS_ASSIGN(CompiledPlan plan,
             CompileExec(process, container.namespaces, container.options, container.seccomp));
  watch.Lap("plan");
  auto child = Launch(std::move(plan), {}, container.cgroup, stdio, target, deadline_ns);
  watch.Lap("launch");
  return child;
}

Result<> Engine::Destroy(EngineContainer& container, int64_t deadline_ns) {
  // Most containers leave nothing behind their first process.
  if (container.cgroup.RemoveIfEmpty()) return {};
  GCS_TRY(container.cgroup.Kill());
  return container.cgroup.Remove(deadline_ns);
}

}  // namespace gcs::engine
