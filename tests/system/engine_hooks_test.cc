// SPDX-License-Identifier: Apache-2.0
#include "system/engine_support.h"

namespace gcs::test {
namespace {

using base::Json;

// A hook that appends a line to `log`: its name, then the output of `script`.
Json Hook(const std::string& log, const std::string& name, const std::string& script) {
  return {{"path", "/bin/busybox"},
          {"args", {"sh", "-c", "{ printf '" + name + " '; " + script + "; } >> " + log}},
          {"env", {"PATH=/bin:/usr/bin"}}};
}

std::string Content(const std::string& path) { return base::ReadFile(path).value_or(""); }

TEST_CASE("hooks of all kinds run in order, where and with the state they should") {
  const std::string root = EngineMachine::Get().MakeRoot("hooks");
  const TempDir dir;
  const std::string log = dir / "log";
  // The state's status, and whether the hook is in the runtime's or the container's namespaces.
  const std::string tell = "cat > " + dir.path() + "/state; grep -o '\"status\":\"[a-z]*\"' " + dir.path() +
                           "/state | cut -d: -f2 | tr '\\n' ' '; hostname";
  Json config = DefaultConfig(root, {"sh", "-c", "cat /started"});
  config["root"]["readonly"] = false;
  config["annotations"] = {{"a.b", "c"}};
  for (const char* kind : {"prestart", "createRuntime", "createContainer", "poststart", "poststop"}) {
    config["hooks"][kind] = {Hook(log, kind, tell)};
  }
  // In the container's root, where the host's log is not to be seen.
  config["hooks"]["startContainer"] = {{{"path", "/bin/busybox"}, {"args", {"sh", "-c", "cat > /started"}}}};
  const std::string host = Content("/proc/sys/kernel/hostname");
  RunningContainer running;
  const std::string id = NextId();
  const auto created = running.Create(config, id);
  REQUIRE_MESSAGE(created, created.error().ToString());
  CHECK(Content(log) == "prestart \"created\" " + host + "createRuntime \"created\" " + host +
                            "createContainer \"created\" test\n");
  REQUIRE(running.Start());
  const int pid = running.container->init.pid();
  const Outcome outcome = running.Finish();
  CHECK(outcome.status == 0);
  const Json state = Json::parse(outcome.out);
  CHECK(state["id"] == id);
  CHECK(state["pid"] == 1);
  CHECK(state["status"] == "created");
  CHECK(state["annotations"]["a.b"] == "c");
  CHECK(state["bundle"] == EngineMachine::Get().dir());
  CHECK(Content(log).ends_with("poststart \"running\" " + host + "poststop \"stopped\" " + host));
  CHECK(pid > 1);
}

TEST_CASE("a createContainer hook sees the runtime's files and the container's root where it is configured") {
  const std::string root = EngineMachine::Get().MakeRoot("hook-root");
  const TempDir dir;
  Json config = DefaultConfig(root, {"cat", "/tmp/from-hook"});
  config["mounts"].push_back({{"destination", "/tmp"}, {"type", "tmpfs"}, {"source", "tmpfs"}});
  // Only in the container's mount namespace is there a tmpfs at that place.
  config["hooks"]["createContainer"] = {Hook("/dev/null", "x",
                                             "cat > /dev/null; echo hook > " + root +
                                                 "/tmp/from-hook; readlink /proc/self/ns/mnt > " +
                                                 dir.path() + "/ns")};
  const Outcome outcome = Run(config);
  CHECK(outcome.out == "hook\n");
  CHECK(Content(root + "/tmp/from-hook").empty());
}

TEST_CASE("a hook that fails is an error of its act, names the hook, and leaves nothing") {
  const std::string root = EngineMachine::Get().MakeRoot("hook-fails");
  for (const char* kind : {"prestart", "createRuntime", "createContainer"}) {
    CAPTURE(kind);
    Json config = DefaultConfig(root, {"true"});
    config["hooks"][kind] = {Hook("/dev/null", "x", "exit 3")};
    const base::Error error = FailCreate(config);
    CHECK(error.step == std::string(kind) + " hook");
    CHECK(error.object == "/bin/busybox");
    CHECK(error.err == ECHILD);
    config["hooks"][kind][0]["path"] = "/no/such/hook";
    CHECK(FailCreate(config).err == ENOENT);
  }
  for (const char* kind : {"startContainer", "poststart"}) {
    CAPTURE(kind);
    Json config = DefaultConfig(root, {"sleep", "1000"});
    config["hooks"][kind] = {Hook("/dev/null", "x", "exit 3")};
    RunningContainer running;
    REQUIRE(running.Create(config, NextId()));
    const auto started = running.Start();
    REQUIRE_FALSE(started);
    CHECK(started.error().step == std::string(kind) + " hook");
    CHECK(started.error().object == "/bin/busybox");
    CHECK(running.Finish().status != 0);
  }
}

TEST_CASE("a hook past its timeout is killed, one that reads nothing is no error") {
  const std::string root = EngineMachine::Get().MakeRoot("hook-late");
  for (const char* kind : {"createRuntime", "createContainer"}) {
    CAPTURE(kind);
    Json config = DefaultConfig(root, {"true"});
    config["annotations"] = {{"big", std::string(300'000, 'x')}};
    config["hooks"][kind] = {Hook("/dev/null", "x", "sleep 100")};
    config["hooks"][kind][0]["timeout"] = 1;
    const int64_t begin = base::MonotonicNs();
    const base::Error error = FailCreate(config);
    CHECK(error.err == ETIMEDOUT);
    CHECK(base::MonotonicNs() - begin < 10 * base::kNsPerSec);
    config["hooks"][kind] = {Hook("/dev/null", "x", "true")};
    CHECK(Run(config).status == 0);
  }
}

TEST_CASE("a failing poststop hook does not keep the container, and the next one runs") {
  const TempDir dir;
  Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  config["hooks"]["poststop"] = {Hook("/dev/null", "x", "exit 1"), Hook(dir / "log", "second", "echo")};
  CHECK(Run(config).status == 0);
  CHECK(Content(dir / "log") == "second \n");
}

}  // namespace
}  // namespace gcs::test
