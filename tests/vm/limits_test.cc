// SPDX-License-Identifier: Apache-2.0
// What a container may not do, and how much of what it may.
#include <atomic>
#include <chrono>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "vm/vm_support.h"

namespace gcs::test {
namespace {

TEST_CASE("a read-only root refuses writes, and its tmpfs mounts take them") {
  auto options = TestContainer::Make(
      {"sh", "-c", "echo x > /file; echo $?; echo x > /dev/shm/file && cat /dev/shm/file"});
  options.settings.read_only = true;
  const Ran ran = RunToEnd(std::move(options));
  CHECK(ran.out == "1\nx\n");
  CHECK(ran.err.find("Read-only file system") != std::string::npos);
}

TEST_CASE("a container over its memory limit is killed, and the exit record says why") {
  auto options = TestContainer::Make({"/opt/probe", "eat", "200"});
  options.settings.memory_bytes = 32 << 20;
  TestContainer container(std::move(options));
  container.Start();
  const v1::ExitStatus exit = container.Wait();
  CHECK(exit.exit_code() == 137);
  CHECK(exit.signal() == SIGKILL);
  CHECK(exit.oom_killed());
  v1::ContainerStatsRequest ask;
  ask.add_container_ids(container.id());
  const auto stats = TestVm::Get().client().Call(ask);
  REQUIRE_MESSAGE(stats, Why(stats));
  REQUIRE(stats->stats_size() == 1);
  CHECK(stats->stats(0).memory().limit_bytes() == 32 << 20);
  CHECK(stats->stats(0).memory().oom_kills() >= 1);
  // The same program has room without the limit.
  const Ran roomy = RunToEnd({"/opt/probe", "eat", "40"});
  CHECK(roomy.out == "ate 40\n");
  CHECK_FALSE(roomy.exit.oom_killed());
}

TEST_CASE("an event tells of a child that the OOM killer ends, while its container runs on") {
  host::Client& client = TestVm::Get().client();
  uint64_t cursor = 0;
  REQUIRE(client.WatchEvents(cursor, false, [](const v1::Event&) { return true; }));
  auto options = TestContainer::Make({"sh", "-c", "/opt/probe eat 200; echo survived $?; exec sleep 1000"});
  options.settings.memory_bytes = 32 << 20;
  TestContainer container(std::move(options));
  Output output(container.id(), {}, false, false);
  container.Start();
  REQUIRE(output.WaitFor("survived 137"));
  const uint64_t before = cursor;
  bool told = false;
  for (int i = 0; i < 100 && !told; ++i) {
    cursor = before;
    REQUIRE(client.WatchEvents(cursor, false, [&](const v1::Event& event) {
      if (event.container_id() == container.id() && event.has_oom()) told = event.oom().kills() == 1;
      CHECK_FALSE((event.container_id() == container.id() && event.has_exited()));
      return true;
    }));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  CHECK(told);
}

TEST_CASE("the pids limit ends forks") {
  auto options = TestContainer::Make({"/opt/probe", "forks", "100"});
  options.settings.pids_limit = 10;
  const Ran ran = RunToEnd(std::move(options));
  CHECK(ran.out == "forks 9 EAGAIN\n");
}

TEST_CASE("a fork bomb without a limit of its own is ended like any container, and others start again") {
  TestContainer bomb(TestContainer::Make({"/opt/probe", "bomb"}));
  Output output(bomb.id(), {}, false, false);
  bomb.Start();
  REQUIRE(output.WaitFor("full EAGAIN", 120'000));
  // Threads that the agent had to spare have ended by now: it has to do with what it keeps.
  std::this_thread::sleep_for(std::chrono::seconds(12));
  std::vector<std::jthread> callers;
  std::atomic<int> answered = 0;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&] {
      v1::ContainerStatsRequest ask;
      ask.add_container_ids(bomb.id());
      if (TestVm::Get().client().Call(ask)) ++answered;
    });
  }
  callers.clear();
  CHECK(answered == 8);
  const auto killed = bomb.Signal(SIGKILL, true);
  CHECK_MESSAGE(killed, Why(killed));
  CHECK(bomb.Wait().signal() == SIGKILL);
  const auto deleted = bomb.Delete();
  CHECK_MESSAGE(deleted, Why(deleted));
  const auto info = TestVm::Get().client().Call(v1::InfoRequest());
  REQUIRE(info);
  CHECK(info->agent_restarts() == 0);
  CHECK(RunToEnd({"echo", "room"}).out == "room\n");
}

TEST_CASE("the CPU limit is in the container's cgroup") {
  auto options =
      TestContainer::Make({"sh", "-c", "cat /sys/fs/cgroup/cpu.max; cat /sys/fs/cgroup/memory.max"});
  options.settings.cpus = 0.25;
  options.settings.memory_bytes = 64 << 20;
  const Ran ran = RunToEnd(std::move(options));
  CHECK(ran.out == "25000 100000\n67108864\n");
}

TEST_CASE("limits of a running container can be changed") {
  TestContainer container(TestContainer::Make({"sleep", "1000"}));
  container.Start();
  v1::UpdateContainerRequest update;
  update.set_container_id(container.id());
  update.set_resources_json(R"({"memory": {"limit": 50331648}, "pids": {"limit": 7}})");
  const auto updated = TestVm::Get().client().Call(update);
  REQUIRE_MESSAGE(updated, Why(updated));
  v1::ContainerStatsRequest ask;
  ask.add_container_ids(container.id());
  const auto stats = TestVm::Get().client().Call(ask);
  REQUIRE(stats);
  CHECK(stats->stats(0).memory().limit_bytes() == 50331648);
  CHECK(stats->stats(0).pids().limit() == 7);
  CHECK(stats->stats(0).pids().current() == 1);
}

TEST_CASE("no container reaches the agent's port: not root, not by exec, not a privileged one") {
  const char* const kProbe =
      "for cid in 1 2 3 4294967295; do /opt/probe vsock $cid 1024; done; /opt/probe io_uring";
  const std::string refused =
      "socket EAFNOSUPPORT\nsocket EAFNOSUPPORT\nsocket EAFNOSUPPORT\nsocket EAFNOSUPPORT\n";
  {
    const Ran ran = RunToEnd({"sh", "-c", kProbe});
    CHECK(ran.out.starts_with(refused));
    CHECK(ran.out.find("io_uring_setup OK") == std::string::npos);
  }
  auto options = TestContainer::Make({"sh", "-c", std::string(kProbe) + "; sleep 1000"});
  options.settings.privileged = true;
  TestContainer container(std::move(options));
  Output first(container.id());
  container.Start();
  REQUIRE(first.WaitFor("io_uring_setup"));
  CHECK(first.out().starts_with(refused));
  CHECK(first.out().find("io_uring_setup ENOSYS") != std::string::npos);

  v1::ExecRequest exec;
  exec.set_container_id(container.id());
  exec.set_process_id("probe");
  exec.set_process_json(R"({"args": ["/opt/probe", "vsock", "1", "1024"]})");
  exec.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  const auto started = TestVm::Get().client().Call(exec);
  REQUIRE_MESSAGE(started, Why(started));
  Output second(container.id(), "probe", false, false);
  second.Finish();
  CHECK(second.out() == "socket EAFNOSUPPORT\n");
}

TEST_CASE("a container that the host trusts may use vsock, and the agent still refuses its connection") {
  const auto before = TestVm::Get().client().Call(v1::InfoRequest());
  REQUIRE(before);
  auto options = TestContainer::Make({"sh", "-c", "/opt/probe vsock 1 1024"});
  options.allow_vsock = true;
  const Ran ran = RunToEnd(std::move(options));
  CHECK(ran.out.find("socket") == std::string::npos);
  const auto after = TestVm::Get().client().Call(v1::InfoRequest());
  REQUIRE(after);
  // With loopback the connection is made and dropped by the agent; without it nobody is there.
  const bool dropped = after->refused_connections() > before->refused_connections();
  CHECK_MESSAGE((dropped || ran.out != "connect OK\n"), ran.out);
}

TEST_CASE("the default container has docker's capabilities, no new devices and masked paths") {
  const Ran ran =
      RunToEnd({"sh", "-c",
                "grep CapEff /proc/self/status; mknod /tmp/sda b 8 0 && cat /tmp/sda >/dev/null; "
                "cat /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/panic; mount -t tmpfs x /mnt; "
                "unshare -U true"});
  CHECK(ran.out.find("CapEff:\t00000000a80425fb") != std::string::npos);
  CHECK(ran.err.find("/tmp/sda") != std::string::npos);
  CHECK(ran.out.find("\n0\n") != std::string::npos);
  CHECK(ran.err.find("/proc/sys/kernel/panic: Read-only file system") != std::string::npos);
  CHECK(ran.err.find("mount") != std::string::npos);
  CHECK(ran.exit.exit_code() != 0);
}

}  // namespace
}  // namespace gcs::test
