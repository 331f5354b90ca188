// SPDX-License-Identifier: Apache-2.0
// A program in the agent's place for tests of init: does what its flags say, in the order below, then waits.
// What it finds out goes to stderr, one "standin KEY VALUE" on a line.
//   --hello         says hello to init
//   --look          tells of its surroundings
//   --garbage       sends packets to init that are no messages
//   --store         on its first start leaves descriptors in init's store and drops one of them, without
//   waiting, and
//                   aborts; on the second tells what is there
//   --store-late    the same, and another process goes on sending meanwhile
//   --deaf          ignores SIGTERM
//   --orphans=N     leaves N processes behind that end at once
//   --linger=MS     leaves one process behind that ignores SIGTERM for so long
//   --crash-until=N aborts unless this is at least its Nth start
//   --end=poweroff|reboot [--grace=MS]  asks init to end the machine
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/init_control.h"
#include "base/paths.h"

namespace {

using gcs::base::CallInit;
using gcs::base::InitMessage;
using gcs::base::InitOp;

void Say(const std::string& key, const std::string& value) {
  const std::string line = "standin " + key + " " + value + "\n";
  [[maybe_unused]] const ssize_t n = write(2, line.data(), line.size());
}

std::string FirstLine(const std::string& path) {
  const auto text = gcs::base::ReadFile(path);
  if (!text) return text.error().ToString();
  return text->substr(0, text->find('\n'));
}

void SayFile(const std::string& key, const std::string& path) { Say(key, FirstLine(path)); }

std::string OpenDescriptors() {
  std::string all;
  for (int fd = 0; fd < 1024; ++fd) {
    if (fcntl(fd, F_GETFD) < 0) continue;
    if (!all.empty()) all += ",";
    all += std::to_string(fd);
  }
  return all;
}

// pivot_root(2) as a container engine does it, in a mount namespace of its own.
std::string TryPivot() {
  const pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWNS) != 0) _exit(errno);
    if (!gcs::base::MakeDirs("/tmp/pivot", 0755)) _exit(errno);
    if (syscall(SYS_mount, nullptr, "/", nullptr, 0x44000UL /* MS_REC | MS_PRIVATE */, nullptr) != 0)
      _exit(errno);
    if (syscall(SYS_mount, "pivot", "/tmp/pivot", "tmpfs", 0UL, nullptr) != 0) _exit(errno);
    if (chdir("/tmp/pivot") != 0 || syscall(SYS_pivot_root, ".", ".") != 0) _exit(errno);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? gcs::base::ErrnoName(WEXITSTATUS(status)) : "signal";
}

void Look() {
  Say("pid-1", std::to_string(getppid() == 1) + " sid " + std::to_string(getsid(0) == getpid()));
  Say("fds", OpenDescriptors());
  sigset_t mask;
  sigprocmask(SIG_SETMASK, nullptr, &mask);
  Say("signals-blocked", std::to_string(!sigisemptyset(&mask)));
  Say("sigpipe-default", std::to_string(signal(SIGPIPE, SIG_DFL) == SIG_DFL));
  SayFile("cgroup", "/proc/self/cgroup");
  SayFile("init-cgroup", "/proc/1/cgroup");
  SayFile("oom", "/proc/self/oom_score_adj");
  SayFile("hostname", "/proc/sys/kernel/hostname");
  SayFile("controllers", "/sys/fs/cgroup/containers/cgroup.subtree_control");
  SayFile("memory-min", "/sys/fs/cgroup/gcs/memory.min");
  SayFile("loopback", "/sys/class/net/lo/operstate");
  SayFile("vsock-module", "/sys/module/vmw_vsock_virtio_transport/initstate");
  Say("root-write",
      open("/written", O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0 ? gcs::base::ErrnoName(errno) : "done");
  Say("exe-write", open("/proc/1/exe", O_WRONLY | O_CLOEXEC) < 0 ? gcs::base::ErrnoName(errno) : "done");
  Say("run-write",
      open("/run/written", O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0 ? gcs::base::ErrnoName(errno) : "done");
  Say("pivot", TryPivot());
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  Say("nofile", std::to_string(limit.rlim_cur) + " " + std::to_string(limit.rlim_max));
  const auto boot = gcs::base::ReadFile("/run/gcs/boot");
  std::string phases = boot ? *boot : boot.error().ToString();
  for (char& c : phases) c = c == '\n' ? ';' : c;
  Say("boot", phases);
  Say("now", std::to_string(gcs::base::BoottimeNs()));
  if (const auto mounts = gcs::base::ReadFile("/proc/self/mountinfo")) {
    for (size_t at = 0, end; (end = mounts->find('\n', at)) != std::string::npos; at = end + 1) {
      Say("mount", mounts->substr(at, end - at));
    }
  }
  SayFile("meminfo", "/proc/meminfo");
}

void SendGarbage(int init) {
  const std::string kinds[] = {"x", std::string(32, 'x'), std::string(31, '\0'), std::string(4096, 'y')};
  for (const std::string& kind : kinds) send(init, kind.data(), kind.size(), MSG_NOSIGNAL);
  InitMessage unknown{.op = 77};
  send(init, &unknown, sizeof unknown, MSG_NOSIGNAL);
  const ssize_t n = recv(init, &unknown, sizeof unknown, 0);
  Say("unknown-op", n == sizeof unknown ? gcs::base::ErrnoName(unknown.status) : "no reply");
  // Descriptors where none are wanted: the read end tells whether init keeps the other.
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) abort();
  const std::array stray{ends[1]};
  unknown = {.op = static_cast<uint32_t>(InitOp::kHello)};
  Say("stray", CallInit(init, unknown, stray) ? "answered" : "refused");
  unknown = {.magic = 0};
  if (!gcs::base::SendInit(init, unknown, {}, stray, 0)) abort();
  unknown = {.op = static_cast<uint32_t>(InitOp::kStorePut)};
  Say("put-none", CallInit(init, unknown, {}).error().ToString());
  close(ends[1]);
  char byte;
  Say("stray-end", read(ends[0], &byte, 1) == 0 ? "closed" : "open");
}

void UseStore(int init, uint64_t starts, bool late) {
  const auto send_op = [&](InitOp op, uint64_t arg, uint64_t arg2, std::span<const int> fds) {
    const auto sent =
        gcs::base::SendInit(init, {.op = static_cast<uint32_t>(op), .arg = arg, .arg2 = arg2}, {}, fds, 0);
    if (!sent) Say("store", sent.error().ToString());
  };
  if (starts == 1) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0 || write(ends[1], "kept", 4) != 4) abort();
    // A process that has a copy of our end of the line, and goes on sending after our end.
    if (late && fork() == 0) {
      usleep(50'000);
      for (int i = 0; i < 1000 && send(init, "late", 4, MSG_NOSIGNAL | MSG_DONTWAIT) == 4; ++i) usleep(100);
      _exit(0);
    }
    const std::array first{ends[0], ends[1], ends[1]};
    send_op(InitOp::kStorePut, 10, 0, first);
    // More than init reads in the time, with replies that nobody reads.
    const std::array one{ends[0]};
    for (uint64_t i = 0; i < 40; ++i) send_op(InitOp::kStorePut, 100 + i, 0, one);
    send_op(InitOp::kStoreDrop, 11, 2, {});
    abort();
  }
  InitMessage take{.op = static_cast<uint32_t>(InitOp::kStoreTake)};
  std::string keys;
  std::vector<gcs::base::Fd> fds;
  do {
    auto reply = CallInit(init, take, {});
    if (!reply) return Say("store", reply.error().ToString());
    for (size_t i = 0; i < reply->fds.size(); ++i) keys += std::to_string(reply->keys[i]) + " ";
    for (auto& fd : reply->fds) fds.push_back(std::move(fd));
    take.arg = reply->message.arg2;
  } while (take.arg != 0);
  Say("store", keys);
  char text[8] = {};
  const ssize_t n = fds.empty() ? -1 : read(fds[0].get(), text, sizeof text);
  const ssize_t end = fds.empty() ? -1 : read(fds[0].get(), text + 4, 1);
  Say("store-read", (n == 4 ? std::string(text, 4) : std::to_string(n)) + " then " + std::to_string(end));
}

void LeaveOrphans(int count) {
  const pid_t middle = fork();
  if (middle == 0) {
    for (int i = 0; i < count; ++i) {
      if (fork() == 0) _exit(0);
    }
    _exit(0);
  }
  waitpid(middle, nullptr, 0);
  // All of them, as zombies do not vanish unless somebody takes them: one that stays is seen here.
  int left = -1;
  for (int tries = 0; tries < 100 && left != 0; ++tries) {
    usleep(20'000);
    left = 0;
    for (pid_t pid = 2; pid < getpid() + count + 64; ++pid) {
      const auto stat = gcs::base::ReadFile("/proc/" + std::to_string(pid) + "/stat");
      if (stat && stat->find(") Z 1 ") != std::string::npos) ++left;
    }
  }
  Say("zombies", std::to_string(left));
}

void Linger(int ms) {
  int ready[2];
  if (pipe(ready) != 0) abort();
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGTERM, SIG_IGN);
    setsid();
    // Out of the agent's cgroup, where processes are spared; where there are no cgroups, init knows the agent
    // alone.
    if (mkdir("/sys/fs/cgroup/containers/one", 0755) == 0) {
      const auto moved = gcs::base::WriteFile("/sys/fs/cgroup/containers/one/cgroup.procs", "0");
      if (!moved) Say("linger", moved.error().ToString());
    }
    close(ready[0]);
    close(ready[1]);
    usleep(static_cast<useconds_t>(ms) * 1000);
    _exit(0);
  }
  close(ready[1]);
  char none;
  [[maybe_unused]] const ssize_t n = read(ready[0], &none, 1);  // ends when the child is where it should be
  close(ready[0]);
}

}  // namespace

int main(int argc, char** argv) {
  const char* variable = getenv(gcs::base::kInitFdVariable);
  const int init = variable != nullptr ? static_cast<int>(strtol(variable, nullptr, 10)) : -1;
  uint64_t starts = 0;
  if (const auto hello = CallInit(init, InitOp::kHello)) {
    starts = hello->arg;
    Say("hello", std::to_string(hello->arg) + " " + std::to_string(hello->arg2));
  } else {
    Say("hello", hello.error().ToString());
  }
  uint64_t grace = 0;
  InitOp end{};
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&](const char* name) {
      const std::string prefix = std::string("--") + name + "=";
      return flag.starts_with(prefix) ? argv[i] + prefix.size() : nullptr;
    };
    Say("flag", flag);
    if (flag == "--look") Look();
    if (flag == "--deaf") signal(SIGTERM, SIG_IGN);
    if (flag == "--garbage") SendGarbage(init);
    if (flag == "--store" || flag == "--store-late") UseStore(init, starts, flag == "--store-late");
    if (const char* count = value("orphans")) LeaveOrphans(static_cast<int>(strtol(count, nullptr, 10)));
    if (const char* ms = value("linger")) Linger(static_cast<int>(strtol(ms, nullptr, 10)));
    if (const char* until = value("crash-until"); until != nullptr && starts < strtoul(until, nullptr, 10))
      abort();
    if (const char* ms = value("grace")) grace = strtoul(ms, nullptr, 10);
    if (const char* how = value("end"))
      end = strcmp(how, "reboot") == 0 ? InitOp::kReboot : InitOp::kPowerOff;
  }
  if (end != InitOp{}) {
    // As an agent that finishes its replies before it goes.
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, nullptr);
    const auto ended = CallInit(init, end, grace);
    Say("end", ended ? "accepted" : ended.error().ToString());
    sigprocmask(SIG_UNBLOCK, &term, nullptr);
  }
  for (;;) pause();
}
