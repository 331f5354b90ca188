// SPDX-License-Identifier: Apache-2.0
#include "init/supervisor.h"

#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <limits>

#include "base/clock.h"
#include "base/init_control.h"
#include "init/klog.h"
#include "init/shutdown.h"

namespace gcs::init {

namespace {

// What signals give: whoever sends them (a power-off program, the kernel's orderly_poweroff) names no time.
constexpr int64_t kSignalGraceNs = 2 * base::kNsPerSec;
constexpr uint64_t kMostGraceMs = 60'000;
// Between two looks at everything else, so that a storm of orphans cannot keep init from its other duties.
constexpr int kReapsPerRound = 256;

sigset_t HandledSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int sig : {SIGCHLD, SIGTERM, SIGPWR, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) sigaddset(&set, sig);
  return set;
}

uint32_t Clamped(int64_t value) {
  return static_cast<uint32_t>(std::clamp<int64_t>(value, 0, std::numeric_limits<uint32_t>::max()));
}
uint32_t Milliseconds(const timeval& time) { return Clamped(time.tv_sec * 1000 + time.tv_usec / 1000); }

}  // namespace

Supervisor::Supervisor(const Table& table, const BootConfig& config, const Cgroups& cgroups)
    : table_(table), config_(config) {
  services_.reserve(2);
  services_.emplace_back(Service::Kind::kAgent, "gcs", config.agent, cgroups.agent.get());
  if (!config.console.empty()) {
    services_.emplace_back(Service::Kind::kConsole, "console", std::vector<std::string>{config.console},
                           cgroups.init.get());
  }
}

base::Result<> Supervisor::Open() {
  const sigset_t handled = HandledSignals();
  if (sigprocmask(SIG_SETMASK, &handled, nullptr) != 0) return base::ErrnoError("sigprocmask");
  signals_.Reset(signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) return base::ErrnoError("signalfd");
  rlimit inherited{};
  store_.set_most(RaiseFileLimit(inherited));
  for (Service& service : services_) {
    service.set_file_limit(inherited);
    GCS_TRY(service.Open());
  }
  return {};
}

void Supervisor::Run() {
  for (;;) {
    StartDue();
    std::vector<pollfd> watched = {{.fd = signals_.get(), .events = POLLIN, .revents = 0}};
    for (const Service& service : services_) {
      // A negative descriptor is skipped by poll.
      watched.push_back({.fd = service.control_fd(), .events = POLLIN, .revents = 0});
      watched.push_back(
          {.fd = const_cast<Service&>(service).output().read_fd(), .events = POLLIN, .revents = 0});
    }
    if (poll(watched.data(), watched.size(), PollTimeoutMs()) < 0) continue;
    for (size_t i = 0; i < services_.size(); ++i) {
      if (watched[2 + 2 * i].revents != 0) services_[i].output().Pump();
      if (watched[1 + 2 * i].revents != 0) TakeControl(services_[i]);
    }
    if (watched[0].revents != 0) TakeSignals();
    Reap();
  }
}

void Supervisor::StartDue() {
  const int64_t now = base::MonotonicNs();
  for (Service& service : services_) {
    if (service.pid() != 0 || service.next_start_ns() > now) continue;
    const auto started = service.Start();
    if (!started) service.OnFailedStart(started.error());
  }
}

int Supervisor::PollTimeoutMs() const {
  if (more_to_reap_) return 0;
  int64_t due = std::numeric_limits<int64_t>::max();
  for (const Service& service : services_) {
    if (service.pid() == 0) due = std::min(due, service.next_start_ns());
  }
  if (due == std::numeric_limits<int64_t>::max()) return -1;
  const int64_t left = due - base::MonotonicNs();
  return left <= 0 ? 0 : static_cast<int>(left / base::kNsPerMs + 1);
}

void Supervisor::Reap() {
  more_to_reap_ = false;
  for (int i = 0; i < kReapsPerRound; ++i) {
    int status = 0;
    rusage usage{};
    const pid_t pid = wait4(-1, &status, WNOHANG | __WALL, &usage);
    if (pid <= 0) return;
    store_.NoteExit(pid, {.status = status,
                          .max_rss_kib = Clamped(usage.ru_maxrss),
                          .user_ms = Milliseconds(usage.ru_utime),
                          .system_ms = Milliseconds(usage.ru_stime)});
    for (Service& service : services_) {
      if (service.pid() != pid) continue;
      const base::Fd line = service.TakeControlFd();
      service.OnExit(status, !ending_);
      if (line && !ending_) TakeLeft(service, line.get());
    }
  }
  more_to_reap_ = true;
}

void Supervisor::TakeSignals() {
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == sizeof info) {
    switch (info.ssi_signo) {
      case SIGTERM:
      case SIGPWR:
      case SIGUSR1:  // what busybox's halt and poweroff send
      case SIGUSR2:
        End(config_.power_off, kSignalGraceNs);
      case SIGINT:  // also Ctrl-Alt-Del
        End(EndAction::kReboot, kSignalGraceNs);
      default:
        break;  // SIGCHLD: Reap() follows; the others have no meaning and must not end PID 1
    }
  }
}

void Supervisor::TakeControl(Service& service) {
  if (TakePacket(service, service.control_fd())) return;
  // The agent has closed its end, or is about to be reaped.
  pollfd state{.fd = service.control_fd(), .events = POLLRDHUP, .revents = 0};
  if (poll(&state, 1, 0) > 0) TakeLeft(service, service.TakeControlFd().get());
}

// What the agent had sent before it ended, for the next one to find it done. Nothing comes after it, even
// from a process that has a copy of its end.
void Supervisor::TakeLeft(Service& service, int line) {
  shutdown(line, SHUT_RD);
  while (TakePacket(service, line)) continue;
}

bool Supervisor::TakePacket(Service& service, int line) {
  auto packet = base::ReceiveInit(line, MSG_DONTWAIT);
  // ECONNRESET comes once, before what is left, when the agent has gone without reading its replies.
  if (!packet) return packet.error().err == EINTR || packet.error().err == ECONNRESET;
  if (packet->size == 0) {
    // An empty packet looks like the end.
    int left = 0;
    if (ioctl(line, SIOCINQ, &left) != 0 || left == 0) return false;
  }
  const base::InitMessage& message = packet->message;
  if (packet->size != sizeof message || message.magic != base::kInitMagic) {
    if (service.TakeComplaint()) {
      Log(Priority::kWarning,
          "malformed control packet of " + std::to_string(packet->size) + " bytes from " + service.name());
    }
    return true;
  }
  if (store_.Serve(line, *packet)) return true;
  packet->fds.clear();
  base::InitMessage reply{.op = message.op | base::kInitReply, .id = message.id};
  switch (static_cast<base::InitOp>(message.op)) {
    case base::InitOp::kHello:
      reply.arg = service.starts();
      reply.arg2 = static_cast<uint32_t>(service.last_status());
      break;
    case base::InitOp::kPowerOff:
    case base::InitOp::kReboot:
      break;
    default:
      reply.status = EOPNOTSUPP;
      if (service.TakeComplaint()) {
        Log(Priority::kWarning,
            "unknown control request " + std::to_string(message.op) + " from " + service.name());
      }
  }
  // Without waiting: an agent that does not read its replies loses them.
  [[maybe_unused]] const auto sent = base::SendInit(line, reply, {}, {}, MSG_DONTWAIT);
  const auto grace_ns = static_cast<int64_t>(std::min(message.arg, kMostGraceMs)) * base::kNsPerMs;
  if (message.op == static_cast<uint32_t>(base::InitOp::kPowerOff)) End(config_.power_off, grace_ns);
  if (message.op == static_cast<uint32_t>(base::InitOp::kReboot)) End(EndAction::kReboot, grace_ns);
  return true;
}

void Supervisor::End(EndAction action, int64_t grace_ns) {
  ending_ = true;
  Shutdown(table_, {.action = action,
                    .grace_ns = grace_ns,
                    .agent = services_.front().pid(),
                    .meanwhile =
                        [this] {
                          for (Service& service : services_) service.output().Pump();
                          Reap();
                        },
                    // Its files keep mounts busy.
                    .release = [this] { store_.Clear(); }});
}

}  // namespace gcs::init
