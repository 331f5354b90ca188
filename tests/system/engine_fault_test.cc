// SPDX-License-Identifier: Apache-2.0
// Every system call that the engine, its zygote and their children make fails once. The operation then says
// which step failed and with which errno, or has not needed the call; nothing is left of it; and the next
// container works.
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>

#include "system/engine_fault_bench.h"

namespace gcs::test {
namespace {

// Calls whose failure need not fail the operation, or fails it with another errno than their own, and why.
struct Exception {
  std::string_view role, call, where;  // where: part of the path, or a caller; empty: any
  enum What { kHarmless, kOtherErrno } what;
  std::string_view why;
};
constexpr Exception kExceptions[] = {
    {"", "close", "", Exception::kHarmless, "the descriptor is gone whatever close says"},
    {"zygote", "recvmsg", "", Exception::kHarmless, "the request is still there and asked for again"},
    {"zygote", "close_range", "", Exception::kHarmless, "they are closed one by one"},
    {"", "sendmsg", "SendSpawned", Exception::kHarmless, "the pid goes without the pidfd"},
    {"daemon", "poll", "ReapStage", Exception::kHarmless, "a stage that was not waited for is killed"},
    {"daemon", "poll", "RunHooks", Exception::kHarmless, "the wait for a hook goes on"},
    {"child", "poll", "RunHooks", Exception::kHarmless, "the wait for a hook goes on"},
    {"daemon", "prlimit64", "RunHooks", Exception::kHarmless, "posix_spawn takes another limit for granted"},
    {"daemon", "fsetxattr", "", Exception::kHarmless,
     "a directory without the mark stays for whoever cleans up"},
    {"daemon", "pread64", "", Exception::kHarmless, "what is known of the parent cgroup is found out again"},
    {"daemon", "openat", "..", Exception::kHarmless, "the parent cgroup is not kept for the next container"},
    {"daemon", "openat", "cgroup.subtree_control", Exception::kHarmless, "the same"},
    // Of the shorter ways to mount something: the longer one tells what is wrong.
    {"child", "mount", "", Exception::kHarmless, "fsopen and move_mount"},
    {"child", "fchdir", "", Exception::kHarmless, "fsopen and move_mount"},
    {"child", "openat2", "dev", Exception::kHarmless, "looked up from the root"},
    {"child", "openat2", "pts", Exception::kHarmless, "looked up from the root"},
    {"child", "openat2", "sys/fs/cgroup", Exception::kHarmless, "looked up from the root"},
    {"child", "fstatfs", "", Exception::kHarmless, "looked up from the root"},
    {"child", "mkdirat", "", Exception::kHarmless, "looked up from the root"},
    {"child", "close_range", "BeginStep", Exception::kHarmless, "closed before the program, or that fails"},
    {"child", "recvfrom", "RunStage", Exception::kHarmless, "a holder that ends early has done its work"},
    {"daemon", "pidfd_send_signal", "", Exception::kHarmless, "who is killed is also waited for"},
    {"daemon", "unlinkat", "gcs-test-", Exception::kHarmless, "tried again once everybody inside is killed"},
};

bool Excepted(const Fault& fault, Exception::What what) {
  // The way back from a pid namespace is gone once more before the next clone.
  constexpr int kZygotesOwn = 4;
  // The way back to all processors likewise; its mask is longer than any plan's.
  constexpr int kAllProcessors = 1024;
  if (fault.role == "zygote" && fault.number == SYS_sched_setaffinity && fault.args[1] == kAllProcessors)
    return true;
  // runtime.md: failures of poststop hooks are logged.
  if (static_cast<Phase>(fault.phase) == Phase::kDestroy &&
      (fault.role == "hook" || std::ranges::find(fault.callers, "RunHooks") != fault.callers.end())) {
    return true;
  }
  if (fault.role == "zygote" && fault.number == SYS_setns && fault.args[0] == kZygotesOwn) return true;
  // Whom a round of kills has not met, and what it could not remove, the next one does.
  if (kCgroupView != CgroupView::kV2 && static_cast<Phase>(fault.phase) == Phase::kDestroy &&
      fault.role == "daemon" && what == Exception::kHarmless) {
    return true;
  }
  // A directory beside the last container's is made the long way if the short one fails, which tells what is
  // wrong; and if its parent can't be kept, the next one is made the long way.
  if (kCgroupView != CgroupView::kV2 && fault.role == "daemon" && what == Exception::kHarmless &&
      (fault.number == SYS_mkdirat ||
       (fault.number == SYS_openat &&
        (fault.path.starts_with("gcs-test-") || fault.path == "cgroup.clone_children")))) {
    return true;
  }
  const std::string role = fault.role == "grandchild" ? "child" : fault.role;
  return std::ranges::any_of(kExceptions, [&](const Exception& e) {
    return e.what == what && (e.role.empty() || e.role == role) && e.call == SyscallName(fault.number) &&
           (fault.path.find(e.where) != std::string::npos ||
            std::ranges::find(fault.callers, e.where) != fault.callers.end());
  });
}

// What is wrong with a round in which `fault` was injected; empty: nothing.
std::string Judge(const Fault& fault, const Told& told) {
  constexpr int64_t kSlowNs = 5 * base::kNsPerSec;
  std::string wrong;
  if (told.slowest_ns > kSlowNs)
    wrong += "; it took " + std::to_string(told.slowest_ns / base::kNsPerMs) + " ms";
  const std::string got =
      std::string(kPhaseNames[static_cast<int>(told.failed)]) + " said \"" + told.text + "\"";
  if (told.failed == Phase::kNone) {
    if (!told.complete) {
      wrong += "; it seemed to work but did not";
    } else if (fault.err != EINTR && !Excepted(fault, Exception::kHarmless)) {
      wrong += "; it was not noticed";
    }
  } else if (told.step[0] == '\0' || told.err == 0) {
    wrong += "; no step or errno: " + got;
  } else if (told.err != fault.err && !Excepted(fault, Exception::kOtherErrno)) {
    wrong += "; another errno: " + got;
  } else if (fault.err == EINTR) {
    wrong += "; EINTR is no failure: " + got;
  }
  return wrong;
}

constexpr int kMaxFailures = 40;

// Goes through all that can fail in a scenario. What has failed in one need not in the next.
void Sweep(const Scenario& scenario) {
  static FaultsSeen seen;
  int failures = 0;
  int injected = 0;
  for (bool more = true; more && failures < kMaxFailures;) {
    Bench bench(scenario, seen);
    for (bool right = true; right && more;) {
      std::optional<Fault> fault;
      const std::string wrong = bench.Rounds(
          [](FaultInjector& injector, Told& now) { injector.Arm(reinterpret_cast<const int*>(&now.now)); },
          [&](FaultInjector& injector, Told* told) {
            fault = injector.Disarm();
            if (told == nullptr) return std::string();
            if (fault) return Judge(*fault, *told);
            return told->complete ? "" : std::string("; without a failure: ") + told->text;
          });
      right = wrong.empty();
      if (!right) {
        ++failures;
        FAIL_CHECK((fault ? fault->ToString() : "no failure"), wrong);
      }
      if (fault) ++injected;
      more = fault.has_value() || !right;
    }
  }
  MESSAGE(injected, " failures of system calls");
  CHECK(injected > 0);
}

Json Cat(const EngineMachine& machine) {
  Json config = DefaultConfig(machine.root(), {"sh", "-c", "echo begun; cat"});
  config["process"]["env"].push_back("HOME=/");
  return config;
}

TEST_CASE("each system call fails once: a container and an exec") { Sweep({.config = Cat, .exec = true}); }

TEST_CASE("each system call fails once: what is kept for the next container") {
  Sweep({.config = Cat, .vary = [](Json& config, int round) {
           config["linux"]["resources"]["devices"] = {
               {{"allow", true}, {"type", "c"}, {"major", 9}, {"minor", round}, {"access", "r"}}};
           const Json map = {{{"containerID", 0}, {"hostID", 1000 + round}, {"size", 100}}};
           config["mounts"][0] = {{"destination", "/proc"}, {"type", "proc"}, {"source", "proc"}};
           if (config["mounts"].back()["destination"] == "/tmp")
             config["mounts"].erase(config["mounts"].size() - 1);
           config["mounts"].push_back({{"destination", "/tmp"},
                                       {"type", "bind"},
                                       {"source", config["root"]["path"].get<std::string>() + "/tmp"},
                                       {"options", {"bind", "idmap"}},
                                       {"uidMappings", map},
                                       {"gidMappings", map}});
         }});
}

// On a hybrid machine v2 may have no controllers left.
void LimitPids(Json& config) {
  if (kCgroupView != CgroupView::kV2) config["linux"]["resources"]["pids"] = {{"limit", 50}};
}

constexpr uint32_t kBase = 100'000;

Json UserCat(const EngineMachine& machine) {
  Json config = Cat(machine);
  const std::string root = machine.MakeRoot("user");
  REQUIRE(chown(root.c_str(), kBase, kBase) == 0);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root))
    REQUIRE(lchown(entry.path().c_str(), kBase, kBase) == 0);
  config["root"] = {{"path", root}, {"readonly", false}};
  config["linux"]["namespaces"].push_back({{"type", "user"}});
  const Json map = {{{"containerID", 0}, {"hostID", kBase}, {"size", 65536}}};
  config["linux"]["uidMappings"] = map;
  config["linux"]["gidMappings"] = map;
  return config;
}

TEST_CASE("each system call fails once: user and time namespaces") {
  Sweep({.config =
             [](const EngineMachine& machine) {
               Json config = UserCat(machine);
               config["linux"]["namespaces"].push_back({{"type", "time"}});
               config["linux"]["timeOffsets"] = {{"boottime", {{"secs", 1000}, {"nanosecs", 0}}}};
               LimitPids(config);
               return config;
             },
         .exec = true});
}

TEST_CASE("each system call fails once: a terminal and a seccomp filter") {
  Sweep({.config =
             [](const EngineMachine& machine) {
               Json config = Cat(machine);
               config["process"]["terminal"] = true;
               config["process"]["consoleSize"] = {{"height", 25}, {"width", 80}};
               config["process"]["noNewPrivileges"] = false;
               config["linux"]["seccomp"] = {
                   {"defaultAction", "SCMP_ACT_ALLOW"},
                   {"syscalls", {{{"names", {"uname"}}, {"action", "SCMP_ACT_ERRNO"}}}}};
               return config;
             },
         .exec = true});
}

// A seccomp agent that takes what it is sent, and drops it, between two rounds.
int ListenAt(const std::string& path) {
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  REQUIRE(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(listener, 8) == 0);
  return listener;
}

TEST_CASE("each system call fails once: a seccomp filter with a listener") {
  static int listener = -1;
  Sweep({.config =
             [](const EngineMachine& machine) {
               Json config = Cat(machine);
               listener = ListenAt(machine.dir() + "/agent");
               config["linux"]["seccomp"] = {
                   {"defaultAction", "SCMP_ACT_ALLOW"},
                   {"listenerPath", machine.dir() + "/agent"},
                   {"syscalls", {{{"names", {"acct"}}, {"action", "SCMP_ACT_NOTIFY"}}}}};
               return config;
             },
         .exec = true,
         .after =
             [] {
               for (int fd = -1; (fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;) close(fd);
             }});
}

TEST_CASE("each system call fails once: hooks") {
  Sweep({.config = [](const EngineMachine& machine) {
    Json config = Cat(machine);
    const Json hook = {{{"path", "/bin/busybox"}, {"args", {"cat"}}, {"timeout", 3}}};
    for (const char* kind :
         {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})
      config["hooks"][kind] = hook;
    return config;
  }});
}

TEST_CASE(
    "each system call fails once: mounts of all kinds, devices, sysctls and attributes of the process") {
  Sweep({.config =
             [](const EngineMachine& machine) {
               Json config = Cat(machine);
               const std::string root = machine.MakeRoot("kinds");
               std::filesystem::create_directories(root + "/etc/dir");
               std::filesystem::create_symlink("dir", root + "/etc/link");
               REQUIRE(mkfifo((root + "/etc/fifo").c_str(), 0644) == 0);
               config["root"] = {{"path", root}, {"readonly", false}};
               config["process"]["cwd"] = "/new/cwd";
               config["process"]["user"] = {
                   {"uid", 1000}, {"gid", 1000}, {"additionalGids", {5, 6}}, {"umask", 7}};
               config["process"]["env"] = {"PATH=/bin"};
               config["process"]["scheduler"] = {{"policy", "SCHED_BATCH"}, {"nice", 7}};
               config["process"]["ioPriority"] = {{"class", "IOPRIO_CLASS_BE"}, {"priority", 6}};
               config["process"]["execCPUAffinity"] = {{"initial", "0"}, {"final", "0-1"}};
               config["process"]["oomScoreAdj"] = 100;
               config["domainname"] = "example";
               config["linux"]["personality"] = {{"domain", "LINUX"}};
               if (access("/proc/self/numa_maps", F_OK) == 0)
                 config["linux"]["memoryPolicy"] = {{"mode", "MPOL_BIND"}, {"nodes", "0"}};
               config["linux"]["sysctl"] = {{"net.ipv4.ip_unprivileged_port_start", "99"},
                                            {"kernel/msgmax", "7777"}};
               config["linux"]["rootfsPropagation"] = "rslave";
               config["linux"]["devices"] = {{{"path", "/dev/one"},
                                              {"type", "c"},
                                              {"major", 1},
                                              {"minor", 3},
                                              {"fileMode", 438},
                                              {"uid", 1},
                                              {"gid", 2}},
                                             {{"path", "/other/pipe"}, {"type", "p"}}};
               Json& mounts = config["mounts"];
               mounts.push_back({{"destination", "/etc"},
                                 {"type", "tmpfs"},
                                 {"source", "tmpfs"},
                                 {"options", {"tmpcopyup"}}});
               mounts.push_back({{"destination", "/deep/er/dir"},
                                 {"type", "bind"},
                                 {"source", machine.dir()},
                                 {"options", {"rbind", "rro", "nosuid", "rshared"}}});
               mounts.push_back({{"destination", "/deep/file"},
                                 {"type", "bind"},
                                 {"source", root + "/etc/passwd"},
                                 {"options", {"bind", "ro"}}});
               mounts.push_back({{"destination", "/dev/shm"}, {"options", {"remount", "nosuid", "size=1m"}}});
               return config;
             },
         .exec = true});
}

TEST_CASE(
    "each system call fails once: limits, a cgroup of its own choice, and processes that are left in it") {
  Sweep({.config = [](const EngineMachine& machine) {
    Json config = Cat(machine);
    config["process"]["args"] = {"sh", "-c", "echo begun; sleep 1000 >/dev/null & cat"};
    auto& namespaces = config["linux"]["namespaces"];
    namespaces.erase(namespaces.begin());
    namespaces.push_back({{"type", "time"}, {"path", "/proc/self/ns/time"}});
    config["linux"]["cgroupsPath"] = machine.cgroup_parent() + "/a/b";
    LimitPids(config);
    return config;
  }});
}

TEST_CASE("each system call fails once: a plan that is sent as a file") {
  Sweep({.config = [](const EngineMachine& machine) {
    Json config = Cat(machine);
    config["process"]["env"].push_back("LARGE=" + std::string(100'000, 'x'));
    return config;
  }});
}

// Not a failing call: the kernel drops descriptors that come with a message when there is no number for them.
void SweepLimit(bool zygote) {
  constexpr int64_t kSlowNs = 5 * base::kNsPerSec;
  constexpr int kMost = 30;
  constexpr rlim_t kZygotesOwn = 5;
  FaultsSeen seen;
  const Scenario scenario{.config = UserCat, .exec = true};
  Bench bench(scenario, seen);
  int refused = 0;
  for (int spare = 1; spare < kMost && bench.usable(); ++spare) {
    const auto limit = [&](Told& told, rlim_t number) {
      if (!zygote) {
        told.spare = number == 0 ? 0 : spare;
        return;
      }
      const rlimit few{number == 0 ? 1024 : number + spare, 1024};
      REQUIRE(prlimit(bench.injector().zygote(), RLIMIT_NOFILE, &few, nullptr) == 0);
    };
    const std::string wrong = bench.Rounds(
        [&](FaultInjector&, Told& told) { limit(told, kZygotesOwn); },
        [&](FaultInjector&, Told* told) {
          if (told == nullptr) return std::string("; it hangs or dies");
          limit(*told, 0);
          if (told->complete) return std::string();
          ++refused;
          if (told->failed == Phase::kNone || told->err == 0)
            return "; it did not work: " + std::string(told->text);
          return told->slowest_ns > kSlowNs ? std::string("; slow: ") + told->text : std::string();
        });
    CHECK_MESSAGE(wrong.empty(), spare, " descriptors", wrong);
  }
  CHECK(refused > 0);
}

TEST_CASE("a daemon with too few descriptors loses no process") { SweepLimit(false); }

TEST_CASE("a zygote with too few descriptors loses no process") { SweepLimit(true); }

}  // namespace
}  // namespace gcs::test
