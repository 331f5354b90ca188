// SPDX-License-Identifier: Apache-2.0
// Attributes of the process: scheduling, memory policy, personality, labels; and mounts beyond the defaults.
#include <linux/ioprio.h>

#include "system/engine_support.h"

namespace gcs::test {
namespace {

using base::Json;

TEST_CASE("scheduler, io priority, personality and memory policy reach the program") {
  Json config =
      DefaultConfig(EngineMachine::Get().root(), {"sh", "-c",
                                                  "cut -d' ' -f19,41 /proc/self/stat; ionice; uname -m; cat "
                                                  "/proc/self/numa_maps | head -n 1 | cut -d' ' -f2"});
  config["process"]["scheduler"] = {{"policy", "SCHED_BATCH"}, {"nice", 7}};
  config["process"]["ioPriority"] = {{"class", "IOPRIO_CLASS_BE"}, {"priority", 6}};
  config["linux"]["personality"] = {{"domain", "LINUX32"}};
  const std::string root = EngineMachine::Get().MakeRoot("attributes");
  for (const char* applet : {"cut", "ionice", "uname"}) {
    std::filesystem::create_symlink("busybox", root + "/bin/" + applet);
  }
  config["root"]["path"] = root;
  const bool numa = access("/proc/self/numa_maps", F_OK) == 0;
  if (numa)
    config["linux"]["memoryPolicy"] = {
        {"mode", "MPOL_BIND"}, {"nodes", "0"}, {"flags", {"MPOL_F_STATIC_NODES"}}};
  const Outcome outcome = Run(config);
  CHECK(outcome.out == std::string("7 3\nbest-effort: prio 6\ni686\n") + (numa ? "bind=static:0\n" : ""));
}

TEST_CASE("a scheduler that the kernel refuses is an error with the step") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  config["process"]["scheduler"] = {
      {"policy", "SCHED_DEADLINE"}, {"runtime", 10}, {"deadline", 5}, {"period", 5}};
  const base::Error error = FailCreate(config);
  CHECK(error.step == "sched_setattr");
  CHECK(error.err == EINVAL);
}

TEST_CASE("an exec runs on the processors it asks for; without asking on all of the cgroup's") {
  RunningContainer running;
  REQUIRE(running.Create(DefaultConfig(EngineMachine::Get().root(), {"sleep", "1000"}), NextId()));
  REQUIRE(running.Start());
  const auto allowed = [&](const char* affinity) {
    Json process = {{"args", {"grep", "Cpus_allowed_list", "/proc/self/status"}}};
    if (affinity != nullptr) process["execCPUAffinity"] = {{"initial", "0"}, {"final", affinity}};
    auto parsed = engine::ParseProcess(process.dump(), *running.container->spec.process);
    REQUIRE(parsed);
    Pipe out;
    auto child = EngineMachine::Get().engine().Exec(
        *running.container, *parsed,
        {.stdio = {running.null.get(), out.write_end.get(), out.write_end.get()}, .deadline_ns = In(10)});
    REQUIRE_MESSAGE(child, child.error().ToString());
    out.write_end.Reset();
    REQUIRE(child->Start(In(10)));
    Reap(child->pidfd());
    std::string text = ReadAll(out.read_end);
    return text.substr(text.find('\t') + 1);
  };
  const std::string all = allowed(nullptr);
  CHECK(allowed("0") == "0\n");
  CHECK(allowed(nullptr) == all);
  cpu_set_t set;
  REQUIRE(sched_getaffinity(0, sizeof set, &set) == 0);
  if (CPU_COUNT(&set) > 1) CHECK(all != "0\n");
}

TEST_CASE("escape 06: a label without the security module is an error, never dropped in silence") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  const std::string modules = base::ReadFile("/sys/kernel/security/lsm").value_or("");
  if (modules.find("apparmor") == std::string::npos) {
    config["process"]["apparmorProfile"] = "docker-default";
    CHECK(FailCreate(config).step == "set label");
    CHECK(FailCreate(config).object == "process.apparmorProfile");
    config["process"].erase("apparmorProfile");
  }
  if (modules.find("selinux") == std::string::npos) {
    config["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0";
    CHECK(FailCreate(config).object == "process.selinuxLabel");
    config["process"].erase("selinuxLabel");
    config["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0";
    CHECK(FailCreate(config).object == "mounts[1] (/dev)");
  }
}

TEST_CASE("tmpcopyup begins with what it covers") {
  const std::string root = EngineMachine::Get().MakeRoot("copyup-" + NextId());
  namespace fs = std::filesystem;
  fs::create_directories(root + "/srv/sub/deep");
  REQUIRE(base::ReplaceFile(root + "/srv/sub/file", "content", 0644));
  REQUIRE(chown((root + "/srv/sub/file").c_str(), 3, 4) == 0);
  fs::create_symlink("sub/file", root + "/srv/link");
  REQUIRE(mkfifo((root + "/srv/fifo").c_str(), 0600) == 0);
  Json config = DefaultConfig(
      root, {"sh", "-c",
             "cat /srv/link; echo; stat -c '%a %u:%g' /srv/sub/file; [ -p /srv/fifo ] && echo fifo; "
             "ls -d /srv/sub/deep; echo new > /srv/sub/file; grep -c ' /srv tmpfs ' /proc/mounts"});
  config["mounts"].push_back({{"destination", "/srv"},
                              {"type", "tmpfs"},
                              {"source", "tmpfs"},
                              {"options", {"tmpcopyup", "size=1m"}}});
  CHECK(Run(config).out == "content\n644 3:4\nfifo\n/srv/sub/deep\n1\n");
  CHECK(base::ReadFile(root + "/srv/sub/file").value_or("") == "content");
  config["mounts"].back()["type"] = "mqueue";
  CHECK(FailCreate(config).err == EINVAL);
  SUBCASE("what does not fit is an error") {
    config["mounts"].back()["type"] = "tmpfs";
    config["mounts"].back()["options"] = {"tmpcopyup", "size=4k"};
    REQUIRE(base::ReplaceFile(root + "/srv/big", std::string(100'000, 'x'), 0644));
    const base::Error error = FailCreate(config);
    CHECK(error.step == "copy up");
    CHECK(error.err == ENOSPC);
  }
}

TEST_CASE("remount changes what is there, and a mount on / takes the root's place") {
  const std::string root = EngineMachine::Get().MakeRoot("remount");
  const std::string other = EngineMachine::Get().MakeRoot("other-root");
  REQUIRE(base::ReplaceFile(other + "/mark", "other", 0644));
  Json config = DefaultConfig(
      root, {"sh", "-c", "cat /mark; touch /tmp/x || echo ro; grep -o ' /tmp tmpfs [^ ]*' /proc/mounts"});
  config["root"]["readonly"] = false;
  config["mounts"].insert(
      config["mounts"].begin(),
      Json{{"destination", "/"}, {"type", "bind"}, {"source", other}, {"options", {"rbind"}}});
  config["mounts"].push_back({{"destination", "/tmp"}, {"type", "tmpfs"}, {"source", "tmpfs"}});
  config["mounts"].push_back({{"destination", "/tmp"},
                              {"type", "tmpfs"},
                              {"source", "tmpfs"},
                              {"options", {"remount", "ro", "nosuid", "size=64k"}}});
  const Outcome outcome = Run(config);
  CHECK(outcome.out.starts_with("otherro\n /tmp tmpfs ro,nosuid,relatime,size=64k"));
}

}  // namespace
}  // namespace gcs::test
