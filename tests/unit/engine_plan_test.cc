// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cstddef>
#include <cstring>
#include <random>

#include "base/json.h"
#include "engine/compile.h"
#include "engine/plan.h"
#include "engine/seccomp.h"

namespace gcs::engine {
namespace {

using base::Json;

Spec Parse(const Json& config) {
  auto spec = ParseSpec(config.dump());
  REQUIRE_MESSAGE(spec, spec.error().ToString());
  return *spec;
}

Json Config() {
  return Json::parse(R"({"ociVersion": "1.1.0", "root": {"path": "/r", "readonly": true}, "hostname": "h",
    "process": {"args": ["x", "y"], "cwd": "/w", "env": ["A=1", "HOME=/h", "A=2"], "noNewPrivileges": true},
    "mounts": [{"destination": "/proc", "type": "proc"},
               {"destination": "/data", "source": "/src", "options": ["rbind", "rro"]},
               {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]}],
    "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": "/n"}],
              "maskedPaths": ["/proc/kcore", "/proc/kcore", "/proc/keys"]}})");
}

const PlanHeader& Header(const std::string& block) {
  return *reinterpret_cast<const PlanHeader*>(block.data());
}

std::string CompileBlock(const Json& config, CompiledPlan* compiled = nullptr) {
  auto plan = CompileCreate(Parse(config), {.container_id = "c"}, nullptr);
  REQUIRE_MESSAGE(plan, plan.error().ToString());
  std::string block = plan->builder.Finish();
  if (compiled != nullptr) *compiled = std::move(*plan);
  return block;
}

TEST_CASE("a plan says what the configuration says") {
  CompiledPlan plan;
  const std::string block = CompileBlock(Config(), &plan);
  REQUIRE(CheckPlan(block.data(), block.size(), kFdFirstSource + static_cast<int>(plan.sources.size())) ==
          nullptr);
  const PlanHeader& header = Header(block);
  CHECK(header.clone_flags == (CLONE_NEWNS | CLONE_NEWUTS));
  CHECK((header.flags & kPlanRootReadonly) != 0);
  CHECK((header.flags & kPlanNoNewPrivileges) != 0);
  CHECK((header.flags & kPlanHasHome) != 0);
  CHECK((header.flags & kPlanLoopbackUp) == 0);
  CHECK(std::string(block.data() + header.hostname) == "h");
  CHECK(header.mounts.count == 3);
  CHECK(header.masked_paths.count == 2);  // duplicates count once
  CHECK(header.args.count == 2 + 1);
  CHECK(header.env.count == 2 + 2);  // the later A replaced the earlier one
  // Root, namespace, bind source, and the cgroup as a read-only bind, since there is no cgroup namespace.
  REQUIRE(plan.sources.size() == 4);
  CHECK(plan.sources[0].path == "/r");
  CHECK(plan.sources[1].kind == PlanSource::Kind::kNamespace);
  CHECK(plan.sources[2].recursive_set == MOUNT_ATTR_RDONLY);
  CHECK(plan.sources[2].recursive);
  CHECK(plan.sources[3].kind == PlanSource::Kind::kCgroup);
  CHECK((plan.sources[3].set & MOUNT_ATTR_RDONLY) != 0);
}

TEST_CASE("errors of a step name the object of the configuration") {
  CompiledPlan plan;
  CompileBlock(Config(), &plan);
  CHECK(StepObject(plan, Step::kAttachMount, 1) == "mounts[1] (/data)");
  CHECK(StepObject(plan, Step::kMaskedPath, 1) == "/proc/keys");
  CHECK(StepObject(plan, Step::kExecve, 0) == "x");
  CHECK(StepObject(plan, Step::kAttachMount, 99) == "99");
}

TEST_CASE("escape 06: what could fool readers of procfs is refused") {
  for (const char* destination : {"/proc/self", "/proc/sys/kernel", "/proc/1/attr", "/proc/../proc/sys"}) {
    Json config = Config();
    config["mounts"][1]["destination"] = destination;
    const auto plan = CompileCreate(Parse(config), {.container_id = "c"}, nullptr);
    REQUIRE_FALSE(plan);
    CHECK(plan.error().err == EPERM);
  }
  Json config = Config();
  config["mounts"][1]["destination"] = "/proc/meminfo";
  CHECK(CompileCreate(Parse(config), {.container_id = "c"}, nullptr));
}

TEST_CASE("capabilities that can't be granted are left out") {
  Json config = Config();
  for (const char* set : {"bounding", "permitted", "effective", "inheritable", "ambient"}) {
    config["process"]["capabilities"][set] = {"CAP_CHOWN", "CAP_KILL", "CAP_NO_SUCH"};
  }
  auto plan = CompileCreate(Parse(config), {.container_id = "c", .available_caps = 1 << 0}, nullptr);
  REQUIRE(plan);
  const std::string block = plan->builder.Finish();
  CHECK(Header(block).bounding == 1);
  CHECK(Header(block).ambient == 1);
}

TEST_CASE("more bind mounts than one message carries are refused") {
  Json config = Config();
  for (int i = 0; i < 300; ++i) {
    config["mounts"].push_back(
        {{"destination", "/m" + std::to_string(i)}, {"source", "/s"}, {"options", {"bind"}}});
  }
  auto plan = CompileCreate(Parse(config), {.container_id = "c"}, nullptr);
  REQUIRE(plan);
  CHECK(AddDescriptors(*plan, {}, -1).error().err == E2BIG);
}

TEST_CASE("escape 15: a damaged plan is never accepted as something it isn't") {
  CompiledPlan plan;
  const std::string good = CompileBlock(Config(), &plan);
  const int fds = kFdFirstSource + static_cast<int>(plan.sources.size());
  CHECK(CheckPlan(good.data(), good.size(), fds - 1) != nullptr);  // a descriptor is missing
  CHECK(CheckPlan(good.data(), good.size() - 8, fds) != nullptr);
  CHECK(CheckPlan(good.data(), 16, fds) != nullptr);
  // Any change is either refused or harmless: all references stay inside. AddressSanitizer watches the walk.
  const char* env = getenv("GCS_TEST_SEED");
  std::mt19937 random(env != nullptr ? static_cast<unsigned>(strtoul(env, nullptr, 10)) : 1U);
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bad = good;
    const size_t at = random() % bad.size();
    bad[at] = static_cast<char>(random());
    if (random() % 2 == 0)
      memset(bad.data() + at / 4 * 4, static_cast<int>(random() % 256),
             std::min<size_t>(4, bad.size() - at / 4 * 4));
    refused += CheckPlan(bad.data(), bad.size(), fds) != nullptr ? 1 : 0;
  }
  CHECK(refused > 1000);
  CHECK(refused < 20'000);
}

// What a filter answers, by the rules of classic BPF over struct seccomp_data.
uint32_t Evaluate(const SeccompFilter& filter, const seccomp_data& data) {
  const auto* program = reinterpret_cast<const sock_filter*>(filter.code.data());
  const size_t count = filter.code.size() / sizeof(sock_filter);
  uint32_t accumulator = 0;
  for (size_t at = 0; at < count; ++at) {
    const sock_filter& insn = program[at];
    const auto jump = [&](bool condition) { at += condition ? insn.jt : insn.jf; };
    switch (insn.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        memcpy(&accumulator, reinterpret_cast<const char*>(&data) + insn.k, sizeof accumulator);
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        accumulator &= insn.k;
        break;
      case BPF_JMP | BPF_JA:
        at += insn.k;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
        jump(accumulator == insn.k);
        break;
      case BPF_JMP | BPF_JGE | BPF_K:
        jump(accumulator >= insn.k);
        break;
      case BPF_JMP | BPF_JGT | BPF_K:
        jump(accumulator > insn.k);
        break;
      case BPF_RET | BPF_K:
        return insn.k;
      default:
        FAIL("unexpected instruction " << insn.code);
    }
  }
  FAIL("ran off the end");
  return 0;
}

seccomp_data Call(int number, uint64_t first = 0, uint64_t second = 0) {
  seccomp_data data{};
  data.nr = number;
  data.arch = 0xc000003e;  // x86-64
  data.args[0] = first;
  data.args[1] = second;
  return data;
}

TEST_CASE("escape 21: the vsock guard stops AF_VSOCK and io_uring, whatever the upper half of the argument") {
  const SeccompFilter guard = VsockGuard();
  CHECK(Evaluate(guard, Call(SYS_socket, AF_VSOCK)) == (SECCOMP_RET_ERRNO | EAFNOSUPPORT));
  CHECK(Evaluate(guard, Call(SYS_socket, 0xffffffff00000000ULL | AF_VSOCK)) ==
        (SECCOMP_RET_ERRNO | EAFNOSUPPORT));
  CHECK(Evaluate(guard, Call(SYS_socket, AF_INET)) == SECCOMP_RET_ALLOW);
  CHECK(Evaluate(guard, Call(SYS_io_uring_setup)) == (SECCOMP_RET_ERRNO | ENOSYS));
  CHECK(Evaluate(guard, Call(SYS_read)) == SECCOMP_RET_ALLOW);
  CHECK(Evaluate(guard, Call(SYS_socket | 0x40000000, AF_VSOCK)) == (SECCOMP_RET_ERRNO | ENOSYS));  // x32
  seccomp_data i386 = Call(359, AF_VSOCK);
  i386.arch = 0x40000003;
  CHECK(Evaluate(guard, i386) == (SECCOMP_RET_ERRNO | ENOSYS));
}

TEST_CASE("escape 24: seccomp profiles become filters that answer as they say") {
  const Json profile = Json::parse(R"({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["read", "made_up_call"], "action": "SCMP_ACT_ALLOW"},
                 {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
                 {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 3, "op": "SCMP_CMP_EQ"},
                                                                         {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]},
                 {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                  "args": [{"index": 0, "value": 255, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"}]},
                 {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"}]})");
  const auto filter = CompileSeccomp(profile);
  REQUIRE_MESSAGE(filter, filter.error().ToString());
  CHECK(Evaluate(*filter, Call(SYS_read)) == SECCOMP_RET_ALLOW);
  CHECK(Evaluate(*filter, Call(SYS_write)) == (SECCOMP_RET_ERRNO | 38));
  CHECK(Evaluate(*filter, Call(SYS_socket, 1)) == SECCOMP_RET_ALLOW);
  CHECK(Evaluate(*filter, Call(SYS_socket, 2)) == (SECCOMP_RET_ERRNO | 38));
  // Two conditions on one argument are alternatives.
  CHECK(Evaluate(*filter, Call(SYS_kill, 0, 3)) == SECCOMP_RET_ALLOW);
  CHECK(Evaluate(*filter, Call(SYS_kill, 0, 5)) == SECCOMP_RET_ALLOW);
  CHECK(Evaluate(*filter, Call(SYS_kill, 0, 4)) == (SECCOMP_RET_ERRNO | 38));
  CHECK(Evaluate(*filter, Call(SYS_personality, 0xff08)) == SECCOMP_RET_ALLOW);
  CHECK(Evaluate(*filter, Call(SYS_personality, 0xff09)) == (SECCOMP_RET_ERRNO | 38));
  CHECK(Evaluate(*filter, Call(SYS_reboot)) == SECCOMP_RET_KILL_PROCESS);
}

TEST_CASE("bad seccomp sections are refused with their JSON path") {
  struct Row {
    const char* json;
    const char* object;
    int err;
  };
  const Row rows[] = {
      {R"({})", "defaultAction", EINVAL},
      {R"({"defaultAction": "SCMP_ACT_MAYBE"})", "defaultAction", EINVAL},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1})", "defaultErrnoRet", EINVAL},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]})", "architectures",
       EINVAL},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_X"]})", "flags", EOPNOTSUPP},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "x"})", "listenerPath", EINVAL},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"})", "listenerMetadata", EINVAL},
      {R"({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"})", "defaultAction", EINVAL},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]})", "flags",
       EINVAL},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]})",
       "listenerPath", EINVAL},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_KILL"}]})",
       "syscalls[0].names", EINVAL},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]})",
       "syscalls[0].args[0].index", ERANGE},
      {R"({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 1, "value": 1, "op": "EQ"}]}]})",
       "syscalls[0].args[0].op", EINVAL},
  };
  for (const Row& row : rows) {
    CAPTURE(row.json);
    const auto filter = CompileSeccomp(Json::parse(row.json));
    REQUIRE_FALSE(filter);
    CHECK(filter.error().object == row.object);
    CHECK(filter.error().err == row.err);
  }
}

TEST_CASE("the cache gives the same filter for the same profile") {
  SeccompCache cache;
  const Json profile = Json::parse(R"({"defaultAction": "SCMP_ACT_ALLOW"})");
  const auto first = cache.Get(profile);
  REQUIRE(first);
  CHECK(cache.Get(profile)->get() == first->get());
  CHECK(cache.Get(Json::parse(R"({"defaultAction": "SCMP_ACT_LOG"})"))->get() != first->get());
}

}  // namespace
}  // namespace gcs::engine
