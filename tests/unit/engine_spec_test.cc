// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <linux/mount.h>
#include <sys/mount.h>

#include <string>

#include "base/json.h"
#include "engine/cgroup_bpf.h"
#include "engine/cgroup_open.h"
#include "engine/engine.h"
#include "engine/mount_options.h"
#include "engine/seccomp.h"
#include "engine/spec.h"

namespace gcs::engine {
namespace {

using base::Json;

Json Minimal() {
  return Json::parse(
      R"({"ociVersion": "1.1.0", "root": {"path": "/r"}, "process": {"args": ["x"], "cwd": "/"},
                         "linux": {"namespaces": [{"type": "mount"}]}})");
}

base::Error Failure(const Json& config) {
  const auto spec = ParseSpec(config.dump());
  REQUIRE_FALSE(spec);
  return spec.error();
}

TEST_CASE("the least configuration is accepted, with the specification's defaults") {
  const auto spec = ParseSpec(Minimal().dump());
  REQUIRE_MESSAGE(spec, spec.error().ToString());
  CHECK(spec->process->umask == 022);
  CHECK(spec->process->uid == 0);
  CHECK_FALSE(spec->root_readonly);
  CHECK_FALSE(spec->process->oom_score_adj);
}

TEST_CASE("unknown keys are ignored, every 1.x version is accepted") {
  Json config = Minimal();
  config["future"] = {{"a", 1}};
  config["linux"]["future"] = true;
  for (const char* version : {"1.0.0", "1.0.2-dev", "1.3.0", "1.99.7"}) {
    config["ociVersion"] = version;
    CHECK(ParseSpec(config.dump()));
  }
}

TEST_CASE("a device's fileMode may have the file type in it, as podman and containerd write it") {
  Json config = Minimal();
  config["linux"]["devices"] = {
      {{"path", "/dev/x"}, {"type", "c"}, {"major", 1}, {"minor", 3}, {"fileMode", 020640}}};
  const auto spec = ParseSpec(config.dump());
  REQUIRE_MESSAGE(spec, spec.error().ToString());
  CHECK(spec->devices.at(0).mode == 0640);
}

TEST_CASE("network devices have their new names, of which only templates may be alike") {
  Json config = Minimal();
  config["linux"]["namespaces"].push_back({{"type", "network"}});
  config["linux"]["netDevices"] = {
      {"b", {{"name", "eth%d"}}}, {"a", Json::object()}, {"c", {{"name", "eth%d"}}}};
  const auto spec = ParseSpec(config.dump());
  REQUIRE_MESSAGE(spec, spec.error().ToString());
  REQUIRE(spec->net_devices.size() == 3);
  CHECK(spec->net_devices[0].name == "a");
  CHECK(spec->net_devices[0].new_name.empty());
  CHECK(spec->net_devices[1].new_name == "eth%d");
  config["linux"]["namespaces"][1]["path"] = "/proc/1/ns/net";
  CHECK(ParseSpec(config.dump()));
}

TEST_CASE("bad values are refused with their JSON path") {
  struct Row {
    const char* pointer;  // what is set
    const char* value;    // to this JSON
    const char* object;   // error's object
    int err;
  };
  const Row rows[] = {
      {"/ociVersion", "\"2.0\"", "ociVersion", EINVAL},
      {"/ociVersion", "7", "ociVersion", EINVAL},
      {"/root/path", "\"relative\"", "root.path", EINVAL},
      {"/root", "[]", "root", EINVAL},
      {"/process/args", "[]", "process.args", EINVAL},
      {"/process/args/0", "5", "process.args[0]", EINVAL},
      {"/process/args/0", "\"a\\u0000b\"", "process.args[0]", EINVAL},
      {"/process/cwd", "\"tmp\"", "process.cwd", EINVAL},
      {"/process/env", "[\"NOEQUALS\"]", "process.env[0]", EINVAL},
      {"/process/user", "{\"uid\": -1}", "process.user.uid", ERANGE},
      {"/process/user", "{\"uid\": 4294967295}", "process.user.uid", ERANGE},
      {"/process/user", "{\"gid\": \"0\"}", "process.user.gid", EINVAL},
      {"/process/user", "{\"additionalGids\": [1, -2]}", "process.user.additionalGids[1]", EINVAL},
      {"/process/rlimits", "[{\"type\": \"RLIMIT_FOO\", \"soft\": 1, \"hard\": 1}]",
       "process.rlimits[0].type", EINVAL},
      {"/process/rlimits", "[{\"type\": \"RLIMIT_CPU\", \"soft\": 2, \"hard\": 1}]",
       "process.rlimits[0].soft", EINVAL},
      {"/process/rlimits",
       "[{\"type\": \"RLIMIT_CPU\", \"soft\": 1, \"hard\": 1}, {\"type\": \"RLIMIT_CPU\", \"soft\": 1, "
       "\"hard\": 1}]",
       "process.rlimits[1].type", EINVAL},
      {"/process/oomScoreAdj", "1001", "process.oomScoreAdj", ERANGE},
      {"/process/apparmorProfile", "5", "process.apparmorProfile", EINVAL},
      {"/process/scheduler", "{\"policy\": \"SCHED_FAST\"}", "process.scheduler.policy", EINVAL},
      {"/process/scheduler", "{\"policy\": \"SCHED_FIFO\"}", "process.scheduler.priority", EINVAL},
      {"/process/scheduler", "{\"policy\": \"SCHED_OTHER\", \"nice\": 20}", "process.scheduler.nice", ERANGE},
      {"/process/scheduler", "{\"policy\": \"SCHED_OTHER\", \"runtime\": 1}", "process.scheduler.runtime",
       EINVAL},
      {"/process/scheduler", "{\"policy\": \"SCHED_IDLE\", \"flags\": [\"SCHED_FLAG_X\"]}",
       "process.scheduler.flags", EINVAL},
      {"/process/ioPriority", "{\"class\": \"IOPRIO_CLASS_NONE\"}", "process.ioPriority.class", EINVAL},
      {"/process/ioPriority", "{\"class\": \"IOPRIO_CLASS_BE\", \"priority\": 8}",
       "process.ioPriority.priority", ERANGE},
      {"/process/execCPUAffinity", "{\"initial\": \"0-\"}", "process.execCPUAffinity.initial", EINVAL},
      {"/process/execCPUAffinity", "{\"final\": \"3-1\"}", "process.execCPUAffinity.final", EINVAL},
      {"/process/execCPUAffinity", "{\"final\": \"99999\"}", "process.execCPUAffinity.final", EINVAL},
      {"/process/execCPUAffinity", "{\"final\": \"1,,2\"}", "process.execCPUAffinity.final", EINVAL},
      {"/hostname", "\"h\"", "hostname", EINVAL},
      {"/linux/namespaces/0/type", "\"mnt\"", "linux.namespaces[0].type", EINVAL},
      {"/linux/namespaces/1", "{\"type\": \"mount\"}", "linux.namespaces[1].type", EINVAL},
      {"/linux/namespaces/1", "{\"type\": \"user\"}", "linux.uidMappings", EINVAL},
      {"/linux/uidMappings", "[{\"containerID\": 0, \"hostID\": 1, \"size\": 1}]", "linux.uidMappings",
       EINVAL},
      {"/linux/uidMappings", "[{\"containerID\": 0, \"hostID\": 1}]", "linux.uidMappings[0].size", EINVAL},
      {"/linux/timeOffsets", "{\"monotonic\": {\"secs\": 1}}", "linux.timeOffsets", EINVAL},
      {"/linux/timeOffsets", "{\"realtime\": {\"secs\": 1}}", "linux.timeOffsets.realtime", EINVAL},
      {"/linux/timeOffsets", "{\"boottime\": {\"nanosecs\": 1000000000}}",
       "linux.timeOffsets.boottime.nanosecs", ERANGE},
      {"/linux/netDevices", "{\"eth0\": {}}", "linux.netDevices", EINVAL},
      {"/linux/netDevices", "[]", "linux.netDevices", EINVAL},
      {"/linux/netDevices", "{\"eth0\": 5}", "linux.netDevices.eth0", EINVAL},
      {"/linux/netDevices", "{\"a/b\": {}}", "linux.netDevices.a/b", EINVAL},
      {"/linux/netDevices", "{\"sixteen_bytes_xx\": {}}", "linux.netDevices.sixteen_bytes_xx", EINVAL},
      {"/linux/netDevices", "{\"eth0\": {\"name\": \"a b\"}}", "linux.netDevices.eth0.name", EINVAL},
      {"/linux/netDevices", "{\"eth0\": {\"name\": \"%d%d\"}}", "linux.netDevices.eth0.name", EINVAL},
      {"/linux/netDevices", "{\"eth0\": {\"name\": 7}}", "linux.netDevices.eth0.name", EINVAL},
      {"/linux/netDevices", "{\"a\": {\"name\": \"x\"}, \"b\": {\"name\": \"x\"}}", "linux.netDevices.b.name",
       EINVAL},
      {"/linux/netDevices", "{\"a\": {}, \"b\": {\"name\": \"a\"}}", "linux.netDevices.b.name", EINVAL},
      {"/linux/intelRdt", "[]", "linux.intelRdt", EINVAL},
      {"/linux/intelRdt", "{\"closID\": \"a/b\"}", "linux.intelRdt.closID", EINVAL},
      {"/linux/intelRdt", "{\"closID\": \"..\"}", "linux.intelRdt.closID", EINVAL},
      {"/linux/intelRdt", "{\"memBwSchema\": \"L3:0=f\"}", "linux.intelRdt.memBwSchema", EINVAL},
      {"/linux/intelRdt", "{\"memBwSchema\": \"MB:0=5\\nL3:0=f\"}", "linux.intelRdt.memBwSchema", EINVAL},
      {"/linux/intelRdt", "{\"schemata\": [\"L3:0=f\\nMB:0=5\"]}", "linux.intelRdt.schemata", EINVAL},
      {"/linux/intelRdt", "{\"schemata\": [7]}", "linux.intelRdt.schemata[0]", EINVAL},
      {"/linux/intelRdt", "{\"enableMonitoring\": 1}", "linux.intelRdt.enableMonitoring", EINVAL},
      {"/linux/personality", "{\"domain\": \"BSD\"}", "linux.personality.domain", EINVAL},
      {"/linux/personality", "{\"domain\": \"LINUX\", \"flags\": [\"X\"]}", "linux.personality.flags",
       EINVAL},
      {"/linux/memoryPolicy", "{\"mode\": \"MPOL_X\"}", "linux.memoryPolicy.mode", EINVAL},
      {"/linux/memoryPolicy", "{\"mode\": \"MPOL_BIND\", \"nodes\": \"a\"}", "linux.memoryPolicy.nodes",
       EINVAL},
      {"/linux/namespaces/1", "{\"type\": \"network\", \"path\": \"rel\"}", "linux.namespaces[1].path",
       EINVAL},
      {"/linux/namespaces/0/path", "\"/proc/1/ns/mnt\"", "linux.namespaces[0].path", EOPNOTSUPP},
      {"/linux/namespaces", "[]", "linux.namespaces", EOPNOTSUPP},
      {"/linux/maskedPaths", "[\"proc\"]", "linux.maskedPaths", EINVAL},
      {"/linux/sysctl", "{\"vm.overcommit_memory\": \"1\"}", "linux.sysctl.vm.overcommit_memory", EINVAL},
      {"/linux/sysctl", "{\"net.ipv4.ip_forward\": \"1\"}", "linux.sysctl.net.ipv4.ip_forward", EINVAL},
      {"/linux/devices", "[{\"path\": \"/dev/x\", \"type\": \"z\", \"major\": 1, \"minor\": 1}]",
       "linux.devices[0].type", EINVAL},
      {"/linux/resources", "{\"devices\": [{\"allow\": true, \"access\": \"rx\"}]}",
       "linux.resources.devices[0].access", EINVAL},
      {"/linux/resources", "{\"unified\": {\"../x\": \"1\"}}", "linux.resources.unified.../x", EINVAL},
      {"/linux/resources", "{\"blockIO\": {\"weight\": 5}}", "linux.resources.blockIO.weight", ERANGE},
      {"/linux/resources", "{\"blockIO\": {\"leafWeight\": 100}}", "linux.resources.blockIO.leafWeight",
       EOPNOTSUPP},
      {"/linux/resources", "{\"blockIO\": {\"throttleReadBpsDevice\": [{\"major\": 8}]}}",
       "linux.resources.blockIO.throttleReadBpsDevice[0].major", EINVAL},
      {"/linux/resources", "{\"hugepageLimits\": [{\"pageSize\": \"../2MB\", \"limit\": 1}]}",
       "linux.resources.hugepageLimits[0].pageSize", EINVAL},
      {"/linux/resources", "{\"network\": {\"priorities\": [{\"name\": \"a b\", \"priority\": 1}]}}",
       "linux.resources.network.priorities[0].name", EINVAL},
      {"/linux/resources", "{\"memory\": {\"limit\": \"1g\"}}", "linux.resources.memory.limit", EINVAL},
      {"/linux/rootfsPropagation", "\"sharedish\"", "linux.rootfsPropagation", EINVAL},
      {"/mounts",
       "[{\"destination\": \"/x\", \"uidMappings\": [{\"containerID\": 0, \"hostID\": 1, \"size\": 1}]}]",
       "mounts[0].uidMappings", EINVAL},
      {"/mounts", "[{}]", "mounts[0].destination", EINVAL},
      {"/mounts", "{\"a\": 1}", "mounts", EINVAL},
      {"/hooks", "{\"prestart\": [{\"path\": \"x\"}]}", "hooks.prestart[0].path", EINVAL},
      {"/hooks", "{\"poststop\": [{\"path\": \"/x\", \"timeout\": 0}]}", "hooks.poststop[0].timeout", ERANGE},
      {"/hooks", "{\"poststart\": [{}]}", "hooks.poststart[0].path", EINVAL},
  };
  for (const Row& row : rows) {
    CAPTURE(row.pointer);
    CAPTURE(row.value);
    Json config = Minimal();
    config[Json::json_pointer(row.pointer)] = Json::parse(row.value);
    const base::Error error = Failure(config);
    CHECK(error.object == row.object);
    CHECK(error.err == row.err);
    CHECK_FALSE(error.message.empty());
  }
}

TEST_CASE("escape 26: text that is no JSON, or too much of it, is refused") {
  for (const char* text : {"", "{", "[]", "null", "{\"a\": }", "\xff\xfe"}) CHECK_FALSE(ParseSpec(text));
  CHECK(ParseSpec(std::string((16 << 20) + 1, ' ')).error().err == EFBIG);
  // Whoever copies or writes a value takes stack for each level, as the compiler does with the seccomp
  // section.
  const auto nested = [](size_t depth) {
    return "{\"linux\": {\"seccomp\": {\"x\": " + std::string(depth, '[') + std::string(depth, ']') + "}}}";
  };
  CHECK(ParseSpec(nested(1'000'000)).error().err == E2BIG);
  CHECK(ParseSpec(nested(base::kMaxJsonDepth - 2)).error().err == E2BIG);
  CHECK(ParseSpec(nested(base::kMaxJsonDepth - 3)).error().err == EINVAL);  // for what is missing
  // Brackets in strings are none.
  CHECK(ParseSpec("{\"\\\"[\": \"" + std::string(1000, '{') + "\"}").error().err == EINVAL);
  CHECK(CompileSeccomp(Json::parse(R"({"defaultAction": "SCMP_ACT_ALLOW"})")));
  const Json rule = {{"names", {"read"}}, {"action", "SCMP_ACT_ERRNO"}};
  const Json profile = {{"defaultAction", "SCMP_ACT_ALLOW"}, {"syscalls", Json::array_t(5000, rule)}};
  CHECK(CompileSeccomp(profile).error().err == E2BIG);
}

TEST_CASE("exec takes what it does not say from the container") {
  Process defaults;
  defaults.env = {"A=1"};
  defaults.cwd = "/work";
  defaults.uid = 7;
  defaults.no_new_privileges = true;
  defaults.terminal = true;
  defaults.args = {"old"};
  const auto process = ParseProcess(R"({"args": ["new"], "user": {"gid": 9}})", defaults);
  REQUIRE(process);
  CHECK(process->args == std::vector<std::string>{"new"});
  CHECK(process->env == defaults.env);
  CHECK(process->cwd == "/work");
  CHECK(process->uid == 7);
  CHECK(process->gid == 9);
  CHECK(process->no_new_privileges);
  CHECK_FALSE(process->terminal);
}

TEST_CASE("paths are cleaned without leaving the root") {
  CHECK(CleanPath("/a//b/./c/..") == "/a/b");
  CHECK(CleanPath("a/b") == "/a/b");
  CHECK(CleanPath("/../../x") == "/x");
  CHECK(CleanPath("") == "/");
  CHECK(CleanPath("/..") == "/");
}

TEST_CASE("escape 22: container ids are those of runc and crun") {
  for (const std::string& id :
       {std::string("a"), std::string("A-b_c+d.e"), std::string("0"), std::string(1024, 'x')}) {
    CHECK(ValidId(id));
  }
  for (const std::string& id :
       {std::string(), std::string(".."), std::string(".x"), std::string("a/b"), std::string("a b"),
        std::string(1025, 'x'), std::string("\xc3\xa4"), std::string("a\0b", 3)}) {
    CHECK_FALSE(ValidId(id));
  }
}

TEST_CASE("mount options are sorted into attributes, propagation and data") {
  const auto options = ParseMountOptions({"rbind", "ro", "nosuid", "rnoexec", "rslave", "noatime"}, "m");
  REQUIRE(options);
  CHECK(options->bind);
  CHECK(options->recursive);
  CHECK(options->set == (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOATIME));
  CHECK(options->clear == MOUNT_ATTR__ATIME);
  CHECK(options->recursive_set == MOUNT_ATTR_NOEXEC);
  CHECK(options->propagation == MS_SLAVE);
  const auto data =
      ParseMountOptions({"mode=755", "size=65536k", "newinstance", "strictatime", "defaults"}, "m");
  REQUIRE(data);
  CHECK(data->data == std::vector<std::pair<std::string, std::string>>{
                          {"mode", "755"}, {"size", "65536k"}, {"newinstance", ""}});
  CHECK(data->set == MOUNT_ATTR_STRICTATIME);
  // The last of two that contradict each other counts.
  CHECK(ParseMountOptions({"ro", "rw"}, "m")->set == 0);
  CHECK(ParseMountOptions({"rw", "ro"}, "m")->set == MOUNT_ATTR_RDONLY);
  CHECK(ParseMountOptions({"rw", "ro"}, "m")->clear == 0);
  CHECK(ParseMountOptions({"tmpcopyup", "mode=700"}, "m")->copy_up);
  CHECK(ParseMountOptions({"bind", "ridmap"}, "m")->recursive_id_map);
  CHECK(ParseMountOptions({"remount", "size=1m"}, "m")->remount);
  CHECK(ParseMountOptions({"bind", "size=1"}, "m").error().err == EINVAL);
}

TEST_CASE("cpu.weight follows the curve through both ends and the default") {
  CHECK(CpuWeight(0) == 0);
  CHECK(CpuWeight(1) == 1);
  CHECK(CpuWeight(2) == 1);
  CHECK(CpuWeight(1024) == 100);
  CHECK(CpuWeight(262144) == 10000);
  CHECK(CpuWeight(1'000'000) == 10000);
}

// "file=value" of each setting's first choice.
std::vector<std::string> Texts(const base::Result<std::vector<CgroupSetting>>& settings) {
  REQUIRE_MESSAGE(settings, settings.error().ToString());
  std::vector<std::string> texts;
  for (const CgroupSetting& setting : *settings) {
    texts.push_back(setting.choices[0].file + "=" + setting.choices[0].value);
  }
  return texts;
}

TEST_CASE("resources become the files and values of each cgroup version") {
  const auto resources = ParseResources(R"({
    "memory": {"limit": 1000, "reservation": 500, "swap": 3000, "swappiness": 10},
    "cpu": {"shares": 1024, "quota": 5, "period": 10, "burst": 3, "idle": 1, "cpus": "0-1", "mems": "0"},
    "pids": {"limit": 0},
    "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 7}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 1, "rate": 0}]},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
    "rdma": {"mlx": {"hcaHandles": 3, "hcaObjects": 4}},
    "unified": {"memory.high": "9"}})");
  REQUIRE_MESSAGE(resources, resources.error().ToString());
  CHECK(Texts(SettingsV2(*resources)) ==
        std::vector<std::string>{"memory.max=1000", "memory.low=500", "memory.swap.max=2000",
                                 "cpu.weight=100", "cpu.max=5 10", "cpu.max.burst=3", "cpu.idle=1",
                                 "cpuset.cpus=0-1", "cpuset.mems=0", "pids.max=0",
                                 "io.bfq.weight=default 500", "io.max=8:1 rbps=7", "io.max=8:1 wiops=max",
                                 "hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304",
                                 "rdma.max=mlx hca_handle=3 hca_object=4", "memory.high=9"});
  CHECK(SettingsV2(*resources)->at(10).choices[1].value == "default 4950");
  CHECK(SettingsV1(*resources).error().object == "linux.resources.unified");
  Resources v1 = *resources;
  v1.unified.clear();
  v1.network_class_id = 5;
  v1.network_priorities = {{"eth0", 2}};
  CHECK(Texts(SettingsV1(v1)) == std::vector<std::string>{"memory.limit_in_bytes=1000",
                                                          "memory.soft_limit_in_bytes=500",
                                                          "memory.memsw.limit_in_bytes=3000",
                                                          "memory.swappiness=10",
                                                          "cpu.shares=1024",
                                                          "cpu.cfs_period_us=10",
                                                          "cpu.cfs_quota_us=5",
                                                          "cpu.cfs_burst_us=3",
                                                          "cpu.idle=1",
                                                          "cpuset.cpus=0-1",
                                                          "cpuset.mems=0",
                                                          "pids.max=0",
                                                          "blkio.weight=500",
                                                          "blkio.throttle.read_bps_device=8:1 7",
                                                          "blkio.throttle.write_iops_device=8:1 0",
                                                          "hugetlb.2MB.limit_in_bytes=4194304",
                                                          "hugetlb.2MB.rsvd.limit_in_bytes=4194304",
                                                          "net_cls.classid=5",
                                                          "net_prio.ifpriomap=eth0 2",
                                                          "rdma.max=mlx hca_handle=3 hca_object=4"});
  CHECK(SettingsV2(v1).error().object == "linux.resources.network");
  Resources bad;
  bad.memory_swap = 5;
  CHECK(SettingsV2(bad).error().object == "linux.resources.memory.swap");
  bad = {};
  bad.cpu_realtime_runtime = 5;
  CHECK(SettingsV2(bad).error().err == EOPNOTSUPP);
}

TEST_CASE("hierarchies are found in mountinfo, the last mount at a place counts") {
  const std::string text =
      "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
      "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
      "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
      "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
      "42 31 0:39 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,pids\n"
      "43 31 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
      "44 31 0:41 / /elsewhere/pids rw - cgroup cgroup rw,pids\n"
      "45 - cgroup\n\nnonsense - -\n";
  const auto found = ParseHierarchies(text, "/sys/fs/cgroup");
  REQUIRE(found.size() == 4);
  CHECK(found[0].name == "cpu,cpuacct");
  CHECK(found[0].controllers == std::vector<std::string>{"cpu", "cpuacct"});
  CHECK(found[1].controllers == std::vector<std::string>{"name=systemd"});
  CHECK(found[2].name == "a b");
  CHECK(found[3].unified);
}

// Runs a device program as the kernel would: enough of BPF for what DeviceProgram emits.
int Decide(const std::vector<bpf_insn>& program, uint32_t type, uint32_t access, uint32_t major,
           uint32_t minor) {
  const uint32_t context[3] = {access << 16 | type, major, minor};
  uint64_t regs[11] = {};
  for (size_t at = 0; at < program.size(); ++at) {
    const bpf_insn& insn = program[at];
    const auto immediate = static_cast<uint32_t>(insn.imm);
    switch (insn.code) {
      case BPF_LDX | BPF_MEM | BPF_W:
        regs[insn.dst_reg] = context[insn.off / 4];
        break;
      case BPF_ALU | BPF_MOV | BPF_X:
        regs[insn.dst_reg] = static_cast<uint32_t>(regs[insn.src_reg]);
        break;
      case BPF_ALU | BPF_MOV | BPF_K:
        regs[insn.dst_reg] = immediate;
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        regs[insn.dst_reg] = static_cast<uint32_t>(regs[insn.dst_reg]) & immediate;
        break;
      case BPF_ALU | BPF_XOR | BPF_K:
        regs[insn.dst_reg] = static_cast<uint32_t>(regs[insn.dst_reg]) ^ immediate;
        break;
      case BPF_ALU | BPF_OR | BPF_X:
        regs[insn.dst_reg] = static_cast<uint32_t>(regs[insn.dst_reg] | regs[insn.src_reg]);
        break;
      case BPF_ALU64 | BPF_OR | BPF_X:
        regs[insn.dst_reg] |= regs[insn.src_reg];
        break;
      case BPF_ALU64 | BPF_LSH | BPF_K:
        regs[insn.dst_reg] <<= immediate;
        break;
      case BPF_LD | BPF_IMM | BPF_DW:
        ++at;
        regs[insn.dst_reg] = uint64_t{static_cast<uint32_t>(program[at].imm)} << 32 | immediate;
        break;
      case BPF_JMP | BPF_JNE | BPF_X:
        if (regs[insn.dst_reg] != regs[insn.src_reg]) at += insn.off;
        break;
      case BPF_ALU | BPF_LSH | BPF_K:
        regs[insn.dst_reg] = static_cast<uint32_t>(regs[insn.dst_reg]) << immediate;
        break;
      case BPF_ALU | BPF_RSH | BPF_K:
        regs[insn.dst_reg] = static_cast<uint32_t>(regs[insn.dst_reg]) >> immediate;
        break;
      case BPF_JMP | BPF_JNE | BPF_K:
        if (regs[insn.dst_reg] != immediate) at += insn.off;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
        if (regs[insn.dst_reg] == immediate) at += insn.off;
        break;
      case BPF_JMP | BPF_EXIT:
        return static_cast<int>(regs[0]);
      default:
        FAIL("unexpected instruction " << static_cast<int>(insn.code));
    }
  }
  FAIL("ran off the end");
  return -1;
}

TEST_CASE("the device program decides as the rules say") {
  constexpr uint32_t kChar = BPF_DEVCG_DEV_CHAR;
  constexpr uint32_t kBlock = BPF_DEVCG_DEV_BLOCK;
  constexpr uint32_t kRead = BPF_DEVCG_ACC_READ;
  constexpr uint32_t kWrite = BPF_DEVCG_ACC_WRITE;
  constexpr uint32_t kMknod = BPF_DEVCG_ACC_MKNOD;
  const DeviceRule deny_all{
      .allow = false, .type = 'a', .major = {}, .minor = {}, .read = true, .write = true, .mknod = true};
  const DeviceRule allow_all{
      .allow = true, .type = 'a', .major = {}, .minor = {}, .read = true, .write = true, .mknod = true};

  const auto none = DeviceProgram({});
  CHECK(Decide(none, kChar, kRead | kWrite, 1, 3) == 1);  // null
  CHECK(Decide(none, kChar, kRead, 136, 77) == 1);        // pts
  CHECK(Decide(none, kBlock, kMknod, 8, 0) == 1);         // making a node is harmless
  CHECK(Decide(none, kBlock, kRead, 8, 0) == 0);          // using it is not
  CHECK(Decide(none, kBlock, kRead | kMknod, 8, 0) == 0);
  CHECK(Decide(DeviceProgram({deny_all}), kChar, kWrite, 1, 3) == 1);
  CHECK(Decide(DeviceProgram({deny_all}), kChar, kRead, 10, 229) == 0);
  CHECK(Decide(DeviceProgram({allow_all}), kBlock, kRead | kWrite, 8, 0) == 1);

  const DeviceRule read_sda{
      .allow = true, .type = 'b', .major = 8, .minor = 0, .read = true, .write = false, .mknod = false};
  const auto sda = DeviceProgram({deny_all, read_sda});
  CHECK(Decide(sda, kBlock, kRead, 8, 0) == 1);
  CHECK(Decide(sda, kBlock, kWrite, 8, 0) == 0);
  CHECK(Decide(sda, kBlock, kRead | kWrite, 8, 0) == 0);  // an allow rule must cover all that is asked
  CHECK(Decide(sda, kBlock, kRead, 8, 1) == 0);
  CHECK(Decide(sda, kChar, kRead, 8, 0) == 0);

  // Each kind of rule: of both types, of one number only, of one that no device has.
  DeviceRule both = allow_all;
  both.major = 240;
  both.minor = 1U << 19;
  const auto of_both = DeviceProgram({both});
  CHECK(Decide(of_both, kChar, kRead, 240, 1U << 19) == 1);
  CHECK(Decide(of_both, kBlock, kRead, 240, 1U << 19) == 1);
  CHECK(Decide(of_both, kBlock, kRead, 240, 1U << 18) == 0);
  CHECK(Decide(of_both, kBlock, kRead, 241, 1U << 19) == 0);
  DeviceRule by_minor = read_sda;
  by_minor.major.reset();
  by_minor.minor = 7;
  const auto of_minor = DeviceProgram({by_minor});
  CHECK(Decide(of_minor, kBlock, kRead, 3, 7) == 1);
  CHECK(Decide(of_minor, kBlock, kRead, 3, 6) == 0);
  CHECK(Decide(of_minor, kChar, kRead, 3, 7) == 0);
  DeviceRule by_major = read_sda;
  by_major.minor.reset();
  CHECK(Decide(DeviceProgram({by_major}), kBlock, kRead, 8, 99) == 1);
  CHECK(Decide(DeviceProgram({by_major}), kChar, kRead, 8, 99) == 0);
  DeviceRule no_such = read_sda;
  no_such.major = 8 + (1U << 28);
  CHECK(Decide(DeviceProgram({no_such}), kBlock, kRead, 8, 0) == 0);
  DeviceRule any_of_both = both;
  any_of_both.minor.reset();
  CHECK(Decide(DeviceProgram({any_of_both}), kBlock, kWrite, 240, 4) == 1);

  DeviceRule no_write = read_sda;
  no_write.allow = false;
  no_write.read = false;
  no_write.write = true;
  const auto later_deny = DeviceProgram({allow_all, no_write});
  CHECK(Decide(later_deny, kBlock, kRead | kWrite, 8, 0) == 0);  // a deny rule bites on a part
  CHECK(Decide(later_deny, kBlock, kRead, 8, 0) == 1);
}

}  // namespace
}  // namespace gcs::engine
