// SPDX-License-Identifier: Apache-2.0
// init as PID 1 of private namespaces. reboot(2) there ends the namespace and nothing else
// (pid_namespaces(7)): its init dies of SIGINT for a power-off and of SIGHUP for a restart, which is what
// these tests look at.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/paths.h"

namespace {

using gcs::base::Fd;
using gcs::base::kNsPerMs;
using gcs::base::kNsPerSec;
using gcs::base::MonotonicNs;

constexpr int64_t kLimitNs = 30 * kNsPerSec;

ino_t PidNamespace() {
  struct stat st{};
  return stat("/proc/self/ns/pid", &st) == 0 ? st.st_ino : 0;
}

[[noreturn]] void Refuse(const char* what) {
  dprintf(2, "%s: %s\n", what, strerrorname_np(errno));
  _exit(99);
}

void CopyFile(const std::string& from, const std::string& to) {
  const Fd in(open(from.c_str(), O_RDONLY | O_CLOEXEC));
  const Fd out(open(to.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0755));
  if (!in || !out) Refuse(from.c_str());
  while (true) {
    const ssize_t n = copy_file_range(in.get(), nullptr, out.get(), nullptr, 1 << 30, 0);
    if (n == 0) return;
    if (n > 0) continue;
    char buffer[65536];
    const ssize_t got = read(in.get(), buffer, sizeof buffer);
    if (got < 0) Refuse("read");
    if (got == 0) return;
    if (write(out.get(), buffer, static_cast<size_t>(got)) != got) Refuse("write");
  }
}

// In the new namespaces: a root of its own, then init.
[[noreturn]] void BecomeInit(const std::string& directory, ino_t outside, int output,
                             std::vector<std::string> argv) {
  // The one thing that must be true before anything that could end a machine.
  const ino_t inside = PidNamespace();
  if (getpid() != 1 || outside == 0 || inside == 0 || inside == outside) _exit(98);
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) Refuse("make mounts private");
  if (mount("root", directory.c_str(), "tmpfs", 0, "mode=0755") != 0) Refuse("mount root");
  CopyFile(INIT_FOR_TEST, directory + "/init");
  CopyFile(INIT_STANDIN, directory + "/standin");
  if (chdir(directory.c_str()) != 0) Refuse("chdir");
  for (const char* name : {"proc", "dev", "run", "tmp", "sys"}) mkdir(name, 0755);
  if (mknod("dev/null", S_IFCHR | 0666, makedev(1, 3)) != 0) Refuse("mknod");
  if (syscall(SYS_pivot_root, ".", ".") != 0 || umount2(".", MNT_DETACH) != 0 || chdir("/") != 0)
    Refuse("pivot_root");
  dup2(open("/dev/null", O_RDWR), 0);
  dup2(output, 1);
  dup2(output, 2);
  syscall(SYS_close_range, 3, ~0U, 0);
  std::vector<char*> words;
  for (std::string& word : argv) words.push_back(word.data());
  words.push_back(nullptr);
  execv("/init", words.data());
  Refuse("exec /init");
}

// A run of init. Its output is complete once Wait has returned.
class Run {
 public:
  explicit Run(std::vector<std::string> args, const char* name = "init-under-test") {
    args.insert(args.begin(), name);
    char pattern[] = "/tmp/init_test.XXXXXX";
    REQUIRE(mkdtemp(pattern) != nullptr);
    directory_ = pattern;
    int fds[2];
    REQUIRE(pipe2(fds, O_CLOEXEC) == 0);
    read_.Reset(fds[0]);
    Fd write_end(fds[1]);
    const ino_t outside = PidNamespace();
    clone_args clone{};
    clone.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP;
    clone.exit_signal = SIGCHLD;
    begin_ns_ = MonotonicNs();
    pid_ = static_cast<pid_t>(syscall(SYS_clone3, &clone, sizeof clone));
    if (pid_ == 0) BecomeInit(directory_, outside, write_end.get(), std::move(args));
    REQUIRE(pid_ > 0);
  }
  ~Run() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    rmdir(directory_.c_str());
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Reads until `text` has come `count` times; false when the output ends or the time is over.
  bool Await(const std::string& text, int count = 1) {
    while (Count(text) < count) {
      if (!ReadSome()) return false;
    }
    return true;
  }

  // The wait status of init; -1 if it had to be killed.
  int Wait() {
    while (ReadSome()) continue;
    int status = -1;
    while (waitpid(pid_, &status, WNOHANG) == 0) {
      if (MonotonicNs() - begin_ns_ > kLimitNs) return -1;
      usleep(5000);
    }
    pid_ = 0;
    return status;
  }

  void Signal(int sig) const { kill(pid_, sig); }
  [[nodiscard]] const std::string& output() const { return output_; }
  [[nodiscard]] bool Has(const std::string& text) const { return Count(text) > 0; }
  [[nodiscard]] int Count(const std::string& text) const {
    int count = 0;
    for (size_t at = 0; (at = output_.find(text, at)) != std::string::npos; at += text.size()) ++count;
    return count;
  }
  // What the stand-in said of `key`.
  [[nodiscard]] std::string Said(const std::string& key) const {
    const std::string lead = "gcs: standin " + key + " ";
    const size_t at = output_.find(lead);
    if (at == std::string::npos) return "(nothing)";
    return output_.substr(at + lead.size(), output_.find('\n', at) - at - lead.size());
  }

 private:
  bool ReadSome() {
    const int64_t left = begin_ns_ + kLimitNs - MonotonicNs();
    pollfd wait{.fd = read_.get(), .events = POLLIN, .revents = 0};
    if (left <= 0 || poll(&wait, 1, static_cast<int>(left / kNsPerMs)) <= 0) return false;
    char buffer[4096];
    const ssize_t n = read(read_.get(), buffer, sizeof buffer);
    if (n <= 0) return false;
    output_.append(buffer, static_cast<size_t>(n));
    return true;
  }

  std::string directory_;
  Fd read_;
  pid_t pid_ = 0;
  int64_t begin_ns_ = 0;
  std::string output_;
};

bool PoweredOff(int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGINT; }
bool Restarted(int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGHUP; }

}  // namespace

TEST_CASE("init boots, starts the agent in clean surroundings and powers off on its request") {
  Run run({"/standin", "--look", "--end=poweroff", "--grace=100"});
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(PoweredOff(status));
  CHECK(run.Said("hello") == "1 0");
  CHECK(run.Said("pid-1") == "1 sid 1");
  CHECK(run.Said("fds") == "0,1,2,3");
  CHECK(run.Said("signals-blocked") == "0");
  CHECK(run.Said("sigpipe-default") == "1");
  CHECK(run.Said("hostname") == "lcow");
  CHECK(run.Said("root-write") == "EROFS");
  CHECK(run.Said("exe-write") == "EROFS");
  CHECK(run.Said("run-write") == "done");
  CHECK(run.Said("pivot") == "0");
  CHECK(run.Said("nofile") == "200 300");
  CHECK(run.Said("end") == "accepted");
  for (const char* phase : {"mounts ", ";settings ", ";modules ", ";agent "}) {
    CHECK(run.Said("boot").find(phase) != std::string::npos);
  }
  // A row to be logged is, once; one to be ignored is not.
  CHECK(run.Count("mount (/tmp/not-there)") == 1);
  CHECK_FALSE(run.Has("no/such/name"));
  CHECK(run.Has("<5>init: powering off\n"));
  CHECK(run.Has("<5>init: down after "));
}

TEST_CASE("a restart request restarts") {
  Run run({"/standin", "--end=reboot"});
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(Restarted(status));
  CHECK(run.Has("<5>init: restarting\n"));
}

TEST_CASE("a crashing agent is started again after growing pauses and learns how the one before it ended") {
  Run run({"/standin", "--crash-until=4", "--end=poweroff"});
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(PoweredOff(status));
  CHECK(run.Has("standin hello 1 0\n"));
  const std::string aborted = std::to_string(W_EXITCODE(0, SIGABRT));
  for (const char* start : {"2 ", "3 ", "4 "}) CHECK(run.Has("standin hello " + (start + aborted) + "\n"));
  CHECK(run.Count("killed by signal 6 (SIGABRT); next start in ") == 3);
  for (const char* pause : {"in 100 ms", "in 200 ms", "in 400 ms"}) CHECK(run.Count(pause) == 1);
}

TEST_CASE(
    "what an agent has put into the store before it crashed is there for the next one, drops are done") {
  for (const char* how : {"--store", "--store-late"}) {
    Run run({"/standin", "--look", how, "--end=poweroff"});
    const int status = run.Wait();
    CAPTURE(run.output());
    CHECK(PoweredOff(status));
    CHECK(run.Count("killed by signal 6 (SIGABRT)") == 1);
    std::string keys = "10 ";
    for (int i = 100; i < 140; ++i) keys += std::to_string(i) + " ";
    CHECK(run.Said("store") == keys);
    CHECK(run.Said("store-read") == "kept then 0");
    // The second agent gets no more than the first.
    CHECK(run.Count("standin fds 0,1,2,3\n") == 2);
    CHECK(run.Count("standin nofile 200 300\n") == 2);
  }
}

TEST_CASE("an agent that does not end by itself is killed a second after everybody else") {
  Run run({"/standin", "--deaf", "--end=poweroff", "--grace=100"});
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(PoweredOff(status));
  CHECK(run.Has("<4>init: the agent did not end by itself\n"));
}

TEST_CASE("every orphan is reaped, hundreds at once too") {
  Run run({"/standin", "--orphans=300", "--end=poweroff"});
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(PoweredOff(status));
  CHECK(run.Said("zombies") == "0");
}

TEST_CASE("no packet of the agent can bring init down") {
  Run run({"/standin", "--garbage", "--end=poweroff", "--grace=100"});
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(PoweredOff(status));
  CHECK(run.Count("<4>init: malformed control packet of ") == 5);
  CHECK(run.Said("unknown-op") == "EOPNOTSUPP");
  CHECK(run.Said("stray") == "answered");
  CHECK(run.Said("put-none") == "init request: Invalid argument");
  CHECK(run.Said("stray-end") == "closed");
  CHECK(run.Said("end") == "accepted");
}

TEST_CASE("signals: SIGTERM, SIGPWR and SIGUSR2 power off, SIGINT restarts, the rest does nothing") {
  for (const int sig : {SIGTERM, SIGPWR, SIGUSR2, SIGINT}) {
    Run run({"/standin"});
    REQUIRE(run.Await("standin hello"));
    for (const int harmless : {SIGHUP, SIGPIPE, SIGQUIT}) run.Signal(harmless);
    usleep(50'000);
    run.Signal(sig);
    const int status = run.Wait();
    CAPTURE(run.output());
    CHECK(run.Count("standin hello") == 1);
    CHECK((sig == SIGINT ? Restarted(status) : PoweredOff(status)));
  }
}

TEST_CASE("a process that ignores SIGTERM is killed when its grace is over") {
  Run run({"/standin", "--linger=20000", "--end=poweroff", "--grace=300"});
  const int64_t begin = MonotonicNs();
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(PoweredOff(status));
  CHECK(run.Has("processes outlived their grace"));
  CHECK(MonotonicNs() - begin >= 300 * kNsPerMs);
  CHECK(MonotonicNs() - begin < 10 * kNsPerSec);
}

TEST_CASE("an agent that is missing is told with step, errno and path, and tried again") {
  Run run({"/no/such/agent"});
  REQUIRE(run.Await("exit code 127", 2));
  run.Signal(SIGTERM);
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(PoweredOff(status));
  CHECK(run.Has("<3>init: start: execve (/no/such/agent): No such file or directory\n"));
}

TEST_CASE("a set-up that fails tells stage and errno and ends the machine") {
  Run run({"/standin"}, "init-broken");
  const int status = run.Wait();
  CAPTURE(run.output());
  CHECK(PoweredOff(status));
  CHECK(run.Has("init: set-up failed in stage mounts: mount (/run): No such device: no-such-type\n"));
  CHECK_FALSE(run.Has("standin"));
}

TEST_CASE("a defect of init itself ends the machine in the ordinary way") {
  for (const int sig : {SIGSEGV, SIGABRT}) {
    Run run({"/standin"});
    REQUIRE(run.Await("standin hello"));
    run.Signal(sig);
    const int status = run.Wait();
    CAPTURE(run.output());
    CHECK(PoweredOff(status));
    CHECK(run.Has("init: defect, signal " + std::string(sig == SIGSEGV ? "11" : "06")));
  }
}
