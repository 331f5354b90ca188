// SPDX-License-Identifier: Apache-2.0
// The agent's crash, and an end with a file server that says nothing.
#include <fcntl.h>
#include <linux/fs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/paths.h"
#include "vm/diod.h"
#include "vm/vm_support.h"

namespace gcs::test {
namespace {

void Pause(int64_t ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// A container with its own root, made by id; TestContainer chooses one by itself and deletes it.
struct Settings {
  std::vector<std::string> args;
  bool own_pids = true;  // else in the VM's pid namespace
  bool terminal = false;
  std::string pod_id;
};
void Create(const std::string& id, const Settings& settings, const std::string& request_id = {}) {
  TestVm& vm = TestVm::Get();
  const auto root = vm.storage().MountRoot(id, vm.layers(), 0);
  REQUIRE_MESSAGE(root, Why(root));
  host::ContainerSettings container;
  container.root_path = root->path;
  container.args = settings.args;
  container.terminal = settings.terminal;
  auto config = host::MakeOciConfig({}, container);
  REQUIRE_MESSAGE(config, Why(config));
  if (!settings.own_pids) {
    auto json = nlohmann::json::parse(*config);
    auto& namespaces = json["linux"]["namespaces"];
    for (size_t i = 0; i < namespaces.size(); ++i) {
      if (namespaces[i]["type"] == "pid") namespaces.erase(i--);
    }
    *config = json.dump();
  }
  v1::CreateContainerRequest create;
  create.set_request_id(request_id);
  create.set_container_id(id);
  create.set_pod_id(settings.pod_id);
  create.set_config_json(*config);
  create.mutable_stdio()->mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
  create.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  for (const std::string& mount : root->mount_ids) create.add_owned_mounts(mount);
  const auto created = vm.client().Call(create);
  REQUIRE_MESSAGE(created, Why(created));
}

void Start(const std::string& id) {
  v1::StartContainerRequest start;
  start.set_container_id(id);
  const auto started = TestVm::Get().client().Call(start);
  REQUIRE_MESSAGE(started, Why(started));
}

void Run(const std::string& id, const Settings& settings) {
  Create(id, settings);
  Start(id);
}

void Delete(const std::string& id) {
  v1::DeleteContainerRequest remove;
  remove.set_container_id(id);
  remove.set_force(true);
  const auto removed = TestVm::Get().client().Call(remove);
  CHECK_MESSAGE(removed, Why(removed));
}

host::CallResult<v1::WaitContainerResponse> WaitFor(const std::string& id) {
  v1::WaitContainerRequest wait;
  wait.set_container_id(id);
  return TestVm::Get().client().Call(wait, {.timeout_ms = 60'000});
}

v1::InfoResponse Info() {
  const int64_t deadline = base::MonotonicNs() + 60 * base::kNsPerSec;
  for (;;) {
    auto info = TestVm::Get().client().Call(v1::InfoRequest());
    if (info) return *info;
    REQUIRE(base::MonotonicNs() < deadline);
    Pause(20);
  }
}

// A container that kills the agent whenever a line comes, and who is named there right after it: until the
// agent is up again nobody but init knows of that.
class Killer {
 public:
  Killer() {
    Run("killer",
        {.args =
             {"sh", "-c",
              "while read signal victim; do v=; for p in /proc/[0-9]*; do "
              "read c < $p/comm; [ \"$c\" = gcs ] && agent=${p#/proc/}; "
              "[ -n \"$victim\" ] && [ \"$(tr '\\0' ' ' < $p/cmdline)\" = \"$victim \" ] && v=${p#/proc/}; "
              "done 2>/dev/null; kill -$signal $agent; [ -z \"$v\" ] || kill -9 $v; done"},
         .own_pids = false});
    output_.emplace("killer", std::string(), true, false);
  }
  ~Killer() { Delete("killer"); }
  Killer(const Killer&) = delete;
  Killer& operator=(const Killer&) = delete;

  // Returns when the next agent answers; how long nobody did, in ms.
  double Kill(const std::string& signal, const std::string& victim = {}) {
    const uint32_t before = Info().agent_restarts();
    int64_t answered = base::MonotonicNs();
    const int64_t deadline = answered + 60 * base::kNsPerSec;
    REQUIRE(output_->session().Write(signal + " " + victim + "\n"));
    while (Info().agent_restarts() == before) {
      answered = base::MonotonicNs();
      REQUIRE(answered < deadline);
      Pause(5);
    }
    return static_cast<double>(base::MonotonicNs() - answered) / static_cast<double>(base::kNsPerMs);
  }

 private:
  std::optional<Output> output_;
};

void MountData() {
  v1::MountDiskRequest mount;
  mount.set_mount_id("data");
  mount.mutable_disk()->mutable_scsi()->set_target(3);
  mount.mutable_disk()->mutable_scsi()->set_lun(9);
  mount.set_format_if_empty(true);
  const auto mounted = TestVm::Get().client().Call(mount);
  REQUIRE_MESSAGE(mounted, Why(mounted));
}

std::string AddDataDisk() {
  TestVm& vm = TestVm::Get();
  std::string path = vm.dir() / "data.img";
  const base::Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  REQUIRE(fd);
  REQUIRE(ftruncate(fd.get(), 16 << 20) == 0);
  REQUIRE(vm.vm().control().AddDisk({.path = path, .readonly = false, .lun = 9, .target = 3}));
  return path;
}

TEST_CASE("containers survive the agent's crash, with their streams, exits, mounts, events and requests") {
  TestVm& vm = TestVm::Get();
  AddDataDisk();
  MountData();
  v1::MountTmpfsRequest tmpfs;
  tmpfs.set_mount_id("inside");
  tmpfs.set_target("/run/gcs/mounts/data/deep/er");
  REQUIRE(vm.client().Call(tmpfs));
  Run("counter",
      {.args = {"sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; sleep 1000"}});
  Run("echo", {.args = {"cat"}});
  Run("terminal", {.args = {"sh", "-c", "while read l; do echo got $l; done"}, .terminal = true});
  Create("created", {.args = {"echo", "started by the second agent"}}, "create-once");
  Run("ended", {.args = {"sh", "-c", "echo last words; exit 7"}});
  CHECK(WaitFor("ended")->exit().exit_code() == 7);
  Run("victim", {.args = {"sleep", "4711"}});
  Run("paused", {.args = {"sleep", "1000"}});
  v1::PauseContainerRequest pause;
  pause.set_container_id("paused");
  REQUIRE(vm.client().Call(pause));
  v1::ExecRequest exec;
  exec.set_container_id("echo");
  exec.set_process_id("second");
  exec.set_process_json(R"({"args": ["sh", "-c", "read x; exit $x"], "cwd": "/"})");
  exec.mutable_stdio()->mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
  exec.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  REQUIRE(vm.client().Call(exec));
  Output counter("counter", {}, false, false);
  Output echo("echo", {}, true, false);
  Output terminal("terminal", {}, true, false);
  REQUIRE(echo.session().Write("before\n"));
  REQUIRE(echo.WaitFor("before\n"));
  const auto mounts = vm.client().Call(v1::ListMountsRequest());
  REQUIRE(mounts);
  {
    Killer killer;
    const uint32_t containers = Info().containers();
    killer.Kill("9", "sleep 4711");
    const v1::InfoResponse info = Info();
    CHECK(info.agent_restarts() == 1);
    CHECK(info.containers() == containers);

    // All that was there is as it was.
    REQUIRE(echo.session().Write("after\n"));
    CHECK(echo.WaitFor("before\nafter\n"));
    REQUIRE(terminal.session().Write("typed\r"));
    CHECK(terminal.WaitFor("got typed\r\n"));
    CHECK(WaitFor("ended")->exit().exit_code() == 7);
    const auto victim = WaitFor("victim");
    REQUIRE_MESSAGE(victim, Why(victim));
    CHECK(victim->exit().exit_code() == 137);
    CHECK(victim->exit().signal() == 9);
    const auto mounts_now = vm.client().Call(v1::ListMountsRequest());
    REQUIRE(mounts_now);
    CHECK(mounts_now->mounts_size() == mounts->mounts_size() + 1 + 1);  // the killer's overlay and scratch
    v1::ContainerStateRequest state;
    state.set_container_id("paused");
    const auto paused = vm.client().Call(state);
    REQUIRE(paused);
    CHECK(paused->container().status() == v1::CONTAINER_STATUS_PAUSED);
    v1::ResumeContainerRequest resume;
    resume.set_container_id("paused");
    CHECK(vm.client().Call(resume));

    // What the first agent began the second ends.
    Start("created");
    Output created("created", {}, false, false);
    created.Finish();
    CHECK(created.out() == "started by the second agent\n");
    Output second("echo", "second", true, false);
    REQUIRE(second.session().Write("42\n"));
    v1::WaitProcessRequest wait;
    wait.set_container_id("echo");
    wait.set_process_id("second");
    const auto exited = vm.client().Call(wait);
    REQUIRE_MESSAGE(exited, Why(exited));
    CHECK(exited->exit().exit_code() == 42);

    // A request that the first agent has answered, made again.
    v1::CreateContainerRequest again;
    again.set_request_id("create-once");
    again.set_container_id("created");
    again.set_config_json("{}");
    const auto repeated = vm.client().Call(again);
    REQUIRE_MESSAGE(repeated, Why(repeated));
    CHECK(repeated->pid() > 0);

    // Any signal that ends it, several times.
    for (const char* signal : {"SEGV", "ABRT", "9"}) killer.Kill(signal);
    CHECK(Info().agent_restarts() == 4);
  }
  // No number is missing and none comes twice.
  std::string numbers;
  for (int i = 0; i < 3000; ++i) numbers += std::to_string(i) + "\n";
  CHECK(counter.WaitFor("2999\n"));
  CHECK(counter.out() == numbers);

  // The journal goes on where it was, and tells all of each container.
  std::vector<v1::Event> events;
  uint64_t cursor = 0;
  const auto got = vm.client().WatchEvents(cursor, false, [&](const v1::Event& event) {
    events.push_back(event);
    return true;
  });
  REQUIRE_MESSAGE(got, Why(got));
  for (size_t i = 1; i < events.size(); ++i) CHECK(events[i].sequence() == events[i - 1].sequence() + 1);
  const auto count = [&](const std::string& id, auto&& is) {
    return std::ranges::count_if(events, [&](const v1::Event& e) { return e.container_id() == id && is(e); });
  };
  for (const char* id : {"counter", "echo", "created", "ended", "victim"}) {
    CAPTURE(id);
    CHECK(count(id, [](const v1::Event& e) { return e.has_created(); }) == 1);
    CHECK(count(id, [](const v1::Event& e) { return e.has_started(); }) == 1);
  }
  CHECK(std::ranges::count_if(events, [](const v1::Event& e) { return e.has_agent_started(); }) == 5);
  for (const char* id : {"created", "ended", "victim"}) {
    CHECK(count(id, [](const v1::Event& e) { return e.has_exited() && e.process_id().empty(); }) == 1);
  }

  for (const char* id : {"counter", "echo", "terminal", "created", "ended", "victim", "paused"}) Delete(id);
  CHECK(Info().containers() == 0);
  for (const char* id : {"inside", "data"}) {
    v1::UnmountRequest unmount;
    unmount.set_mount_id(id);
    const auto gone = vm.client().Call(unmount);
    CHECK_MESSAGE(gone, Why(gone));
  }
  const auto left = vm.client().Call(v1::ListMountsRequest());
  REQUIRE(left);
  CHECK(left->mounts_size() == static_cast<int>(vm.layers().size()));
  v1::RemoveDiskRequest remove;
  remove.mutable_disk()->mutable_scsi()->set_target(3);
  remove.mutable_disk()->mutable_scsi()->set_lun(9);
  const auto removed = vm.client().Call(remove);
  CHECK_MESSAGE(removed, Why(removed));
  REQUIRE(vm.vm().control().RemoveDisk(3, 9));
}

// What a client sees of the agent that is killed all the time: nothing but delay. Returns how many containers
// it has had.
int CreateAndDelete(const std::string& name, const std::atomic<bool>& stop, std::string& failure) {
  host::Client& client = TestVm::Get().client();
  constexpr host::CallOptions kPatient{.timeout_ms = 120'000};
  const auto must = [&](const std::string& what, const auto& result) {
    if (!result && failure.empty()) failure = what + ": " + result.error().ToString();
    return result.has_value();
  };
  int count = 0;
  for (; !stop && failure.empty(); ++count) {
    const std::string id = name + std::to_string(count);
    const auto root = TestVm::Get().storage().MountRoot(id, TestVm::Get().layers(), 0);
    if (!must("mount", root)) break;
    host::ContainerSettings settings;
    settings.root_path = root->path;
    settings.args = {"sh", "-c", "read line; echo $line; exit 3"};
    const auto config = host::MakeOciConfig({}, settings);
    if (!must("config", config)) break;
    v1::CreateContainerRequest create;
    create.set_container_id(id);
    create.set_config_json(*config);
    create.mutable_stdio()->mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
    create.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
    for (const std::string& mount : root->mount_ids) create.add_owned_mounts(mount);
    if (!must("create " + id, client.Call(create, kPatient))) break;
    v1::StartContainerRequest start;
    start.set_container_id(id);
    if (!must("start " + id, client.Call(start, kPatient))) break;
    v1::ExecRequest exec;
    exec.set_container_id(id);
    exec.set_process_id("exec");
    exec.set_process_json(R"({"args": ["sh", "-c", "exit 4"], "cwd": "/"})");
    if (!must("exec " + id, client.Call(exec, kPatient))) break;
    v1::WaitProcessRequest wait_exec;
    wait_exec.set_container_id(id);
    wait_exec.set_process_id("exec");
    const auto exec_exit = client.Call(wait_exec, kPatient);
    if (!must("wait for exec " + id, exec_exit)) break;
    std::string text;
    std::mutex mutex;
    host::AttachOptions attach{.container_id = id, .in = true, .err = false};
    attach.on_output = [&](v1::Stream, std::string_view data) {
      const std::lock_guard lock(mutex);
      text += data;
    };
    {
      auto session = host::AttachSession::Open(client, std::move(attach));
      if (!must("attach " + id, session)) break;
      (*session)->Write(id + "\n");
      (*session)->CloseStdin();
      if (!must("output of " + id, (*session)->WaitOutputs(120'000))) break;
    }
    v1::WaitContainerRequest wait;
    wait.set_container_id(id);
    const auto exit = client.Call(wait, kPatient);
    if (!must("wait for " + id, exit)) break;
    if (exit->exit().exit_code() != 3 || exec_exit->exit().exit_code() != 4 || text != id + "\n") {
      failure = id + " ended with " + std::to_string(exit->exit().exit_code()) + ", its exec with " +
                std::to_string(exec_exit->exit().exit_code()) + ", and said \"" + text + "\"";
    }
    v1::DeleteContainerRequest remove;
    remove.set_container_id(id);
    if (!must("delete " + id, client.Call(remove, kPatient))) break;
  }
  return count;
}

TEST_CASE("an agent that is killed again and again loses nothing and leaves nothing") {
  TestVm& vm = TestVm::Get();
  const int rounds = getenv("GCS_TEST_FULL") != nullptr ? 200 : 6;
  std::mt19937 random(std::random_device{}());
  Run("echo", {.args = {"cat"}});
  const auto mounts = vm.client().Call(v1::ListMountsRequest());
  REQUIRE(mounts);
  std::atomic<bool> stop = false;
  std::array<std::string, 2> failures;
  std::array<int, 2> counts{};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < counts.size(); ++i) {
    threads.emplace_back([&, i] { counts[i] = CreateAndDelete(i == 0 ? "a" : "b", stop, failures[i]); });
  }
  // A stream through a container that lives through all of it, each byte by its place.
  const auto byte_at = [](uint64_t at) { return static_cast<char>(at * 37 + (at >> 7)); };
  std::atomic<uint64_t> echoed = 0;
  std::atomic<bool> wrong = false;
  host::AttachOptions attach{.container_id = "echo", .in = true, .err = false};
  attach.on_output = [&](v1::Stream, std::string_view data) {
    for (const char c : data) wrong = wrong || c != byte_at(echoed++);
  };
  auto stream = host::AttachSession::Open(vm.client(), std::move(attach));
  REQUIRE(stream);
  uint64_t sent = 0;
  threads.emplace_back([&] {
    while (!stop) {
      std::string piece;
      for (int i = 0; i < 20'000; ++i) piece += byte_at(sent + static_cast<uint64_t>(i));
      if (!(*stream)->Write(piece)) return;
      sent += piece.size();
    }
  });
  std::vector<double> gaps;
  {
    Killer killer;
    for (int round = 0; round < rounds; ++round) {
      Pause(std::uniform_int_distribution<int>(0, 3000)(random));
      gaps.push_back(killer.Kill(round % 2 == 0 ? "9" : "SEGV"));
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) CHECK(failure == "");
  (*stream)->CloseStdin();
  CHECK((*stream)->WaitOutputs(120'000));
  CHECK(echoed == sent);
  CHECK_FALSE(wrong);
  CHECK((*stream)->lost_bytes() == 0);
  Delete("echo");
  CHECK(Info().containers() == 0);
  const auto left = vm.client().Call(v1::ListMountsRequest());
  REQUIRE(left);
  CHECK(left->mounts_size() == static_cast<int>(vm.layers().size()));
  std::ranges::sort(gaps);
  MESSAGE(gaps.size() << " rounds and recoveries; nobody answered for " << gaps[gaps.size() / 2]
                      << " ms (median), " << gaps.back() << " ms (most); " << counts[0] + counts[1]
                      << " containers and " << sent / 1000 << " kB came and went meanwhile");
}

// One line of what a new container of the pod prints.
std::string PodSays(const std::string& pod, const std::string& script) {
  Run("says", {.args = {"sh", "-c", script}, .pod_id = pod});
  Output output("says", {}, false, false);
  output.Finish();
  Delete("says");
  return output.out();
}

TEST_CASE("pods survive the agent's crash, with their namespaces, adapters and containers") {
  host::Client& client = TestVm::Get().client();
  v1::CreatePodRequest create;
  create.set_pod_id("kept");
  create.set_hostname("kept-host");
  create.set_share_pid(true);
  (*create.mutable_labels())["key"] = "value";
  REQUIRE(client.Call(create));
  create.set_pod_id("plain");
  create.set_share_pid(false);
  REQUIRE(client.Call(create));
  v1::ConfigureInterfaceRequest adapter;
  adapter.mutable_interface()->set_mac_address(TestVm::kMacs[0]);
  adapter.set_pod_id("kept");
  adapter.add_addresses()->set_cidr("10.9.0.1/24");
  REQUIRE(client.Call(adapter));
  Run("member", {.args = {"sh", "-c", "echo shared > /dev/shm/file; echo up; sleep 1000"}, .pod_id = "kept"});
  {
    Output up("member", {}, false, false);
    REQUIRE(up.WaitFor("up\n"));
  }
  {
    Killer killer;
    for (int crash = 0; crash < 2; ++crash) {
      killer.Kill("9");
      const auto pods = client.Call(v1::ListPodsRequest());
      REQUIRE_MESSAGE(pods, Why(pods));
      REQUIRE(pods->pods_size() == 2);
      CHECK(pods->pods(0).pod_id() == "kept");
      CHECK(pods->pods(0).share_pid());
      CHECK(pods->pods(0).labels().at("key") == "value");
      REQUIRE(pods->pods(0).container_ids_size() == 1);
      CHECK(pods->pods(0).container_ids(0) == "member");
      CHECK(pods->pods(1).pod_id() == "plain");
      CHECK(PodSays("kept",
                    "hostname; cat /dev/shm/file; cat /proc/[0-9]*/comm | grep -c sleep; "
                    "ip -4 addr show dev eth0 | grep -c 10.9.0.1/24; cat /proc/1/comm") ==
            "kept-host\nshared\n1\n1\npause\n");
      CHECK(PodSays("plain", "hostname; ls /dev/shm") == "kept-host\n");
    }
  }
  v1::DeletePodRequest remove;
  remove.set_pod_id("kept");
  CHECK(client.Call(remove).error().err == EBUSY);
  Delete("member");
  for (const char* pod : {"kept", "plain"}) {
    remove.set_pod_id(pod);
    const auto gone = client.Call(remove);
    CHECK_MESSAGE(gone, Why(gone));
  }
  CHECK(client.Call(v1::ListPodsRequest())->pods_size() == 0);
}

// Last: it ends the VM.
TEST_CASE("a file server that says nothing keeps no disk from a clean end") {
  TestVm& vm = TestVm::Get();
  const std::string disk = AddDataDisk();
  MountData();
  const std::string socket = vm.vm().control().ListenPath(4000);
  Diod diod(vm.dir().path(), socket, vm.dir() / "diod.log");
  v1::MountShareRequest share;
  share.set_mount_id("zzz");  // unmounted before the disk, being younger
  share.set_port(4000);
  share.set_share_name(vm.dir().path());
  const auto mounted = vm.client().Call(share);
  REQUIRE_MESSAGE(mounted, Why(mounted));
  diod.Signal(SIGSTOP);
  v1::ShutdownRequest shutdown;
  shutdown.set_mode(v1::ShutdownRequest::MODE_REBOOT);
  shutdown.set_grace_ms(100);
  REQUIRE(vm.client().Call(shutdown));
  const auto ended = vm.vm().Wait(60'000);
  REQUIRE_MESSAGE(ended, Why(ended) << vm.vm().ConsoleTail());
  // ext4's superblock (at 1024): s_state, and INCOMPAT_RECOVER while the journal holds something.
  const auto image = base::OpenFile(disk, O_RDONLY);
  REQUIRE(image);
  uint16_t state = 0;
  uint32_t incompat = 0;
  REQUIRE(pread(image->get(), &state, sizeof state, 1024 + 0x3a) == sizeof state);
  REQUIRE(pread(image->get(), &incompat, sizeof incompat, 1024 + 0x60) == sizeof incompat);
  CHECK((state & 1) == 1);
  CHECK((incompat & 4) == 0);
}

}  // namespace
}  // namespace gcs::test
