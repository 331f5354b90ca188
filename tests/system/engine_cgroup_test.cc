// SPDX-License-Identifier: Apache-2.0
// Limits, freezing, update and counters: what the machine's controllers can do. tests/vm/debian runs the same
// where cgroup2 has all of them.
#include <csignal>

#include "support/skip.h"
#include "system/engine_support.h"

namespace gcs::test {
namespace {

using base::Json;

bool HasV1(const char* controller) {
  return kCgroupView != CgroupView::kV2 &&
         access(("/sys/fs/cgroup/" + std::string(controller) + "/cgroup.procs").c_str(), F_OK) == 0;
}

std::string Directory(const char* controller, const RunningContainer& running) {
  return "/sys/fs/cgroup/" + (kCgroupView == CgroupView::kV2 ? std::string() : std::string(controller)) +
         running.container->cgroup->path();
}

std::string Value(const std::string& path) {
  std::string text = base::ReadFile(path).value_or("?");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

TEST_CASE("the cgroup is the container's own view, read-only, and nothing of the machine's") {
  const Outcome outcome =
      RunShell("cat /proc/self/cgroup; ls /sys/fs/cgroup; touch /sys/fs/cgroup/x || echo ro");
  // Every line ends with the namespace's root.
  std::istringstream lines(outcome.out);
  int seen = 0;
  for (std::string line; std::getline(lines, line) && line.find(':') != std::string::npos; ++seen) {
    CAPTURE(line);
    const bool used =
        kCgroupView == CgroupView::kV2
            ? line.starts_with("0::")
            : HasV1(line.substr(line.find(':') + 1, line.rfind(':') - line.find(':') - 1).c_str());
    if (used) CHECK(line.ends_with(":/"));
  }
  CHECK(seen > 0);
  CHECK(outcome.out.ends_with("ro\n"));
  if (HasV1("memory")) CHECK(outcome.out.find("memory\n") != std::string::npos);
}

TEST_CASE("escape 13: without a cgroup namespace only the container's own directory is there, read-only") {
  Json config = DefaultConfig(
      EngineMachine::Get().root(),
      {"sh", "-c", "find /sys/fs/cgroup -name cgroup.procs | sort; mount | grep -c ' /sys/fs/cgroup.*(ro'"});
  config["root"]["path"] = EngineMachine::Get().MakeRoot("nocgroupns");
  std::filesystem::create_symlink("busybox", EngineMachine::Get().dir() + "/nocgroupns/bin/find");
  std::filesystem::create_symlink("busybox", EngineMachine::Get().dir() + "/nocgroupns/bin/sort");
  std::erase_if(config["linux"]["namespaces"].get_ref<Json::array_t&>(),
                [](const Json& ns) { return ns["type"] == "cgroup"; });
  const Outcome outcome = Run(config);
  CHECK(outcome.status == 0);
  if (kCgroupView == CgroupView::kV2) {
    CHECK(outcome.out == "/sys/fs/cgroup/cgroup.procs\n1\n");
  } else {
    CHECK(outcome.out.find("/sys/fs/cgroup/pids/cgroup.procs\n") != std::string::npos);
    CHECK(outcome.out.find("gcs-test") == std::string::npos);
  }
}

// Where each kind of cgroups has a limit, and the values of the test below there.
struct LimitFiles {
  std::string pids, memory, reservation, cpu, cpuset, shares;
  std::string shares_value, quota_value, updated_quota_value;
};

LimitFiles Files(const RunningContainer& running) {
  const auto at = [&](const char* controller, const char* file) {
    return Directory(controller, running) + "/" + file;
  };
  if (kCgroupView == CgroupView::kV2) {
    return {at("", "pids.max"),
            at("", "memory.max"),
            at("", "memory.low"),
            at("", "cpu.max"),
            at("", "cpuset.cpus"),
            at("", "cpu.weight"),
            "59",
            "50000 100000",
            "50000 200000"};
  }
  return {at("pids", "pids.max"),
          at("memory", "memory.limit_in_bytes"),
          at("memory", "memory.soft_limit_in_bytes"),
          at("cpu", "cpu.cfs_quota_us"),
          at("cpuset", "cpuset.cpus"),
          at("cpu", "cpu.shares"),
          "512",
          "50000",
          "50000"};
}

bool HasControllers() {
  if (kCgroupView != CgroupView::kV2) return true;
  const std::string all = " " + Value("/sys/fs/cgroup/cgroup.controllers") + " ";
  for (const char* name : {" pids ", " memory ", " cpu ", " cpuset "})
    if (all.find(name) == std::string::npos) return false;
  return true;
}

TEST_CASE("limits are written where they belong, and an update changes only what it has") {
  // tests/vm/debian runs this where v2 has them.
  if (!HasControllers()) GCS_SKIP("cgroup2 controllers pids, memory, cpu and cpuset");
  Json config = DefaultConfig(EngineMachine::Get().root(), {"sleep", "1000"});
  config["linux"]["resources"]["pids"] = {{"limit", 77}};
  config["linux"]["resources"]["memory"] = {{"limit", 64 << 20}, {"reservation", 32 << 20}};
  config["linux"]["resources"]["cpu"] = {
      {"shares", 512}, {"quota", 50'000}, {"period", 100'000}, {"cpus", "0"}};
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  REQUIRE_MESSAGE(created, created.error().ToString());
  REQUIRE(running.Start());
  const LimitFiles files = Files(running);
  CHECK(Value(files.pids) == "77");
  CHECK(Value(files.memory) == std::to_string(64 << 20));
  CHECK(Value(files.reservation) == std::to_string(32 << 20));
  CHECK(Value(files.shares) == files.shares_value);
  CHECK(Value(files.cpu) == files.quota_value);
  CHECK(Value(files.cpuset) == "0");
  engine::Resources update;
  update.cpu_period = 200'000;
  update.memory_limit = 128 << 20;
  auto updated = running.container->cgroup->Update(update);
  REQUIRE_MESSAGE(updated, updated.error().ToString());
  CHECK(Value(files.cpu) == files.updated_quota_value);
  if (kCgroupView != CgroupView::kV2)
    CHECK(Value(Directory("cpu", running) + "/cpu.cfs_period_us") == "200000");
  CHECK(Value(files.memory) == std::to_string(128 << 20));

  SUBCASE("a failed update leaves what was there") {
    engine::Resources bad;
    bad.cpu_shares = 100;
    bad.pids_limit = 5;
    bad.cpus = "999";
    updated = running.container->cgroup->Update(bad);
    REQUIRE_FALSE(updated);
    CHECK(updated.error().object.ends_with("cpuset.cpus"));
    CHECK(Value(files.shares) == files.shares_value);
    CHECK(Value(files.pids) == "77");
  }
  SUBCASE("a limit below what is in use is refused if asked to look") {
    engine::Resources low;
    low.memory_limit = 4096;
    low.memory_check_before_update = true;
    updated = running.container->cgroup->Update(low);
    REQUIRE_FALSE(updated);
    CHECK(updated.error().err == EBUSY);
  }
  const auto stats = running.container->cgroup->Stats();
  REQUIRE(stats);
  CHECK(stats->pids_current == 1);
  CHECK(stats->pids_limit == 77);
  CHECK(stats->memory_limit == 128 << 20);
  CHECK(stats->memory_usage > 0);
  CHECK(stats->cpu_usage_us > 0);
}

TEST_CASE("a controller that isn't there is an error that names its file") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  config["linux"]["resources"]["rdma"] = {{"mlx5_0", {{"hcaHandles", 3}}}};
  const base::Error error = FailCreate(config);
  CHECK(error.step == "set limit");
  CHECK(error.err == EOPNOTSUPP);
  CHECK(error.object.ends_with("rdma.max"));
}

TEST_CASE("a frozen container stands still, is killed frozen, and thaws") {
  Json config =
      DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", "while :; do echo x; done > /dev/null"});
  RunningContainer running;
  REQUIRE(running.Create(config, NextId()));
  REQUIRE(running.Start());
  auto& cgroup = *running.container->cgroup;
  CHECK_FALSE(cgroup.Frozen());
  const auto frozen = cgroup.Freeze(true, In(5));
  REQUIRE_MESSAGE(frozen, frozen.error().ToString());
  CHECK(cgroup.Frozen());
  const std::string stat = "/proc/" + std::to_string(running.container->init.pid()) + "/stat";
  const auto ticks = [&] {
    const std::string text = Value(stat);
    std::istringstream fields(text.substr(text.rfind(')') + 2));
    std::string word;
    for (int i = 0; i < 12; ++i) fields >> word;
    return word;
  };
  const std::string before = ticks();
  usleep(100'000);
  CHECK(ticks() == before);
  SUBCASE("thawed") {
    REQUIRE(cgroup.Freeze(false, In(5)));
    CHECK_FALSE(cgroup.Frozen());
    REQUIRE(running.container->init.Signal(SIGKILL));
  }
  SUBCASE("killed") { REQUIRE(cgroup.Kill()); }
  CHECK(running.Finish().status == 128 + SIGKILL);
}

TEST_CASE("what a container leaves behind is killed with it, grandchildren in cgroups of its own too") {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", "sleep 1000 & sleep 1000 & echo"});
  std::erase_if(config["linux"]["namespaces"].get_ref<Json::array_t&>(),
                [](const Json& ns) { return ns["type"] == "pid"; });
  RunningContainer running;
  REQUIRE(running.Create(config, NextId()));
  REQUIRE(running.Start());
  CHECK(Reap(running.container->init.pidfd()) == 0);
  auto pids = running.container->cgroup->Pids();
  REQUIRE(pids);
  CHECK(pids->size() == 2);
  const std::string dir = Directory("pids", running);
  const auto gone = EngineMachine::Get().engine().Destroy(*running.container, In(10));
  REQUIRE_MESSAGE(gone, gone.error().ToString());
  CHECK(access(dir.c_str(), F_OK) != 0);
  for (const int pid : *pids) {
    // Gone, or dead and not yet reaped by whoever reaps orphans here.
    const std::string stat = Value("/proc/" + std::to_string(pid) + "/stat");
    CHECK((stat == "?" || stat.find(") Z ") != std::string::npos || stat.find(") X ") != std::string::npos));
  }
  running.container.reset();
}

}  // namespace
}  // namespace gcs::test
