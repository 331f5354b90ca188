// SPDX-License-Identifier: Apache-2.0
// Classes of escapes that container engines have had, by the advisory that named them. Further ones are in
// engine_test.cc (working directory, /dev, /proc, masked paths, devices, descriptors), engine_cgroup_test.cc
// (no cgroup namespace) and engine_seccomp_test.cc (listener).
#include <linux/fs.h>
#include <sys/syscall.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "support/skip.h"
#include "system/engine_support.h"

namespace gcs::test {
namespace {

namespace fs = std::filesystem;
using base::Json;

int Rounds(int ci, int full) { return getenv("GCS_TEST_FULL") != nullptr ? full : ci; }

// Exchanges two names as fast as it can while it lives.
class Swapper {
 public:
  Swapper(std::string a, std::string b)
      : thread_([this, a = std::move(a), b = std::move(b)] {
          while (!stop_) syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE);
        }) {}
  ~Swapper() {
    stop_ = true;
    thread_.join();
  }
  Swapper(const Swapper&) = delete;
  Swapper& operator=(const Swapper&) = delete;

 private:
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

std::string Listing(const std::string& dir) {
  std::string all;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) all += entry.path().string() + "\n";
  return all;
}

TEST_CASE("CVE-2016-9962: a container that watches /proc never sees a descriptor of an exec's preparation") {
  RunningContainer running;
  // Whatever is not of the container's own root, null or pipes is told. With CAP_SYS_PTRACE, and no user
  // namespace to bound it, the kernel would show all: who gives that gives the VM.
  Json config = DefaultConfig(
      EngineMachine::Get().root(),
      {"sh", "-c",
       "while :; do for f in /proc/[0-9]*/fd/* /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe; do "
       "l=$(readlink $f 2>/dev/null) && case $l in *gcs-test*|*system_engine*|*cgroup*|*pidfd*|*socket:*) "
       "echo $f $l;; "
       "esac; done; done"});
  for (const char* set : {"bounding", "effective", "permitted"}) {
    config["process"]["capabilities"][set] = {"CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"};
  }
  config["process"]["capabilities"]["ambient"] = Json::array();
  REQUIRE(running.Create(config, NextId()));
  REQUIRE(running.Start());
  for (int i = 0; i < Rounds(50, 2000); ++i) {
    auto process = engine::ParseProcess(R"({"args": ["true"]})", *running.container->spec.process);
    REQUIRE(process);
    auto child = EngineMachine::Get().engine().Exec(
        *running.container, *process,
        {.stdio = {running.null.get(), running.null.get(), running.null.get()}, .deadline_ns = In(10)});
    REQUIRE_MESSAGE(child, child.error().ToString());
    REQUIRE(child->Start(In(10)));
    CHECK(Reap(child->pidfd()) == 0);
  }
  REQUIRE(running.container->init.Signal(SIGKILL));
  CHECK(running.Finish().out == "");
}

TEST_CASE(
    "CVE-2021-30465, CVE-2024-45310: a mount target that is exchanged with a link never leads outside") {
  const TempDir outside;
  const TempDir volume;
  const std::string root = EngineMachine::Get().MakeRoot("exchange");
  fs::create_directories(volume.path() + "/a");
  fs::create_symlink(outside.path(), volume.path() + "/b");
  Json config = DefaultConfig(root, {"true"});
  config["mounts"].push_back(
      {{"destination", "/tmp"}, {"type", "bind"}, {"source", volume.path()}, {"options", {"rbind"}}});
  config["mounts"].push_back({{"destination", "/tmp/a/sub/dir"}, {"type", "tmpfs"}, {"source", "tmpfs"}});
  config["mounts"].push_back({{"destination", "/tmp/a/sub/file"},
                              {"type", "bind"},
                              {"source", "/bin/busybox"},
                              {"options", {"bind"}}});
  config["linux"]["devices"] = {{{"path", "/tmp/a/node"}, {"type", "c"}, {"major", 1}, {"minor", 3}}};
  const std::string mounts = *base::ReadFile("/proc/self/mountinfo");
  const Swapper swapper(volume.path() + "/a", volume.path() + "/b");
  int made = 0;
  for (int i = 0; i < Rounds(200, 10'000); ++i) {
    RunningContainer running;
    // To lose the race is no failure, as long as nothing is made outside.
    made += running.Create(config, NextId()).has_value() ? 1 : 0;
  }
  CHECK(made > 0);
  CHECK(fs::is_empty(outside.path()));
  CHECK(*base::ReadFile("/proc/self/mountinfo") == mounts);
}

TEST_CASE("CVE-2025-52881, CVE-2019-16884: a sysctl reaches the kernel, whatever the image has at /proc") {
  const TempDir outside;
  REQUIRE(base::ReplaceFile(outside / "victim", "untouched", 0666));
  const std::string root = EngineMachine::Get().MakeRoot("fakeproc");
  fs::create_directories(root + "/proc/sys/net/ipv4");
  fs::create_symlink(outside / "victim", root + "/proc/sys/net/ipv4/ip_forward");
  Json config = DefaultConfig(root, {"cat", "/tmp/sys/net/ipv4/ip_forward"});
  std::erase_if(config["mounts"].get_ref<Json::array_t&>(),
                [](const Json& m) { return m["destination"] == "/proc"; });
  config["mounts"].push_back({{"destination", "/tmp"}, {"type", "proc"}, {"source", "proc"}});
  config["linux"]["sysctl"] = {{"net.ipv4.ip_forward", "1"}};
  CHECK(Run(config).out == "1\n");
  CHECK(*base::ReadFile(outside / "victim") == "untouched");
}

TEST_CASE("CVE-2025-52565: /dev/console of the image as a link stays inside, and the console is the pty") {
  const TempDir outside;
  REQUIRE(base::ReplaceFile(outside / "victim", "untouched", 0666));
  const std::string root = EngineMachine::Get().MakeRoot("console");
  Json config = DefaultConfig(root, {"sh", "-c", "[ -c /dev/console ] && stat -L -c %t:%T /dev/console"});
  std::erase_if(config["mounts"].get_ref<Json::array_t&>(),
                [](const Json& m) { return m["destination"] == "/dev"; });
  fs::create_symlink(outside / "victim", root + "/dev/console");
  config["process"]["terminal"] = true;
  config["root"]["readonly"] = false;
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  REQUIRE_MESSAGE(created, created.error().ToString());
  const base::Fd master = running.container->init.TakeConsole();
  REQUIRE(running.Start());
  std::string text;
  char buffer[512];
  for (ssize_t n = 0; (n = read(master.get(), buffer, sizeof buffer)) > 0;) text.append(buffer, n);
  CHECK(text == "88:0\r\n");  // major 136: a pty
  CHECK(running.Finish().status == 0);
  CHECK(*base::ReadFile(outside / "victim") == "untouched");
}

TEST_CASE("CVE-2022-0492: no release_agent is within reach, with all capabilities in a user namespace") {
  const std::string root = EngineMachine::Get().MakeRoot("release");
  fs::create_symlink("busybox", root + "/bin/find");
  Json config = DefaultConfig(root, {"find", "/sys/fs/cgroup", "-name", "release_agent"});
  config["root"]["readonly"] = false;
  config["linux"]["namespaces"].push_back({{"type", "user"}});
  const Json map = {{{"containerID", 0}, {"hostID", 0}, {"size", 65536}}};
  config["linux"]["uidMappings"] = map;
  config["linux"]["gidMappings"] = map;
  for (const char* set : {"bounding", "effective", "permitted"}) {
    config["process"]["capabilities"][set] = {"CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"};
  }
  const Outcome outcome = Run(config);
  CHECK(outcome.status == 0);
  CHECK(outcome.out.empty());
}

TEST_CASE("CVE-2021-43784: long strings and many of them arrive whole or are refused") {
  const std::string big(70'000, 'x');
  Json config = DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", "echo ${#BIG}"});
  config["process"]["env"].push_back("BIG=" + big);
  CHECK(Run(config).out == "70000\n");
  for (int i = 0; i < 3000; ++i)
    config["process"]["env"].push_back("V" + std::to_string(i) + "=" + std::string(100, 'y'));
  CHECK(Run(config).out == "70000\n");
  Json data = DefaultConfig(EngineMachine::Get().root(), {"true"});
  data["mounts"].push_back(
      {{"destination", "/tmp"}, {"type", "tmpfs"}, {"source", "tmpfs"}, {"options", {"size=" + big}}});
  const base::Error error = FailCreate(data);
  CHECK(error.step == "fsconfig");
  Json long_path = DefaultConfig(EngineMachine::Get().root(), {"true"});
  long_path["linux"]["maskedPaths"] = {"/" + big};
  CHECK(FailCreate(long_path).err == ENAMETOOLONG);
}

TEST_CASE("CVE-2025-24965: the engine leaves no file of its own in the root file system") {
  const std::string root = EngineMachine::Get().MakeRoot("untouched");
  Json config = DefaultConfig(root, {"true"});
  config["root"]["readonly"] = false;
  REQUIRE(Run(config).status == 0);
  const std::string before = Listing(root);
  REQUIRE(Run(config).status == 0);
  CHECK(Listing(root) == before);
  // The mount points that were missing, and nothing else.
  for (const char* made : {"/dev/pts", "/dev/console", "/sys/fs"})
    CHECK(before.find(root + made) == std::string::npos);
}

TEST_CASE("CVE-2022-0811: a sysctl can't carry another one, or lead somewhere else") {
  const std::string root = EngineMachine::Get().root();
  for (const char* key : {"net.ipv4.ip_forward+kernel.core_pattern", "net/../kernel/core_pattern",
                          "net.ipv4.ip_forward=1 kernel.core_pattern", "kernel.core_pattern", "net..ipv4",
                          "net/ipv4.ip_forward"}) {
    CAPTURE(key);
    Json config = DefaultConfig(root, {"true"});
    config["linux"]["sysctl"] = {{key, "1"}};
    CHECK_FALSE(engine::ParseSpec(config.dump()));
  }
  Json config = DefaultConfig(root, {"true"});
  config["linux"]["sysctl"] = {{"net.ipv4.ip_forward", "1\nkernel.core_pattern=|/x"}};
  CHECK_FALSE(engine::ParseSpec(config.dump()));
}

TEST_CASE("a cgroupsPath with .. stays below the cgroup file system") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  config["linux"]["cgroupsPath"] = "../../../../gcs-escape";
  RunningContainer running;
  REQUIRE(running.Create(config, NextId()));
  CHECK(running.container->cgroup->path() == EngineMachine::Get().cgroup_parent() + "/gcs-escape");
}

TEST_CASE("CVE-2024-21626: no descriptor leads out, whatever number the working directory names") {
  for (int fd = 3; fd < Rounds(64, 1024); ++fd) {
    Json config = DefaultConfig(EngineMachine::Get().root(), {"ls", "/proc/self/cwd/.."});
    config["process"]["cwd"] = "/proc/self/fd/" + std::to_string(fd) + "/../..";
    RunningContainer running;
    if (!running.Create(config, NextId())) continue;
    REQUIRE(running.Start());
    CHECK(running.Finish().out.find("gcs-test") == std::string::npos);
  }
}

}  // namespace
}  // namespace gcs::test
