// SPDX-License-Identifier: Apache-2.0
// Escapes through what a configuration says: cgroups, devices, sysctls, names, and too much of anything.
// escapes.md says which number is tested where, and which weakening of the engine makes its case fail.
#include <sys/sysmacros.h>

#include <sstream>

#include "system/escape_support.h"

namespace gcs::test {
namespace {

namespace fs = std::filesystem;
using base::Json;

TEST_CASE("escape 07: files that are called like a cgroup's are not taken for a cgroup file system") {
  const TempDir fake;
  for (const char* name : {"cgroup.controllers", "cgroup.procs", "cgroup.subtree_control"}) {
    REQUIRE(base::ReplaceFile(fake / name, "", 0644));
  }
  const auto opened = engine::CgroupRoot::Open(fake.path());
  CHECK_FALSE(opened);
}

TEST_CASE(
    "escape 13: without a cgroup namespace no file of another cgroup is in sight, and none can be written "
    "(CVE-2023-25809)") {
  const std::string root = EngineMachine::Get().MakeRoot("nocgroupns-rw");
  for (const char* applet : {"find", "mkdir"}) fs::create_symlink("busybox", root + "/bin/" + applet);
  // As a careless configuration asks for it.
  for (const char* option : {"rw", "ro"}) {
    CAPTURE(option);
    Json config = DefaultConfig(
        root,
        {"sh", "-c",
         "cd /sys/fs/cgroup; find . -name cgroup.procs | while read f; do cat $f; done; echo end; "
         "for f in $(find . -name cgroup.procs); do d=${f%/cgroup.procs}; mkdir $d/sub && echo made $d; "
         "echo 0 > $f && echo written $f; done"});
    for (Json& mount : config["mounts"]) {
      if (mount["type"] == "cgroup") mount["options"] = {"nosuid", "noexec", "nodev", option};
    }
    std::erase_if(config["linux"]["namespaces"].get_ref<Json::array_t&>(),
                  [](const Json& ns) { return ns["type"] == "cgroup"; });
    const Outcome outcome = Run(config);
    // Ids of processes as its pid namespace has them: 0 for all that are not of it.
    std::istringstream lines(outcome.out);
    std::string line;
    int processes = 0;
    for (; std::getline(lines, line) && line != "end"; ++processes) CHECK(std::stoi(line) > 0);
    CHECK(processes > 0);
    while (std::getline(lines, line)) CHECK(line == "");
  }
}

TEST_CASE(
    "escape 14: no release_agent is within reach, with all capabilities in a user namespace "
    "(CVE-2022-0492)") {
  const std::string root = EngineMachine::Get().MakeRoot("release");
  for (const char* applet : {"find", "mkdir"}) fs::create_symlink("busybox", root + "/bin/" + applet);
  // Neither mounted, nor to be mounted by itself: the hierarchies that the engine has, on v1.
  std::string mounts;
  if (kCgroupView != CgroupView::kV2) {
    const auto names = base::ListDir("/sys/fs/cgroup");
    REQUIRE(names);
    for (const std::string& name : *names) {
      if (name == "unified") continue;
      mounts += "mkdir /tmp/" + name + "; mount -t cgroup -o " + name + " x /tmp/" + name + "; ";
    }
  }
  Json config = DefaultConfig(
      root, {"sh", "-c",
             mounts + "find /sys/fs/cgroup /tmp -name release_agent; for d in /sys/fs/cgroup/*; do "
                      "[ -e $d/cgroup.procs ] && mkdir $d/sub && echo made $d; done; exit 0"});
  config["root"]["readonly"] = false;
  config["linux"]["namespaces"].push_back({{"type", "user"}});
  const Json map = {{{"containerID", 0}, {"hostID", 0}, {"size", 65536}}};
  config["linux"]["uidMappings"] = map;
  config["linux"]["gidMappings"] = map;
  GiveCapabilities(config, {"CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"});
  for (const bool own_namespace : {true, false}) {
    CAPTURE(own_namespace);
    if (!own_namespace) {
      std::erase_if(config["linux"]["namespaces"].get_ref<Json::array_t&>(),
                    [](const Json& ns) { return ns["type"] == "cgroup"; });
    }
    const Outcome outcome = Run(config);
    CHECK(outcome.status == 0);
    CHECK(outcome.out == "");
  }
}

TEST_CASE("escape 15: long strings and many of them arrive whole or are refused (CVE-2021-43784)") {
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

TEST_CASE("escape 18: a sysctl can't carry another one, or lead somewhere else (CVE-2022-0811)") {
  const std::string root = EngineMachine::Get().root();
  const std::string pattern = *base::ReadFile("/proc/sys/kernel/core_pattern");
  const auto refused = [&](const std::string& key, const std::string& value) {
    Json config = DefaultConfig(root, {"true"});
    config["linux"]["sysctl"] = {{key, value}};
    RunningContainer running;
    return !running.Create(config, NextId());
  };
  CHECK_FALSE(refused("net.ipv4.ip_forward", "1"));
  for (const char* key : {"net.ipv4.ip_forward+kernel.core_pattern", "net/../kernel/core_pattern",
                          "net.ipv4.ip_forward=1 kernel.core_pattern", "kernel.core_pattern", "net..ipv4",
                          "net/ipv4.ip_forward", "net.ipv4/../../kernel/core_pattern", "kernel.hostname",
                          "/proc/sys/net.x", "net", ""}) {
    CAPTURE(key);
    CHECK(refused(key, "1"));
  }
  for (const char* value : {"1\nkernel.core_pattern=|/x", "1+kernel.core_pattern=|/x"}) {
    CAPTURE(value);
    CHECK(refused("net.ipv4.ip_forward", value));
  }
  CHECK(*base::ReadFile("/proc/sys/kernel/core_pattern") == pattern);
}

TEST_CASE("escape 18: which sysctls there are, the configuration decides before anything is made") {
  for (const char* key :
       {"net.ipv4.ip_forward+kernel.core_pattern", "net/../kernel/core_pattern", "kernel.core_pattern",
        "net/ipv4.ip_forward", "user.max_user_namespaces", "kernel.hostname"}) {
    CAPTURE(key);
    Json config = DefaultConfig("/root", {"true"});
    config["linux"]["sysctl"] = {{key, "1"}};
    const auto spec = engine::ParseSpec(config.dump());
    CHECK_FALSE(spec);
    if (!spec) CHECK(spec.error().object == "linux.sysctl." + std::string(key));
  }
  // Those of a namespace that others are in as well.
  Json shared = DefaultConfig("/root", {"true"});
  shared["linux"]["sysctl"] = {{"net.ipv4.ip_forward", "1"}};
  CHECK(engine::ParseSpec(shared.dump()));
  shared["linux"]["namespaces"][1]["path"] = "/proc/1/ns/net";
  CHECK_FALSE(engine::ParseSpec(shared.dump()));
}

TEST_CASE(
    "escape 19: no disk of the machine can be opened with CAP_MKNOD, whatever the rules leave out "
    "(CVE-2020-2023)") {
  // Of the disk that the machine's files are on, but for a partition that it has not: without the filter the
  // answer is ENXIO, and nothing was read.
  struct stat st{};
  REQUIRE(stat("/", &st) == 0);
  const unsigned number = major(st.st_dev) != 0 ? major(st.st_dev) : 259;
  const std::string script = "mknod /dev/disk b " + std::to_string(number) + " 1048575 && exec 3< /dev/disk";
  for (const Json& rules : {Json::array(), Json{{{"allow", false}, {"access", "rwm"}}},
                            Json{{{"allow", true}, {"type", "c"}, {"access", "rwm"}}}, Json()}) {
    CAPTURE(rules.dump());
    Json config = DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", script});
    GiveCapabilities(config, {"CAP_MKNOD"});
    if (rules.is_null()) {
      config["linux"].erase("resources");
    } else {
      config["linux"]["resources"]["devices"] = rules;
    }
    const Outcome outcome = Run(config);
    CHECK(outcome.status != 0);
    CHECK(outcome.err.find("can't open /dev/disk: Operation not permitted") != std::string::npos);
  }
}

TEST_CASE(
    "escape 22: a cgroupsPath with .. stays below the cgroup file system, and not in the engine's own") {
  const std::string parent = EngineMachine::Get().cgroup_parent();
  for (const std::string& path : {std::string("../../../../gcs-escape"), std::string("x/../../gcs-escape"),
                                  parent + "/../../.." + parent + "/gcs-escape"}) {
    CAPTURE(path);
    Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
    config["linux"]["cgroupsPath"] = path;
    RunningContainer running;
    const auto created = running.Create(config, NextId());
    CHECK_MESSAGE(created, created.error().ToString());
    if (created) CHECK(running.container->cgroup->path() == parent + "/gcs-escape");
  }
  for (const std::string& path :
       {std::string("/"), std::string("/.."), std::string("/../gcs"), std::string("/x/../init/y"), parent}) {
    CAPTURE(path);
    Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
    config["linux"]["cgroupsPath"] = path;
    RunningContainer running;
    const auto created = running.Create(config, NextId());
    CHECK_FALSE(created);
    if (!created) CHECK(created.error().err == EPERM);
  }
}

TEST_CASE(
    "escape 22: ids and names of cgroup files that lead elsewhere are refused before anything is made") {
  const Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  for (const std::string& id :
       {std::string(), std::string("."), std::string(".."), std::string("../x"), std::string(".x"),
        std::string("a/b"), std::string("a b"), std::string("a\nb"), std::string(1025, 'x')}) {
    CAPTURE(id.substr(0, 20));
    RunningContainer running;
    const auto created = running.Create(config, id);
    CHECK_FALSE(created);
    if (!created) CHECK(created.error().message == "bad container id");
  }
  for (const char* key : {"../x", "a/b", "/x", "..", "."}) {
    CAPTURE(key);
    Json unified = config;
    unified["linux"]["resources"]["unified"] = {{key, "1"}};
    CHECK_FALSE(engine::ParseSpec(unified.dump()));
  }
}

// Whether the text is refused, soon, and with a message.
bool Refused(const std::string& text) {
  const int64_t begin = base::MonotonicNs();
  const auto spec = engine::ParseSpec(text);
  CHECK(base::MonotonicNs() - begin < 20 * base::kNsPerSec);
  if (spec) return false;
  CHECK_FALSE(spec.error().message.empty());
  return true;
}

std::string Nested(int depth) {
  std::string text;
  for (int i = 0; i < depth; ++i) text += i % 2 == 0 ? "[" : "{\"a\":";
  text += "1";
  for (int i = depth - 1; i >= 0; --i) text += i % 2 == 0 ? "]" : "}";
  return text;
}

TEST_CASE("escape 26: a configuration that is too large is refused by its size") {
  const Json config = DefaultConfig("/root", {"true"});
  const std::string text = config.dump();
  REQUIRE(engine::ParseSpec(text));
  CHECK(Refused(text + std::string(17 << 20, ' ')));
  CHECK(Refused(text + std::string(100 << 20, ' ')));
}

TEST_CASE("escape 26: a configuration that is too deep is refused, wherever the depth is") {
  const std::string text = DefaultConfig("/root", {"true"}).dump();
  REQUIRE(text.ends_with("}"));
  for (const char* before : {",\"x\":", ",\"annotations\":{\"x\":", ",\"hooks\":{\"poststop\":",
                             ",\"linux\":{\"seccomp\":{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"x\":"}) {
    CAPTURE(before);
    std::string closing;
    for (const char* at = before; *at != '\0'; ++at) closing += *at == '{' ? "}" : "";
    const auto with = [&](int depth) {
      return text.substr(0, text.size() - 1) + before + Nested(depth) + closing + "}";
    };
    for (const int depth : {10'000, 1'000'000}) {
      CAPTURE(depth);
      CHECK(Refused(with(depth)));
    }
  }
  // Strings may look however they like.
  Json config =
      DefaultConfig("/root", {"true", std::string(10'000, '['), "\\\"" + std::string(10'000, '{') + "\""});
  CHECK(engine::ParseSpec(config.dump()));
}

TEST_CASE("escape 26: more mounts, paths, strings, devices or rules than anybody needs are refused") {
  const Json config = DefaultConfig("/root", {"true"});
  const auto many = [&](const char* pointer, const Json& item, size_t count) {
    Json changed = config;
    changed[Json::json_pointer(pointer)] = Json::array_t(count, item);
    return changed.dump();
  };
  CHECK(Refused(many("/mounts", {{"destination", "/x"}, {"type", "tmpfs"}}, 100'000)));
  CHECK(Refused(many("/linux/maskedPaths", "/x", 100'000)));
  CHECK(Refused(many("/linux/readonlyPaths", "/x", 100'000)));
  CHECK(Refused(many("/process/env", "A=B", 200'000)));
  CHECK(Refused(many("/process/args", "A=B", 200'000)));
  CHECK(Refused(many("/process/user/additionalGids", 1, 1'000'000)));
  CHECK(Refused(
      many("/linux/devices", {{"path", "/dev/x"}, {"type", "c"}, {"major", 1}, {"minor", 3}}, 100'000)));
  CHECK(Refused(many("/linux/resources/devices", {{"allow", true}, {"type", "c"}, {"major", 1}, {"minor", 3}},
                     100'000)));
  CHECK(Refused(many("/hooks/poststop", {{"path", "/bin/true"}}, 100'000)));
  // As many as are usual are not.
  CHECK_FALSE(Refused(many("/mounts", {{"destination", "/x"}, {"type", "tmpfs"}}, 500)));
  CHECK_FALSE(Refused(many("/process/env", "A=B", 5000)));
  CHECK_FALSE(
      Refused(many("/linux/devices", {{"path", "/dev/x"}, {"type", "c"}, {"major", 1}, {"minor", 3}}, 500)));
}

TEST_CASE("escape 26: a seccomp profile of a million conditions is refused, not compiled for hours") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  Json rules = Json::array();
  for (int i = 0; i < 100'000; ++i) {
    rules.push_back({{"names", {"socket"}},
                     {"action", "SCMP_ACT_ERRNO"},
                     {"args", {{{"index", 0}, {"value", i}, {"op", "SCMP_CMP_EQ"}}}}});
  }
  config["linux"]["seccomp"] = {{"defaultAction", "SCMP_ACT_ALLOW"}, {"syscalls", rules}};
  const int64_t begin = base::MonotonicNs();
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  CHECK_FALSE(created);
  if (!created) CHECK(created.error().err == E2BIG);
  CHECK(base::MonotonicNs() - begin < 20 * base::kNsPerSec);
}

}  // namespace
}  // namespace gcs::test
