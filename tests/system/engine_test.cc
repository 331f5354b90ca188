// SPDX-License-Identifier: Apache-2.0
#include <sys/sysmacros.h>
#include <csignal>
#include <set>

#include "system/engine_support.h"

namespace gcs::test {
namespace {

using base::Json;

TEST_CASE("a container runs a program and its exit code comes back") {
  const Outcome outcome = RunShell("echo out; echo err >&2; exit 42");
  CHECK(outcome.status == 42);
  CHECK(outcome.out == "out\n");
  CHECK(outcome.err == "err\n");
}

TEST_CASE("escape 25: a signal that ends the program is told; later signals fail") {
  RunningContainer running;
  REQUIRE(running.Create(DefaultConfig(EngineMachine::Get().root(), {"sleep", "1000"}), NextId()));
  REQUIRE(running.container->init.Start(In(10)));
  REQUIRE(running.container->init.Signal(SIGKILL));
  CHECK(Reap(running.container->init.pidfd()) == 128 + SIGKILL);
  const auto late = running.container->init.Signal(SIGTERM);
  REQUIRE_FALSE(late);
  CHECK(late.error().err == ESRCH);
  REQUIRE(EngineMachine::Get().engine().Destroy(*running.container, In(10)));
  running.container.reset();
}

TEST_CASE("the program is process 1 of a pid namespace and sees only itself") {
  CHECK(RunShell("echo $$; ls -d /proc/[0-9]*").out == "1\n/proc/1\n");
}

TEST_CASE("hostname, user, groups, environment, working directory and umask are as configured") {
  Json config = DefaultConfig(
      EngineMachine::Get().root(),
      {"sh", "-c", "hostname; id; echo $A $HOME; pwd; umask; grep NoNewPrivs /proc/self/status"});
  config["process"]["user"] = {{"uid", 1000}, {"gid", 1000}, {"additionalGids", {5, 6}}, {"umask", 0077}};
  config["process"]["env"] = {"PATH=/bin", "A=1", "A=2"};
  config["process"]["cwd"] = "/tmp";
  const Outcome outcome = Run(config);
  CHECK(outcome.out ==
        "test\nuid=1000(user) gid=1000 groups=5,6\n2 /home/user\n/tmp\n0077\nNoNewPrivs:\t1\n");
}

TEST_CASE("a missing working directory is made") {
  Json config = DefaultConfig(EngineMachine::Get().MakeRoot("cwd"), {"pwd"});
  config["root"]["readonly"] = false;
  config["process"]["cwd"] = "/not/there/yet";
  CHECK(Run(config).out == "/not/there/yet\n");
}

TEST_CASE("escape 11: capabilities are exactly the configured sets") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"grep", "Cap", "/proc/self/status"});
  config["process"]["capabilities"] = {{"bounding", {"CAP_CHOWN", "CAP_KILL"}},
                                       {"permitted", {"CAP_CHOWN", "CAP_KILL"}},
                                       {"effective", {"CAP_CHOWN"}},
                                       {"inheritable", Json::array()},
                                       {"ambient", Json::array()}};
  // Root's execve raises permitted and effective to the bounding set; what counts is that nothing else is
  // there, and that the inheritable set is empty (CVE-2022-24769).
  CHECK(Run(config).out ==
        "CapInh:\t0000000000000000\nCapPrm:\t0000000000000021\nCapEff:\t0000000000000021\n"
        "CapBnd:\t0000000000000021\nCapAmb:\t0000000000000000\n");
  config["process"]["user"] = {{"uid", 1000}, {"gid", 1000}};
  config["process"]["capabilities"]["inheritable"] = {"CAP_KILL"};
  config["process"]["capabilities"]["ambient"] = {"CAP_KILL", "CAP_SYS_ADMIN"};
  CHECK(Run(config).out ==
        "CapInh:\t0000000000000020\nCapPrm:\t0000000000000020\nCapEff:\t0000000000000020\n"
        "CapBnd:\t0000000000000021\nCapAmb:\t0000000000000020\n");
}

TEST_CASE("rlimits and oom_score_adj are set") {
  Json config = DefaultConfig(EngineMachine::Get().root(),
                              {"sh", "-c", "ulimit -n; ulimit -c; cat /proc/self/oom_score_adj"});
  config["process"]["rlimits"] = {{{"type", "RLIMIT_NOFILE"}, {"soft", 77}, {"hard", 88}},
                                  {{"type", "RLIMIT_CORE"}, {"soft", 0}, {"hard", 0}}};
  config["process"]["oomScoreAdj"] = 321;
  CHECK(Run(config).out == "77\n0\n321\n");
}

TEST_CASE("default devices and links are there and nothing else") {
  const Outcome outcome = RunShell(
      "cd /dev; ls; stat -c '%F %t:%T %a' null tty; readlink fd; readlink ptmx; echo x > null; head -c 3 "
      "zero | wc -c");
  CHECK(outcome.out ==
        "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n"
        "character special file 1:3 666\ncharacter special file 5:0 666\n/proc/self/fd\npts/ptmx\n3\n");
}

TEST_CASE("configured devices are made with mode and owner, and used when allowed") {
  Json config =
      DefaultConfig(EngineMachine::Get().root(),
                    {"sh", "-c", "stat -c '%F %t:%T %a %u:%g' /dev/sub/zz; head -c 2 /dev/sub/zz | wc -c"});
  config["linux"]["devices"] = {{{"path", "/dev/sub/zz"},
                                 {"type", "c"},
                                 {"major", 1},
                                 {"minor", 5},
                                 {"fileMode", 0644},
                                 {"uid", 3},
                                 {"gid", 4}}};
  CHECK(Run(config).out == "character special file 1:5 644 3:4\n2\n");
}

TEST_CASE("escape 19: the device filter denies what no rule allows, CAP_MKNOD or not") {
  // /dev/fuse can be made, but not opened.
  Json config =
      DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", "mknod /dev/k c 10 229 && exec 3< /dev/k"});
  for (const char* set : {"bounding", "effective", "permitted"})
    config["process"]["capabilities"][set] = {"CAP_MKNOD"};
  config["process"]["capabilities"]["ambient"] = Json::array();
  const Outcome denied = Run(config);
  CHECK(denied.status != 0);
  CHECK(denied.err.find("Operation not permitted") != std::string::npos);
  config["linux"]["resources"]["devices"] = Json::array();
  CHECK(Run(config).err.find("Operation not permitted") != std::string::npos);
  config["linux"]["resources"]["devices"] = {
      {{"allow", false}, {"access", "rwm"}},
      {{"allow", true}, {"type", "c"}, {"major", 10}, {"minor", 229}, {"access", "rwm"}}};
  CHECK(Run(config).status == 0);
}

TEST_CASE("masked paths read as empty, read-only paths refuse writes, the root is read-only") {
  const Outcome outcome = RunShell(
      "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/hostname || echo ro1; "
      "touch /x || echo ro2; "
      "echo b > /proc/sysrq-trigger || echo ro3");
  CHECK(outcome.out == "0\n0\nro1\nro2\nro3\n");
}

TEST_CASE("a bind mount shows the source with its flags, also recursively") {
  const TempDir source;
  REQUIRE(base::ReplaceFile(source / "file", "content", 0644));
  REQUIRE(mkdir((source / "sub").c_str(), 0755) == 0);
  REQUIRE(mount("tmpfs", (source / "sub").c_str(), "tmpfs", 0, nullptr) == 0);
  REQUIRE(base::ReplaceFile(source / "sub/inner", "inner", 0644));
  Json config = DefaultConfig(
      EngineMachine::Get().MakeRoot("bind"),
      {"sh", "-c",
       "cat /data/file /data/sub/inner /one; touch /data/x || echo ro; touch /data/sub/x && echo rw"});
  config["root"]["readonly"] = false;
  config["mounts"].push_back(
      {{"destination", "/data"}, {"type", "bind"}, {"source", source.path()}, {"options", {"rbind", "ro"}}});
  config["mounts"].push_back(
      {{"destination", "/one"}, {"source", source / "file"}, {"options", {"bind", "ro"}}});
  CHECK(Run(config).out == "contentinnercontentro\nrw\n");
  config["mounts"][7]["options"] = {"rbind", "rro"};
  CHECK(Run(config).out == "contentinnercontentro\n");
  CHECK(umount2((source / "sub").c_str(), MNT_DETACH) == 0);
}

TEST_CASE("a file that the image lacks is made for what is mounted there, also in a read-only root") {
  TempDir dir;
  REQUIRE(base::ReplaceFile(dir / "source", "mounted", 0644));
  Json config = DefaultConfig(EngineMachine::Get().MakeRoot("lacking"), {"cat", "/new/place"});
  config["root"]["readonly"] = true;
  config["mounts"].push_back(
      {{"destination", "/new/place"}, {"source", dir / "source"}, {"options", {"bind", "ro"}}});
  CHECK(Run(config).out == "mounted");
}

TEST_CASE("sysctls of own namespaces are written") {
  Json config =
      DefaultConfig(EngineMachine::Get().root(),
                    {"cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/msgmax"});
  config["linux"]["sysctl"] = {{"net.ipv4.ip_unprivileged_port_start", "99"}, {"kernel/msgmax", "7777"}};
  CHECK(Run(config).out == "99\n7777\n");
}

TEST_CASE("loopback is up in a new network namespace") {
  CHECK(RunShell("cat /sys/class/net/lo/flags").out == "0x9\n");
}

TEST_CASE("each container has a network namespace of its own, spare or new, that ends with it") {
  const auto network_of = [](const std::string& process) {
    return std::filesystem::read_symlink("/proc/" + process + "/ns/net").string();
  };
  // More than there are spare ones, twice, so that those that were filled up are taken, too.
  for (int round = 0; round < 2; ++round) {
    // Of those that live: numbers of namespaces that are gone are used again.
    std::set<std::string> seen{network_of("self")};
    std::vector<std::unique_ptr<RunningContainer>> all;
    for (int i = 0; i < 5; ++i) {
      all.push_back(std::make_unique<RunningContainer>());
      REQUIRE(all.back()->Create(
          DefaultConfig(
              EngineMachine::Get().root(),
              {"/bin/sh", "-c", "cat /sys/class/net/lo/flags /proc/net/dev | grep -c -e 0x9 -e lo: -e :"}),
          NextId()));
      CHECK(seen.insert(network_of(std::to_string(all.back()->container->init.pid()))).second);
    }
    for (auto& one : all) {
      REQUIRE(one->Start());
      CHECK(one->Finish().out == "2\n");  // loopback, up, and no other device
    }
  }
  // Nobody of ours is left in one of them.
  const auto all_at_home = [&] {
    return std::ranges::all_of(std::filesystem::directory_iterator("/proc/self/task"), [&](const auto& task) {
      return network_of("self/task/" + task.path().filename().string()) == network_of("self");
    });
  };
  const int64_t deadline = In(10);
  while (!all_at_home() && base::MonotonicNs() < deadline) usleep(1000);
  CHECK(all_at_home());
  size_t held = 0;
  for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code closed;
    if (std::filesystem::read_symlink(fd.path(), closed).string().starts_with("net:")) ++held;
  }
  CHECK(held <= EngineMachine::kSpareNetworks + 1);  // and the way back of the thread that makes them
}

TEST_CASE("network, ipc and uts namespaces are joined by path; a file of another kind is refused") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"readlink", "/proc/self/ns/net"});
  config["linux"]["namespaces"] = {{{"type", "pid"}},   {{"type", "network"}, {"path", "/proc/self/ns/net"}},
                                   {{"type", "ipc"}},   {{"type", "uts"}},
                                   {{"type", "mount"}}, {{"type", "cgroup"}}};
  CHECK(Run(config).out == std::filesystem::read_symlink("/proc/self/ns/net").string() + "\n");
  config["linux"]["namespaces"][1]["path"] = "/proc/self/ns/uts";
  const base::Error error = FailCreate(config);
  CHECK(error.step == "open namespace");
  CHECK(error.err == EINVAL);
}

TEST_CASE("seccomp rules apply, with and without no_new_privs") {
  for (const bool no_new_privileges : {true, false}) {
    Json config = DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", "hostname; pwd"});
    config["process"]["noNewPrivileges"] = no_new_privileges;
    config["linux"]["seccomp"] = {
        {"defaultAction", "SCMP_ACT_ALLOW"},
        {"architectures", {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86"}},
        {"syscalls",
         {{{"names", {"uname", "no_such_call"}}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", 95}}}}};
    const Outcome outcome = Run(config);
    CHECK(outcome.out.find("test") == std::string::npos);
    CHECK(outcome.out.find("/\n") != std::string::npos);
  }
}

TEST_CASE("a terminal is the container's own pty, with size and console") {
  Json config = DefaultConfig(EngineMachine::Get().root(),
                              {"sh", "-c", "tty; stty size; [ -c /dev/console ] && echo console"});
  config["process"]["terminal"] = true;
  config["process"]["consoleSize"] = {{"height", 11}, {"width", 22}};
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  REQUIRE_MESSAGE(created, created.error().ToString());
  base::Fd master = running.container->init.TakeConsole();
  REQUIRE(master.valid());
  REQUIRE(running.container->init.Start(In(10)));
  std::string text;
  char buffer[512];
  for (ssize_t n = 0; (n = read(master.get(), buffer, sizeof buffer)) > 0;) text.append(buffer, n);
  CHECK(text == "/dev/pts/0\r\n11 22\r\nconsole\r\n");
  CHECK(running.Finish().status == 0);
}

TEST_CASE("exec enters all namespaces, with its own user and terminal") {
  RunningContainer running;
  REQUIRE(running.Create(DefaultConfig(EngineMachine::Get().root(), {"sleep", "1000"}), NextId()));
  REQUIRE(running.container->init.Start(In(10)));
  auto process = engine::ParseProcess(
      R"({"args": ["sh", "-c", "hostname; id -u; ls -d /proc/1; readlink /proc/self/ns/pid; exit 9"],
                                          "user": {"uid": 1000}})",
      *running.container->spec.process);
  REQUIRE_MESSAGE(process, process.error().ToString());
  Pipe out;
  auto child = EngineMachine::Get().engine().Exec(
      *running.container, *process,
      {.stdio = {running.null.get(), out.write_end.get(), out.write_end.get()}, .deadline_ns = In(10)});
  REQUIRE_MESSAGE(child, child.error().ToString());
  out.write_end.Reset();
  REQUIRE(child->Start(In(10)));
  const std::string text = ReadAll(out.read_end);
  CHECK(Reap(child->pidfd()) == 9);
  const auto pid_ns =
      std::filesystem::read_symlink("/proc/" + std::to_string(running.container->init.pid()) + "/ns/pid");
  CHECK(text == "test\n1000\n/proc/1\n" + pid_ns.string() + "\n");

  SUBCASE("a program that isn't there is an error with step and errno, at once") {
    auto missing = engine::ParseProcess(R"({"args": ["/no/such"]})", *running.container->spec.process);
    REQUIRE(missing);
    const int64_t begin = base::MonotonicNs();
    const auto none = EngineMachine::Get().engine().Exec(
        *running.container, *missing,
        {.stdio = {running.null.get(), running.null.get(), running.null.get()}, .deadline_ns = In(10)});
    REQUIRE_FALSE(none);
    CHECK(none.error().step == "find program");
    CHECK(none.error().err == ENOENT);
    CHECK(none.error().object == "/no/such");
    CHECK(base::MonotonicNs() - begin < 2 * base::kNsPerSec);
  }
}

TEST_CASE("programs that can't run are errors of create that name step, program and errno") {
  const std::string root = EngineMachine::Get().MakeRoot("programs");
  const auto error = [&](const std::string& program) { return FailCreate(DefaultConfig(root, {program})); };
  CHECK(error("/bin/missing").err == ENOENT);
  CHECK(error("missing").err == ENOENT);
  CHECK(error("/etc/passwd").err == EACCES);
  CHECK(error("/bin").err == EACCES);
  const base::Error missing = error("missing");
  CHECK(missing.step == "find program");
  CHECK(missing.object == "missing");
  // A file that is executable, but no program, fails at start.
  REQUIRE(base::ReplaceFile(root + "/bin/garbage", "\x01\x02", 0755));
  RunningContainer running;
  REQUIRE(running.Create(DefaultConfig(root, {"/bin/garbage"}), NextId()));
  const auto started = running.container->init.Start(In(10));
  REQUIRE_FALSE(started);
  CHECK(started.error().step == "execve");
  CHECK(started.error().err == ENOEXEC);
  CHECK(running.Finish().status == 126);
}

TEST_CASE("a failed create leaves no cgroup, process or mount behind") {
  const auto snapshot = [] {
    std::string all;
    const std::string dir = "/sys/fs/cgroup" + EngineMachine::Get().cgroup_parent();
    if (std::filesystem::exists(dir)) {
      for (const auto& entry : std::filesystem::directory_iterator(dir)) {
        if (entry.is_directory()) all += entry.path().string() + "\n";
      }
    }
    // Not their numbers: what the engine keeps may be opened anew.
    all += std::to_string(Descriptors()) + " descriptors\n";
    all += *base::ReadFile("/proc/self/task/" + std::to_string(getpid()) + "/children");
    return all + *base::ReadFile("/proc/self/mountinfo");
  };
  const std::string root = EngineMachine::Get().root();
  // What the engine keeps once it has made one is no leak.
  REQUIRE(RunShell("true").status == 0);
  const std::string before = snapshot();
  Json bad_source = DefaultConfig(root, {"true"});
  bad_source["mounts"].push_back(
      {{"destination", "/x"}, {"source", "/no/such/source"}, {"options", {"bind"}}});
  Json bad_type = DefaultConfig(root, {"true"});
  bad_type["mounts"].push_back({{"destination", "/tmp"}, {"type", "nofs"}, {"source", "x"}});
  Json bad_option = DefaultConfig(root, {"true"});
  bad_option["mounts"].push_back({{"destination", "/tmp"}, {"type", "tmpfs"}, {"options", {"bogus=1"}}});
  Json bad_root = DefaultConfig("/no/such/root", {"true"});
  Json bad_cgroup = DefaultConfig(root, {"true"});
  bad_cgroup["linux"]["resources"]["unified"] = {{"no.such.file", "1"}};
  Json reserved = DefaultConfig(root, {"true"});
  reserved["linux"]["cgroupsPath"] = "/gcs/../gcs/x";
  const std::pair<Json*, std::pair<const char*, int>> cases[] = {
      {&bad_source, {"open mount source", ENOENT}}, {&bad_type, {"fsopen", ENODEV}},
      {&bad_option, {"fsconfig", EINVAL}},          {&bad_root, {"open mount source", ENOENT}},
      {&bad_cgroup, {"set limit", EOPNOTSUPP}},     {&reserved, {"make cgroup", EPERM}}};
  for (const auto& [config, expected] : cases) {
    const base::Error error = FailCreate(*config);
    CHECK(error.step == expected.first);
    CHECK(error.err == expected.second);
    CHECK_FALSE(error.object.empty());
  }
  CHECK(snapshot() == before);
}

TEST_CASE("escape 03: no descriptor of the engine is open in the container") {
  CHECK(RunShell("ls /proc/self/fd | wc -l").out == "4\n");  // 0-2, and the directory that ls has opened
}

TEST_CASE("escape 03: the working directory can't lead out of the root through a leaked descriptor") {
  for (int fd = 3; fd < 40; ++fd) {
    Json config = DefaultConfig(EngineMachine::Get().root(), {"ls", ".."});
    config["process"]["cwd"] = "/proc/self/fd/" + std::to_string(fd);
    RunningContainer running;
    const auto created = running.Create(config, NextId());
    CHECK_FALSE(created);
  }
}

TEST_CASE("escape 10: a symbolic link as /dev or as a mount target stays inside the root") {
  const TempDir outside;
  const TempDir elsewhere;
  const std::string root = EngineMachine::Get().MakeRoot("links");
  std::filesystem::remove(root + "/dev");
  std::filesystem::create_symlink(outside.path(), root + "/dev");
  std::filesystem::create_symlink(elsewhere.path(), root + "/data");
  Json config = DefaultConfig(root, {"true"});
  config["root"]["readonly"] = false;
  config["mounts"].push_back(
      {{"destination", "/data/new/file"}, {"source", "/bin/busybox"}, {"options", {"bind"}}});
  CHECK(Run(config).status == 0);
  CHECK(std::filesystem::is_empty(outside.path()));
  CHECK(std::filesystem::is_empty(elsewhere.path()));
  CHECK(std::filesystem::exists(root + elsewhere.path() + "/new/file"));
}

TEST_CASE("escape 06: /proc of the image may not be a link") {
  const std::string root = EngineMachine::Get().MakeRoot("proclink");
  std::filesystem::remove(root + "/proc");
  std::filesystem::create_symlink("/tmp", root + "/proc");
  const base::Error error = FailCreate(DefaultConfig(root, {"true"}));
  CHECK(error.step == "open mount target");
}

TEST_CASE("escape 08: the container's /dev/null of the image is not what covers masked paths") {
  const std::string root = EngineMachine::Get().MakeRoot("nulllink");
  Json config = DefaultConfig(root, {"sh", "-c", "cat /proc/keys; ls -l /dev/null"});
  std::erase_if(config["mounts"].get_ref<Json::array_t&>(),
                [](const Json& m) { return m["destination"] == "/dev"; });
  std::filesystem::create_symlink("/proc/sysrq-trigger", root + "/dev/null");
  const base::Error error = FailCreate(config);
  CHECK(error.step == "mknod");  // not a device: refused rather than trusted
  std::filesystem::remove(root + "/dev/null");
  config["root"]["readonly"] = false;
  CHECK(Run(config).out.find("1,   3") != std::string::npos);
}

TEST_CASE("200 containers one after the other leave nothing") {
  const bool full = getenv("GCS_TEST_FULL") != nullptr;
  const int rounds = full ? 2000 : 200;
  const Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  CHECK(Run(config).status == 0);
  const auto before = Descriptors();
  const int64_t begin = base::MonotonicNs();
  for (int i = 0; i < rounds; ++i) REQUIRE(Run(config).status == 0);
  MESSAGE("ms per container: " << (base::MonotonicNs() - begin) / 1e6 / rounds);
  CHECK(Descriptors() == before);
}

}  // namespace
}  // namespace gcs::test
