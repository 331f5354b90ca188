// SPDX-License-Identifier: Apache-2.0
// User and time namespaces, and namespaces that are joined by path.
#include <csignal>

#include "system/engine_support.h"

namespace gcs::test {
namespace {

using base::Json;

constexpr uint32_t kBase = 100'000;

// A container in a user namespace of 65536 ids from kBase, on a root file system that they own.
Json UserConfig(const std::string& root, const std::vector<std::string>& args) {
  Json config = DefaultConfig(root, args);
  config["root"]["readonly"] = false;
  config["linux"]["namespaces"].push_back({{"type", "user"}});
  const Json map = {{{"containerID", 0}, {"hostID", kBase}, {"size", 65536}}};
  config["linux"]["uidMappings"] = map;
  config["linux"]["gidMappings"] = map;
  return config;
}

std::string MakeUserRoot(const std::string& name) {
  const std::string root = EngineMachine::Get().MakeRoot(name);
  REQUIRE(chown(root.c_str(), kBase, kBase) == 0);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    REQUIRE(lchown(entry.path().c_str(), kBase, kBase) == 0);
  }
  return root;
}

std::string NamespaceOf(int pid, const char* name) {
  return std::filesystem::read_symlink("/proc/" + std::to_string(pid) + "/ns/" + name).string();
}

TEST_CASE("a user namespace has the mappings, its own devices, and no rights outside") {
  const std::string root = MakeUserRoot("user");
  Json config = UserConfig(
      root, {"sh", "-c",
             "id; cat /proc/self/uid_map; stat -c '%F %t:%T %u:%g %a' /dev/null; echo x > /dev/null; "
             "head -c 2 /dev/zero | wc -c; touch /made; hostname; cat /proc/sys/net/ipv4/ip_forward; "
             "mknod /dev/sda b 8 0; dmesg -n 1; ls /sys/fs/cgroup/cgroup.procs "
             "/sys/fs/cgroup/pids/cgroup.procs 2>/dev/null | wc -l"});
  config["linux"]["sysctl"] = {{"net.ipv4.ip_forward", "1"}};
  const Outcome outcome = Run(config);
  CHECK(
      outcome.out ==
      "uid=0(root) gid=0\n         0     100000      65536\ncharacter special file 1:3 0:0 666\n2\ntest\n1\n"
      "1\n");
  CHECK(outcome.err.find("mknod: /dev/sda: Operation not permitted") != std::string::npos);
  struct stat st{};
  REQUIRE(stat((root + "/made").c_str(), &st) == 0);
  CHECK(st.st_uid == kBase);
}

TEST_CASE("masked and read-only paths hold in a user namespace, a tty works") {
  const std::string root = MakeUserRoot("user-tty");
  Json config = UserConfig(
      root, {"sh", "-c", "cat /proc/keys | wc -c; echo 1 > /proc/sys/kernel/hostname || echo ro; tty"});
  config["process"]["terminal"] = true;
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  REQUIRE_MESSAGE(created, created.error().ToString());
  base::Fd master = running.container->init.TakeConsole();
  REQUIRE(running.Start());
  std::string text;
  char buffer[512];
  for (ssize_t n = 0; (n = read(master.get(), buffer, sizeof buffer)) > 0;) text.append(buffer, n);
  CHECK(text.starts_with("0\r\n"));
  CHECK(text.ends_with("ro\r\n/dev/pts/0\r\n"));
  CHECK(running.Finish().status == 0);
}

TEST_CASE("exec enters the user namespace, as another user, with exactly the capabilities") {
  RunningContainer running;
  const auto created = running.Create(UserConfig(MakeUserRoot("user-exec"), {"sleep", "1000"}), NextId());
  REQUIRE_MESSAGE(created, created.error().ToString());
  REQUIRE(running.Start());
  auto process = engine::ParseProcess(
      R"({"args": ["sh", "-c", "id; grep CapInh /proc/self/status; readlink /proc/self/ns/user"],
          "user": {"uid": 1000, "gid": 7, "additionalGids": [9]}})",
      *running.container->spec.process);
  REQUIRE(process);
  Pipe out;
  auto child = EngineMachine::Get().engine().Exec(
      *running.container, *process,
      {.stdio = {running.null.get(), out.write_end.get(), out.write_end.get()}, .deadline_ns = In(10)});
  REQUIRE_MESSAGE(child, child.error().ToString());
  out.write_end.Reset();
  REQUIRE(child->Start(In(10)));
  CHECK(ReadAll(out.read_end) == "uid=1000(user) gid=7 groups=9\nCapInh:\t0000000000000000\n" +
                                     NamespaceOf(running.container->init.pid(), "user") + "\n");
  CHECK(Reap(child->pidfd()) == 0);
}

TEST_CASE("a container whose ids begin elsewhere than 0 is built by the first of them") {
  const std::string root = EngineMachine::Get().MakeRoot("user-1000");
  Json config = UserConfig(root, {"sh", "-c", "id -u; cat /proc/self/gid_map"});
  const Json map = {{{"containerID", 1000}, {"hostID", 0}, {"size", 1}}};
  config["linux"]["uidMappings"] = map;
  config["linux"]["gidMappings"] = map;
  config["process"]["user"] = {{"uid", 1000}, {"gid", 1000}};
  // Nobody in there may own the defaults, which are root's.
  CHECK(FailCreate(config).object == "/dev/null");
  config["mounts"].push_back(
      {{"destination", "/dev"}, {"type", "bind"}, {"source", "/dev"}, {"options", {"rbind"}}});
  // devpts' gid=5 is no id of this namespace either.
  config["mounts"].erase(2);
  const Outcome outcome = Run(config);
  CHECK(outcome.out == "1000\n      1000          0          1\n");
}

TEST_CASE("mappings that the kernel refuses are an error of create that names them") {
  Json config = UserConfig(EngineMachine::Get().root(), {"true"});
  config["linux"]["uidMappings"].push_back({{"containerID", 5}, {"hostID", 7}, {"size", 10}});
  const base::Error error = FailCreate(config);
  CHECK(error.step == "write id map");
  CHECK(error.object == "uid_map");
  CHECK(error.err == EINVAL);
}

TEST_CASE("a pids limit of one is enough for a container that is built in stages") {
  Json config = UserConfig(MakeUserRoot("user-pids"), {"true"});
  // Cgroup v2 has no pids controller on this machine; the order of acts is the same.
  if (kCgroupView != CgroupView::kV2) config["linux"]["resources"]["pids"] = {{"limit", 1}};
  config["linux"]["namespaces"].push_back({{"type", "time"}});
  CHECK(Run(config).status == 0);
}

TEST_CASE("a time namespace has the offsets, and joins keep them") {
  Json config =
      DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", "cut -d. -f1 /proc/uptime; sleep 1000"});
  config["linux"]["namespaces"].push_back({{"type", "time"}});
  config["linux"]["timeOffsets"] = {{"boottime", {{"secs", 1'000'000}, {"nanosecs", 0}}},
                                    {"monotonic", {{"secs", 2'000'000}, {"nanosecs", 5}}}};
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  REQUIRE_MESSAGE(created, created.error().ToString());
  REQUIRE(running.Start());
  auto process = engine::ParseProcess(R"({"args": ["sh", "-c", "cat /proc/self/timens_offsets"]})",
                                      *running.container->spec.process);
  REQUIRE(process);
  Pipe out;
  auto child = EngineMachine::Get().engine().Exec(
      *running.container, *process,
      {.stdio = {running.null.get(), out.write_end.get(), out.write_end.get()}, .deadline_ns = In(10)});
  REQUIRE_MESSAGE(child, child.error().ToString());
  out.write_end.Reset();
  REQUIRE(child->Start(In(10)));
  CHECK(ReadAll(out.read_end) == "monotonic     2000000         5\nboottime      1000000         0\n");
  CHECK(Reap(child->pidfd()) == 0);
  char text[64] = {};
  REQUIRE(read(running.out.read_end.get(), text, sizeof text - 1) > 0);
  const int64_t uptime = std::stoll(text);
  CHECK(uptime > 1'000'000);
  CHECK(uptime < 1'000'000 + base::ClockNs(CLOCK_BOOTTIME) / base::kNsPerSec + 10);
  REQUIRE(running.container->init.Signal(SIGKILL));
  CHECK(running.Finish().status == 128 + SIGKILL);
}

TEST_CASE("namespaces are joined by path, all kinds that can be") {
  RunningContainer first;
  Json config = UserConfig(MakeUserRoot("join"), {"sleep", "1000"});
  config["linux"]["namespaces"].push_back({{"type", "time"}});
  REQUIRE(first.Create(config, NextId()));
  REQUIRE(first.Start());
  const int pid = first.container->init.pid();
  const std::string ns = "/proc/" + std::to_string(pid) + "/ns/";
  Json second = DefaultConfig(
      EngineMachine::Get().root() + "/../join",
      {"sh", "-c", "for n in pid net ipc uts user time cgroup mnt; do readlink /proc/self/ns/$n; done"});
  second["root"]["readonly"] = false;
  second.erase("hostname");
  second["linux"]["namespaces"] = {{{"type", "mount"}},
                                   {{"type", "pid"}, {"path", ns + "pid"}},
                                   {{"type", "user"}, {"path", ns + "user"}},
                                   {{"type", "network"}, {"path", ns + "net"}},
                                   {{"type", "ipc"}, {"path", ns + "ipc"}},
                                   {{"type", "uts"}, {"path", ns + "uts"}},
                                   {{"type", "time"}, {"path", ns + "time"}},
                                   {{"type", "cgroup"}, {"path", ns + "cgroup"}}};
  const Outcome outcome = Run(second);
  std::string expected;
  for (const char* name : {"pid", "net", "ipc", "uts", "user", "time", "cgroup"})
    expected += NamespaceOf(pid, name) + "\n";
  CHECK(outcome.out.starts_with(expected));
  CHECK(outcome.out.find(NamespaceOf(pid, "mnt")) == std::string::npos);
  CHECK(outcome.status == 0);
}

TEST_CASE("a path that is no namespace, or one of another kind, is refused by name") {
  for (const char* path : {"/etc/passwd", "/proc/self/ns/net"}) {
    Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
    config["linux"]["namespaces"][0] = {{"type", "pid"}, {"path", path}};
    const base::Error error = FailCreate(config);
    CHECK(error.step == "open namespace");
    CHECK(error.object == path);
    CHECK(error.err == EINVAL);
  }
}

TEST_CASE("an id-mapped bind mount shows the owner that the mapping gives") {
  const TempDir source;
  REQUIRE(base::ReplaceFile(source / "file", "x", 0644));
  REQUIRE(chown((source / "file").c_str(), 5, 6) == 0);
  REQUIRE(chmod(source.path().c_str(), 0777) == 0);
  const auto bind = [&](const Json& extra) {
    Json mount = {
        {"destination", "/tmp"}, {"type", "bind"}, {"source", source.path()}, {"options", {"bind", "idmap"}}};
    mount.update(extra);
    return mount;
  };
  const std::string root = MakeUserRoot("idmap-" + NextId());
  SUBCASE("with mappings of its own") {
    Json config = DefaultConfig(root, {"stat", "-c", "%u:%g", "/tmp/file"});
    const Json map = {{{"containerID", 0}, {"hostID", 1000}, {"size", 100}}};
    config["mounts"].push_back(bind({{"uidMappings", map}, {"gidMappings", map}}));
    CHECK(Run(config).out == "1005:1006\n");
    // Once more: the mapping's namespace is kept.
    CHECK(Run(config).out == "1005:1006\n");
  }
  SUBCASE("with those of the container's user namespace") {
    Json config = UserConfig(root, {"sh", "-c", "stat -c %u:%g /tmp/file; touch /tmp/new"});
    config["mounts"].push_back(bind(Json::object()));
    CHECK(Run(config).out == "5:6\n");
    struct stat st{};
    REQUIRE(stat((source / "new").c_str(), &st) == 0);
    CHECK(st.st_uid == 0);
  }
  SUBCASE("without any it is an error") {
    Json config = DefaultConfig(root, {"true"});
    config["mounts"].push_back(bind(Json::object()));
    CHECK(FailCreate(config).err == EINVAL);
  }
}

}  // namespace
}  // namespace gcs::test
