// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "base/clock.h"
#include "base/paths.h"
#include "engine/cli/cli.h"
#include "engine/send_fd.h"

namespace gcs::oci {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

int64_t Deadline(int64_t seconds) { return base::MonotonicNs() + seconds * base::kNsPerSec; }

Result<std::unique_ptr<engine::Engine>> MakeEngine(std::unique_ptr<engine::Zygote> zygote) {
  engine::Engine::Options options;
  options.cgroup_mount = kCgroupMount;
  options.cgroup_parent = "";
  options.reserved_cgroups = {};
  options.vsock_guard = false;
  options.oom_score_adj = std::nullopt;
  return engine::Engine::Create(options, std::move(zygote));
}

Result<Loaded> Load(const Global& global, const std::string& id, Access access) {
  // The longest of what others may be at: a create with its hooks.
  constexpr int64_t kLockSeconds = 310;
  GCS_ASSIGN(Store store, Store::Open(global.root, id, access, Deadline(kLockSeconds)));
  return Load(std::move(store));
}

Result<Loaded> Load(Store store) {
  GCS_ASSIGN(Record record, store.Load());
  GCS_ASSIGN(const std::string config, store.Config());
  GCS_ASSIGN(engine::Spec spec, engine::ParseSpec(config, record.bundle));
  Loaded loaded{.store = std::move(store),
                .record = std::move(record),
                .cgroups = {},
                .container = {.spec = std::move(spec)},
                .pidfd = {}};
  loaded.container.id = loaded.container.options.container_id = loaded.record.id;
  loaded.container.options.bundle = loaded.record.bundle;
  GCS_ASSIGN(loaded.cgroups, engine::CgroupRoot::Open(kCgroupMount));
  auto cgroup = loaded.cgroups->Find(loaded.record.cgroup_path);
  // Only what is not there has no processes to be removed.
  if (!cgroup && cgroup.error().err != ENOENT) return std::unexpected(cgroup.error());
  if (cgroup) loaded.container.cgroup = std::move(*cgroup);
  loaded.container.options.hierarchies = loaded.cgroups->hierarchies();
  if (loaded.record.pid == 0 && loaded.store.Busy()) {
    loaded.status = Status::kCreating;
    return loaded;
  }
  auto process = OpenProcess({loaded.record.pid, loaded.record.start_time}, loaded.record.id);
  if (!process) return loaded;  // stopped
  loaded.pidfd = std::move(*process);
  // A frozen one would not answer.
  if (loaded.container.cgroup != nullptr && loaded.container.cgroup->Frozen()) {
    loaded.status = Status::kPaused;
  } else {
    loaded.status = loaded.store.Connect() ? Status::kCreated : Status::kRunning;
  }
  return loaded;
}

base::Json StateOf(const Loaded& loaded) {
  base::Json state =
      engine::StateObject(loaded.container.spec, loaded.container.options, StatusName(loaded.status),
                          loaded.status == Status::kStopped ? 0 : loaded.record.pid);
  // runc's additions, which others have come to read.
  state["pid"] = loaded.status == Status::kStopped ? 0 : loaded.record.pid;
  state["rootfs"] = loaded.record.rootfs;
  state["created"] = loaded.record.created;
  state["owner"] = loaded.record.owner;
  return state;
}

Result<int> ParseSignal(const std::string& name) {
  int number = 0;
  const auto parsed = std::from_chars(name.data(), name.data() + name.size(), number);
  if (parsed.ec == std::errc() && parsed.ptr == name.data() + name.size()) {
    if (number >= 0 && number <= SIGRTMAX) return number;  // 0 asks whether it lives
    return MakeError(EINVAL, "parse signal", name, "unknown signal");
  }
  std::string text = name;
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::toupper(c); });
  if (text.starts_with("SIG")) text = text.substr(3);
  for (int signal = 1; signal < SIGRTMIN; ++signal) {
    const char* known = sigabbrev_np(signal);
    if (known != nullptr && text == known) return signal;
  }
  return MakeError(EINVAL, "parse signal", name, "unknown signal");
}

Result<UserIds> ParseUser(const std::string& text) {
  const size_t colon = text.find(':');
  const auto number = [&](const std::string& part) -> Result<uint32_t> {
    uint32_t value = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), value);
    if (part.empty() || parsed.ec != std::errc() || parsed.ptr != part.data() + part.size() ||
        value == UINT32_MAX) {
      return MakeError(EINVAL, "parse user", text, "must be UID or UID:GID in decimal");
    }
    return value;
  };
  UserIds ids;
  GCS_ASSIGN(ids.uid, number(text.substr(0, colon)));
  if (colon != std::string::npos) {
    GCS_ASSIGN(ids.gid, number(text.substr(colon + 1)));
  }
  return ids;
}

Result<> WritePidFile(const std::string& path, int pid) {
  if (path.empty()) return {};
  return base::ReplaceFile(path, std::to_string(pid), 0644);
}

Result<> SendConsole(const std::string& path, const Fd& master) {
  return engine::SendDescriptor(path, "/dev/ptmx", master.get(), "send console");
}

Result<> CheckTerminal(bool terminal, const ProcessOptions& options) {
  if (!terminal && !options.console_socket.empty()) {
    return MakeError(EINVAL, "set terminal", "--console-socket", "the process has no terminal");
  }
  if (terminal && options.detach && options.console_socket.empty()) {
    return MakeError(EINVAL, "set terminal", "--console-socket",
                     "cannot allocate tty if runc will detach without setting console socket");
  }
  return {};
}

Result<std::vector<int>> PreservedFds(const ProcessOptions& options, int listened) {
  std::vector<int> fds;
  for (int fd = 3; fd < 3 + listened + options.preserve_fds; ++fd) {
    const int flags = fcntl(fd, F_GETFD);
    if (flags < 0) return ErrnoError("preserve descriptor", std::to_string(fd));
    // One of our own.
    if ((flags & FD_CLOEXEC) != 0) return MakeError(EBADF, "preserve descriptor", std::to_string(fd));
    fds.push_back(fd);
  }
  return fds;
}

void BlockSignals() {
  sigset_t all;
  sigfillset(&all);
  for (const int fatal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) sigdelset(&all, fatal);
  sigprocmask(SIG_BLOCK, &all, nullptr);
}

namespace {

// Our terminal in raw mode for as long as this lives.
class RawMode {
 public:
  RawMode() {
    if (tcgetattr(0, &saved_) != 0) return;
    termios raw = saved_;
    cfmakeraw(&raw);
    active_ = tcsetattr(0, TCSANOW, &raw) == 0;
  }
  ~RawMode() {
    if (active_) tcsetattr(0, TCSANOW, &saved_);
  }
  RawMode(const RawMode&) = delete;
  RawMode& operator=(const RawMode&) = delete;

 private:
  termios saved_{};
  bool active_ = false;
};

void CopySize(int master) {
  winsize size{};
  if (ioctl(0, TIOCGWINSZ, &size) == 0) ioctl(master, TIOCSWINSZ, &size);
}

// One read's worth. False: the end, or an error.
bool Copy(int from, int to) {
  char buffer[16 * 1024];
  const ssize_t n = read(from, buffer, sizeof buffer);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (n <= 0) return false;
  for (ssize_t done = 0; done < n;) {
    const ssize_t written = write(to, buffer + done, static_cast<size_t>(n - done));
    if (written < 0 && errno != EINTR) return false;
    if (written > 0) done += written;
  }
  return true;
}

}  // namespace

Result<int> Attend(int pidfd, Fd master) {
  sigset_t all;
  sigfillset(&all);
  const Fd signals(signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals.valid()) return ErrnoError("signalfd", "signals");
  const std::optional<RawMode> raw = master.valid() ? std::optional<RawMode>(std::in_place) : std::nullopt;
  if (master.valid()) CopySize(master.get());
  bool input = master.valid();
  bool output = master.valid();
  // More than a terminal holds: what a process that stays behind writes on is not waited for.
  int last_reads = 16;
  for (bool ended = false; !ended || (output && last_reads > 0);) {
    pollfd fds[] = {{ended ? -1 : pidfd, POLLIN, 0},
                    {signals.get(), POLLIN, 0},
                    {output ? master.get() : -1, POLLIN, 0},
                    {input && !ended ? 0 : -1, POLLIN, 0}};
    // After the process's end what is left in the terminal is read without waiting for more.
    const int ready = poll(fds, std::size(fds), ended ? 0 : -1);
    if (ready < 0 && errno != EINTR) return ErrnoError("poll", "process");
    if (ready == 0 && ended) break;
    if (fds[0].revents != 0) ended = true;
    if (fds[2].revents != 0) output = Copy(master.get(), 1);
    if (ended) --last_reads;
    if (fds[3].revents != 0) input = Copy(0, master.get());
    signalfd_siginfo info{};
    while (!ended && read(signals.get(), &info, sizeof info) == sizeof info) {
      const auto number = static_cast<int>(info.ssi_signo);
      if (number == SIGWINCH && master.valid()) CopySize(master.get());
      if (number == SIGCHLD || number == SIGPIPE || number == SIGURG || number == SIGWINCH) continue;
      syscall(SYS_pidfd_send_signal, pidfd, number, nullptr, 0);
    }
  }
  siginfo_t info{};
  while (waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED) != 0) {
    if (errno != EINTR) return ErrnoError("waitid", "process");
  }
  return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

}  // namespace gcs::oci
