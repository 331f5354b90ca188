// SPDX-License-Identifier: Apache-2.0
// Escapes through processes: what one can see of the engine, keep of its rights, or be mistaken for.
// escapes.md says which number is tested where, and which weakening of the engine makes its case fail.
#include <linux/sched.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <csignal>
#include <set>
#include <sstream>

#include "support/skip.h"
#include "system/escape_support.h"

namespace gcs::test {
namespace {

namespace fs = std::filesystem;
using base::Json;

base::Result<engine::ChildProcess> ExecIn(RunningContainer& running, const std::string& process, int out) {
  auto parsed = engine::ParseProcess(process, *running.container->spec.process);
  REQUIRE_MESSAGE(parsed, parsed.error().ToString());
  return EngineMachine::Get().engine().Exec(*running.container, *parsed,
                                            {.stdio = {running.null.get(), out, out}, .deadline_ns = In(10)});
}

// A container that looks at all processes it sees, again and again, a dot for each pass. Told is what can be
// nothing of a container: another file than its root's, null or a pipe. With CAP_SYS_PTRACE, and no user
// namespace to bound it, the kernel would show all: who gives that gives the VM.
Json Watcher(const std::string& root) {
  Json config = DefaultConfig(
      root,
      {"sh", "-c",
       "while :; do for f in /proc/[0-9]*/fd/* /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe; do "
       "l=$(readlink $f 2>/dev/null) && case $l in *gcs-test*|*system_engine*|*engine_weak*|*cgroup*|*pidfd*|"
       "*socket:*) echo $f $l;; esac; done; echo .; done"});
  GiveCapabilities(config, {"CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"});
  return config;
}

// Everything but the dots, until `passes` of them have come; no more is read for now.
void AwaitPasses(RunningContainer& running, int passes, std::string& told) {
  for (int seen = 0; seen < passes;) {
    pollfd ready{running.out.read_end.get(), POLLIN, 0};
    REQUIRE(poll(&ready, 1, 20'000) == 1);
    char buffer[4096];
    const ssize_t n = read(ready.fd, buffer, sizeof buffer);
    REQUIRE(n > 0);
    const std::string text(buffer, n);
    seen += static_cast<int>(std::ranges::count(text, '.'));
    if (text.find('/') != std::string::npos) told += text;
  }
}

TEST_CASE(
    "escape 02: a container sees nothing of a process that waits to be executed in it (CVE-2016-9962)") {
  RunningContainer running;
  REQUIRE(running.Create(Watcher(EngineMachine::Get().root()), NextId()));
  REQUIRE(running.Start());
  std::string told;
  for (int i = 0; i < Rounds(3, 50); ++i) {
    auto child = ExecIn(running, R"({"args": ["true"]})", running.null.get());
    REQUIRE_MESSAGE(child, child.error().ToString());
    // One that has begun before the exec, and a whole one.
    AwaitPasses(running, 2, told);
    REQUIRE(child->Start(In(10)));
    CHECK(Reap(child->pidfd()) == 0);
  }
  CHECK(told == "");
  REQUIRE(running.container->init.Signal(SIGKILL));
}

TEST_CASE("escape 02: nor of one on its way, at whatever moment it looks") {
  RunningContainer running;
  Json config = Watcher(EngineMachine::Get().root());
  // The pipe would be full.
  auto& script = config["process"]["args"][2].get_ref<std::string&>();
  script.replace(script.find("echo .;"), 7, "");
  REQUIRE(running.Create(config, NextId()));
  REQUIRE(running.Start());
  for (int i = 0; i < Rounds(50, 10'000); ++i) {
    auto child = ExecIn(running, R"({"args": ["true"]})", running.null.get());
    REQUIRE_MESSAGE(child, child.error().ToString());
    REQUIRE(child->Start(In(10)));
    CHECK(Reap(child->pidfd()) == 0);
  }
  REQUIRE(running.container->init.Signal(SIGKILL));
  CHECK(running.Finish().out == "");
}

TEST_CASE(
    "escape 03: no descriptor leads out, whatever number the working directory names (CVE-2024-21626)") {
  const Outside outside;
  Json config = DefaultConfig(EngineMachine::Get().root(), {"cat", "victim"});
  // The one case in which the child has had the machine's files.
  BuildBelowMachine(config);
  int made = 0;
  for (int fd = 3; fd < Rounds(48, 1024); ++fd) {
    for (const std::string& rest : {outside.path(), "/../.." + outside.path()}) {
      config["process"]["cwd"] = "/proc/self/fd/" + std::to_string(fd) + rest;
      RunningContainer running;
      const auto created = running.Create(config, NextId());
      if (!created) {
        CHECK(created.error().step == "chdir");
        continue;
      }
      ++made;
      if (running.Start()) CHECK(running.Finish().out == "");
    }
  }
  CHECK(made == 0);
}

TEST_CASE("escape 03: nor does an exec's working directory, or the descriptor that it was started with") {
  const Outside outside;
  RunningContainer running;
  REQUIRE(running.Create(DefaultConfig(EngineMachine::Get().root(), {"sleep", "1000"}), NextId()));
  REQUIRE(running.Start());
  const base::Fd open_here(open(outside.path().c_str(), O_PATH | O_DIRECTORY));  // without O_CLOEXEC
  for (int fd = 3; fd < Rounds(48, 1024); ++fd) {
    const std::string cwd = "/proc/self/fd/" + std::to_string(fd);
    auto child = ExecIn(running, R"({"args": ["true"], "cwd": ")" + cwd + "\"}", running.null.get());
    CHECK_FALSE(child);
  }
  Pipe out;
  auto child = ExecIn(running, R"({"args": ["ls", "/proc/self/fd"]})", out.write_end.get());
  REQUIRE_MESSAGE(child, child.error().ToString());
  REQUIRE(child->Start(In(10)));
  out.write_end.Reset();
  CHECK(ReadAll(out.read_end) == "0\n1\n2\n3\n");  // 3 is the directory that ls has opened
  CHECK(Reap(child->pidfd()) == 0);
}

// Value of a line of /proc/self/status, a hexadecimal number.
uint64_t StatusValue(const std::string& text, const std::string& key) {
  const size_t at = text.find(key + ":");
  REQUIRE(at != std::string::npos);
  return std::stoull(text.substr(at + key.size() + 1), nullptr, 16);
}

TEST_CASE(
    "escape 11: inheritable capabilities are the configuration's, of init and of every exec "
    "(CVE-2022-24769)") {
  for (const bool some : {false, true}) {
    CAPTURE(some);
    Json config =
        DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", "cat /proc/self/status; exec sleep 1000"});
    GiveCapabilities(config, {"CAP_KILL", "CAP_CHOWN"});
    if (some) config["process"]["capabilities"]["inheritable"] = {"CAP_KILL"};
    const uint64_t kill = 1ULL << 5;
    const uint64_t expected = some ? kill : 0;
    RunningContainer running;
    REQUIRE(running.Create(config, NextId()));
    REQUIRE(running.Start());
    const auto exec = [&](const Json& process) {
      Pipe out;
      auto child = ExecIn(running, process.dump(), out.write_end.get());
      REQUIRE_MESSAGE(child, child.error().ToString());
      REQUIRE(child->Start(In(10)));
      out.write_end.Reset();
      const std::string text = ReadAll(out.read_end);
      CHECK(Reap(child->pidfd()) == 0);
      return text;
    };
    const Json args = {"cat", "/proc/self/status"};
    CHECK(StatusValue(exec({{"args", args}}), "CapInh") == expected);
    CHECK(StatusValue(exec({{"args", args}, {"user", {{"uid", 1000}}}}), "CapInh") == expected);
    // As runc's exec --cap adds to: everything but the inheritable set.
    const Json more = {"CAP_KILL", "CAP_CHOWN", "CAP_SETUID"};
    Json process{{"args", args},
                 {"capabilities", {{"bounding", more}, {"effective", more}, {"permitted", more}}}};
    CHECK(StatusValue(exec(process), "CapInh") == 0);
    CHECK(StatusValue(exec(process), "CapPrm") == 0xa1);
    process["capabilities"]["inheritable"] = {"CAP_CHOWN"};
    CHECK(StatusValue(exec(process), "CapInh") == 1);
    REQUIRE(running.container->init.Signal(SIGKILL));
    CHECK(StatusValue(running.Finish().out, "CapInh") == expected);
  }
}

// A user namespace as somebody without privileges gets it: one id, setgroups(2) denied; as long as this
// lives.
class DeniedNamespace {
 public:
  DeniedNamespace() {
    Pipe ready;
    pid_ = fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      const bool made = unshare(CLONE_NEWUSER) == 0 && base::WriteFile("/proc/self/setgroups", "deny") &&
                        base::WriteFile("/proc/self/uid_map", "0 0 1") &&
                        base::WriteFile("/proc/self/gid_map", "0 0 1");
      if (made && write(ready.write_end.get(), "x", 1) == 1) pause();
      _exit(1);
    }
    ready.write_end.Reset();
    REQUIRE(ReadOne(ready.read_end.get()));
  }
  ~DeniedNamespace() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  DeniedNamespace(const DeniedNamespace&) = delete;
  DeniedNamespace& operator=(const DeniedNamespace&) = delete;
  [[nodiscard]] std::string path() const { return "/proc/" + std::to_string(pid_) + "/ns/user"; }

 private:
  static bool ReadOne(int fd) {
    char byte = 0;
    return read(fd, &byte, 1) == 1;
  }
  pid_t pid_ = -1;
};

TEST_CASE("escape 16: where setgroups is denied no group is dropped or gained (CVE-2014-8989)") {
  const DeniedNamespace denied;
  Json config = DefaultConfig(EngineMachine::Get().root(),
                              {"sh", "-c", "cat /proc/self/setgroups; grep Groups: /proc/self/status"});
  config["linux"]["namespaces"].push_back({{"type", "user"}, {"path", denied.path()}});
  RemoveMounts(config, "/dev/pts");  // its group is none of the namespace's
  const Outcome outcome = Run(config);
  CHECK(outcome.out.starts_with("deny\nGroups:"));
  // What the configuration asks for can't be had: an error, not a process with other groups.
  config["process"]["user"]["additionalGids"] = {0};
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  CHECK_FALSE(created);
  if (!created) CHECK(created.error().step == "setgroups");
}

TEST_CASE("escape 16: groups are exactly the configured ones, none of the daemon's") {
  const Json script = {"sh", "-c", "id -G"};
  Json config = DefaultConfig(EngineMachine::Get().root(), script);
  CHECK(Run(config).out == "0\n");
  config["process"]["user"] = {{"uid", 7}, {"gid", 8}};
  CHECK(Run(config).out == "8\n");
  config["process"]["user"]["additionalGids"] = {9, 10};
  CHECK(Run(config).out == "8 9 10\n");
}

// Inodes of the sockets with an abstract name in this network namespace.
std::set<std::string> AbstractSockets() {
  std::set<std::string> inodes;
  std::istringstream lines(base::ReadFile("/proc/net/unix", 64 << 20).value_or(""));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word[8];
    for (std::string& each : word) words >> each;
    if (word[7].starts_with("@")) inodes.insert("socket:[" + word[6] + "]");
  }
  return inodes;
}

bool HasAbstractSocket(const std::string& pid) {
  const std::set<std::string> inodes = AbstractSockets();
  for (const std::string& fd : base::ListDir("/proc/" + pid + "/fd").value_or(std::vector<std::string>())) {
    std::error_code gone;
    if (inodes.contains(fs::read_symlink("/proc/" + pid + "/fd/" + fd, gone).string())) return true;
  }
  return false;
}

TEST_CASE(
    "escape 21: the engine has no socket with an abstract name, at any point of a container's life "
    "(CVE-2020-15257)") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"sleep", "1000"});
  std::erase_if(config["linux"]["namespaces"].get_ref<Json::array_t&>(),
                [](const Json& ns) { return ns["type"] == "network"; });
  RunningContainer running;
  REQUIRE(running.Create(config, NextId()));
  const auto processes = [&] {
    std::vector<std::string> all = {"self", std::to_string(running.container->init.pid())};
    std::istringstream children(
        *base::ReadFile("/proc/self/task/" + std::to_string(getpid()) + "/children"));  // the zygote
    for (std::string pid; children >> pid;) all.push_back(pid);
    return all;
  };
  CHECK(processes().size() >= 3);
  for (const std::string& pid : processes()) CHECK_FALSE(HasAbstractSocket(pid));
  REQUIRE(running.Start());
  for (const std::string& pid : processes()) CHECK_FALSE(HasAbstractSocket(pid));
  // One would be found.
  const base::Fd one(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(bind(one.get(), reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)) ==
          0);  // a name of the kernel's
  CHECK(HasAbstractSocket("self"));
}

// A process with this id that sleeps; -1 if the id is in use by now.
pid_t CloneWithId(pid_t wanted) {
  clone_args args{};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<uint64_t>(&wanted);
  args.set_tid_size = 1;
  const long pid = syscall(SYS_clone3, &args, sizeof args);
  if (pid == 0) {
    pause();
    _exit(0);
  }
  return static_cast<pid_t>(pid);
}

TEST_CASE(
    "escape 25: a signal after the end reaches nobody, also when the process id is somebody else's by then") {
  RunningContainer running;
  REQUIRE(running.Create(DefaultConfig(EngineMachine::Get().root(), {"true"}), NextId()));
  REQUIRE(running.Start());
  const int old = running.container->init.pid();
  CHECK(Reap(running.container->init.pidfd()) == 0);
  const pid_t other = CloneWithId(old);
  REQUIRE_MESSAGE(other == old, strerror(errno));
  const auto late = running.container->init.Signal(SIGKILL);
  CHECK_FALSE(late);
  if (!late) CHECK(late.error().err == ESRCH);
  CHECK(EngineMachine::Get().engine().Destroy(*running.container, In(10)));
  running.container.reset();
  usleep(10'000);
  int status = 0;
  CHECK(waitpid(other, &status, WNOHANG) == 0);  // it lives
  kill(other, SIGKILL);
  waitpid(other, &status, 0);
}

}  // namespace
}  // namespace gcs::test
