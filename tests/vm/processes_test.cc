// SPDX-License-Identifier: Apache-2.0
// What containers, and clients that go away, do to the agent's picture of containers and processes.
#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "gcs/v1/containers.grpc.pb.h"
#include "vm/diod.h"
#include "vm/vm_support.h"

namespace gcs::test {
namespace {

void Pause(int64_t ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

void StartExec(const std::string& container, const std::string& process,
               const std::vector<std::string>& args) {
  v1::ExecRequest exec;
  exec.set_container_id(container);
  exec.set_process_id(process);
  exec.set_process_json(nlohmann::json({{"args", args}}).dump());
  exec.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  const auto started = TestVm::Get().client().Call(exec);
  REQUIRE_MESSAGE(started, Why(started));
}

v1::ExitStatus WaitExec(const std::string& container, const std::string& process) {
  v1::WaitProcessRequest wait;
  wait.set_container_id(container);
  wait.set_process_id(process);
  const auto ended = TestVm::Get().client().Call(wait, {.timeout_ms = 30'000});
  REQUIRE_MESSAGE(ended, Why(ended));
  return ended->exit();
}

std::string RunExec(const std::string& container, const std::string& process,
                    const std::vector<std::string>& args, v1::ExitStatus* exit = nullptr) {
  StartExec(container, process, args);
  Output output(container, process, false, false);
  const v1::ExitStatus ended = WaitExec(container, process);
  if (exit != nullptr) *exit = ended;
  output.Finish();
  return output.out();
}

void SignalExec(const std::string& container, const std::string& process, int signal) {
  v1::SignalProcessRequest request;
  request.set_container_id(container);
  request.set_process_id(process);
  request.set_signal(signal);
  const auto sent = TestVm::Get().client().Call(request);
  REQUIRE_MESSAGE(sent, Why(sent));
}

TEST_CASE("a Create that fails owns nothing afterwards") {
  TestVm& vm = TestVm::Get();
  const auto root = vm.storage().MountRoot("owner", vm.layers(), 0);
  REQUIRE_MESSAGE(root, Why(root));
  host::ContainerSettings settings;
  settings.root_path = root->path;
  settings.args = {"true"};
  const auto config = host::MakeOciConfig({}, settings);
  REQUIRE_MESSAGE(config, Why(config));
  v1::CreateContainerRequest create;
  create.set_container_id("owner");
  create.set_config_json(*config);
  for (const std::string& mount : root->mount_ids) create.add_owned_mounts(mount);
  create.add_owned_mounts("no-such-mount");
  const auto created = vm.client().Call(create);
  REQUIRE_FALSE(created);
  CHECK(created.error().err == ENOENT);
  CHECK(created.error().object == "no-such-mount");
  for (auto id = root->mount_ids.rbegin(); id != root->mount_ids.rend(); ++id) {
    v1::UnmountRequest unmount;
    unmount.set_mount_id(*id);
    const auto gone = vm.client().Call(unmount);
    CHECK_MESSAGE(gone, Why(gone));
  }
}

TEST_CASE("a program of no known format fails Start with its errno and ends with 126") {
  TestContainer container(TestContainer::Make({"/srv/garbage"}));
  REQUIRE_MESSAGE(container.created(), Why(container.created()));
  const auto started = container.TryStart();
  REQUIRE_FALSE(started);
  CHECK(started.error().err == ENOEXEC);
  CHECK(started.error().code == 9);  // FAILED_PRECONDITION
  const v1::ExitStatus exit = container.Wait();
  CHECK(exit.exit_code() == 126);
  CHECK(exit.signal() == 0);
}

TEST_CASE("a start is told before its end, however quick the program is") {
  host::Client& client = TestVm::Get().client();
  uint64_t cursor = 0;
  REQUIRE(client.WatchEvents(cursor, false, [](const v1::Event&) { return true; }));
  for (int i = 0; i < 10; ++i) {
    TestContainer container(TestContainer::Make({"true"}));
    container.Start();
    container.Wait();
    v1::ContainerStateRequest ask;
    ask.set_container_id(container.id());
    const auto state = client.Call(ask);
    REQUIRE(state);
    CHECK(state->container().status() == v1::CONTAINER_STATUS_STOPPED);
    CHECK(state->container().has_exit());
    REQUIRE(container.Delete());
    std::vector<v1::Event::EventCase> seen;
    REQUIRE(client.WatchEvents(cursor, true, [&](const v1::Event& event) {
      if (event.container_id() == container.id()) seen.push_back(event.event_case());
      return event.event_case() != v1::Event::kDeleted;
    }));
    CHECK(seen ==
          std::vector{v1::Event::kCreated, v1::Event::kStarted, v1::Event::kExited, v1::Event::kDeleted});
  }
}

TEST_CASE("the exit record of a process tells of the OOM kills of its own time only") {
  auto options = TestContainer::Make({"sleep", "1000"});
  options.settings.memory_bytes = 32 << 20;
  TestContainer container(std::move(options));
  container.Start();
  v1::ExitStatus exit;
  RunExec(container.id(), "eats", {"/opt/probe", "eat", "200"}, &exit);
  CHECK(exit.signal() == SIGKILL);
  CHECK(exit.oom_killed());
  RunExec(container.id(), "later", {"true"}, &exit);
  CHECK(exit.exit_code() == 0);
  CHECK_FALSE(exit.oom_killed());
}

TEST_CASE("a process that its tracer holds after its end costs the agent nothing, and ends when it lets go") {
  auto options = TestContainer::Make({"sleep", "1000"});
  // The agent's own use of the processor is seen from the VM's pid namespace.
  options.edit = [](std::string& config) {
    auto json = nlohmann::json::parse(config);
    auto& namespaces = json["linux"]["namespaces"];
    for (size_t i = 0; i < namespaces.size(); ++i) {
      if (namespaces[i]["type"] == "pid") namespaces.erase(i--);
    }
    config = json.dump();
  };
  TestContainer container(std::move(options));
  container.Start();
  StartExec(container.id(), "traced", {"sh", "-c", "echo $$; exec sleep 1000"});
  Output pid(container.id(), "traced", false, false);
  REQUIRE(pid.WaitFor("\n"));
  StartExec(container.id(), "tracer", {"/opt/probe", "trace", pid.out().substr(0, pid.out().find('\n'))});
  Output tracer(container.id(), "tracer", false, false);
  REQUIRE(tracer.WaitFor("\n"));
  REQUIRE(tracer.out() == "traced OK\n");
  const auto ticks = [&](const std::string& name) {
    const std::string out = RunExec(container.id(), name,
                                    {"sh", "-c",
                                     "for p in /proc/[0-9]*; do read c < $p/comm && [ \"$c\" = gcs ] && "
                                     "sed 's/.*) //' $p/stat | cut -d' ' -f12-13; done 2>/dev/null"});
    CAPTURE(out);
    const size_t space = out.find(' ');
    REQUIRE(space != std::string::npos);
    return std::stol(out) + std::stol(out.substr(space));
  };
  SignalExec(container.id(), "traced", SIGKILL);
  const long before = ticks("before");
  Pause(3000);
  CHECK(ticks("after") - before < 150);  // of 300; the two looks cost some
  SignalExec(container.id(), "tracer", SIGKILL);
  CHECK(WaitExec(container.id(), "traced").signal() == SIGKILL);
}

TEST_CASE("a signal to all reaches every process of the container") {
  TestContainer container(TestContainer::Make(
      {"sh", "-c",
       "trap '' USR1; for i in 1 2 3 4 5 6 7 8; do (trap - USR1; exec sleep 1000) & done; "
       "sleep 1; echo up; wait; echo alone; exec sleep 1000"}));
  Output output(container.id());
  container.Start();
  REQUIRE(output.WaitFor("up\n"));
  const auto sent = container.Signal(SIGTERM, true);
  // The shell is PID 1, which takes no signal without a handler.
  REQUIRE_MESSAGE(sent, Why(sent));
  CHECK(output.WaitFor("alone\n"));
}

TEST_CASE("the list of processes shows no more than 4 KiB of a command line") {
  TestContainer container(TestContainer::Make(
      {"sh", "-c", "sh -c 'sleep 1000; true' x \"$0\" & echo up; wait", std::string(100'000, 'x')}));
  Output output(container.id());
  container.Start();
  REQUIRE(output.WaitFor("up\n"));
  Pause(300);
  v1::ListProcessesRequest list;
  list.set_container_id(container.id());
  const auto processes = TestVm::Get().client().Call(list);
  REQUIRE_MESSAGE(processes, Why(processes));
  CHECK(processes->processes_size() >= 2);
  size_t longest = 0;
  for (const v1::Process& process : processes->processes())
    longest = std::max(longest, process.command().size());
  CHECK(longest == 4096);
}

TEST_CASE("a process without a terminal has no size: FAILED_PRECONDITION") {
  TestContainer container(TestContainer::Make({"sleep", "1000"}));
  container.Start();
  v1::ResizeRequest resize;
  resize.set_container_id(container.id());
  resize.set_width(80);
  resize.set_height(24);
  const auto resized = TestVm::Get().client().Call(resize);
  REQUIRE_FALSE(resized);
  CHECK(resized.error().err == ENOTTY);
  CHECK(resized.error().code == 9);
}

TEST_CASE("acts that wait for one that hangs end at their own deadlines, and others have threads to run on") {
  TestVm& vm = TestVm::Get();
  const std::string directory = vm.dir() / "slow";
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/program") << "#!/bin/sh\nexit 3\n";
  std::filesystem::permissions(directory + "/program", std::filesystem::perms::owner_all);
  constexpr uint32_t kPort = 4011;
  const Diod diod(directory, vm.vm().control().ListenPath(kPort), vm.dir() / "diod.log");
  v1::MountShareRequest share;
  share.set_mount_id("slow");
  share.set_port(kPort);
  share.set_share_name(directory);
  const auto mounted = vm.client().Call(share);
  REQUIRE_MESSAGE(mounted, Why(mounted));
  {
    auto options = TestContainer::Make({"/mnt/program"});
    options.settings.mounts = {{mounted->path(), "/mnt", true}};
    TestContainer container(std::move(options));
    REQUIRE_MESSAGE(container.created(), Why(container.created()));
    // The file server says nothing when the program is to be read.
    diod.Signal(SIGSTOP);
    host::CallResult<v1::StartContainerResponse> started;
    std::vector<std::thread> calls;
    calls.emplace_back([&] { started = container.TryStart(); });
    Pause(500);
    const int64_t begin = base::MonotonicNs();
    for (int i = 0; i < 20; ++i) {
      calls.emplace_back([&] {
        v1::PauseContainerRequest pause;
        pause.set_container_id(container.id());
        CHECK_FALSE(vm.client().Call(pause, {.timeout_ms = 1'000}));
      });
    }
    Pause(500);
    CHECK(RunToEnd(TestContainer::Make({"true"})).exit.exit_code() == 0);
    CHECK(base::MonotonicNs() - begin < 10 * base::kNsPerSec);
    diod.Signal(SIGCONT);
    for (std::thread& call : calls) call.join();
    CHECK_MESSAGE(started, Why(started));
    CHECK(container.Wait().exit_code() == 3);
  }
  v1::UnmountRequest unmount;
  unmount.set_mount_id("slow");
  const auto gone = vm.client().Call(unmount);
  CHECK_MESSAGE(gone, Why(gone));
}

TEST_CASE("a client without a request id that goes away during Create leaves no container") {
  TestVm& vm = TestVm::Get();
  const auto root = vm.storage().MountRoot("gone", vm.layers(), 0);
  REQUIRE_MESSAGE(root, Why(root));
  host::ContainerSettings settings;
  settings.root_path = root->path;
  settings.args = {"true"};
  const auto config = host::MakeOciConfig({}, settings);
  REQUIRE_MESSAGE(config, Why(config));
  // A port with no room for another connection: the agent waits for it.
  constexpr uint32_t kPort = 4010;
  const base::Fd full(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = vm.vm().control().ListenPath(kPort);
  REQUIRE(path.size() < sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  REQUIRE(bind(full.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(full.get(), 0) == 0);
  std::vector<base::Fd> held;
  for (;;) {
    held.emplace_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (connect(held.back().get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) break;
  }
  uint64_t cursor = 0;
  REQUIRE(vm.client().ReadLogs(cursor, false, [](const v1::LogRecord&) { return true; }));

  auto connection = vm.vm().Connect(1024);
  REQUIRE_MESSAGE(connection, Why(connection));
  REQUIRE(fcntl(connection->get(), F_SETFL, O_NONBLOCK) == 0);
  const auto channel = grpc::CreateInsecureChannelFromFd("vm", connection->Release());
  v1::CreateContainerRequest create;
  create.set_container_id("gone");
  create.set_config_json(*config);
  create.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_VSOCK);
  create.mutable_stdio()->mutable_stdout()->set_port(kPort);
  grpc::ClientContext context;
  std::thread leave([&] {
    Pause(500);
    context.TryCancel();
  });
  v1::CreateContainerResponse response;
  const grpc::Status status = v1::ContainerService::NewStub(channel)->Create(&context, create, &response);
  leave.join();
  CHECK(status.error_code() == grpc::StatusCode::CANCELLED);

  std::string line;
  REQUIRE(vm.client().ReadLogs(cursor, true, [&](const v1::LogRecord& record) {
    const auto json = nlohmann::json::parse(record.json(), nullptr, false);
    if (json.value("method", "") != "ContainerService.Create" || json.value("object", "") != "gone")
      return true;
    line = record.json();
    return false;
  }));
  CHECK_MESSAGE(nlohmann::json::parse(line).value("status", "") == "CANCELLED", line);
  v1::ContainerStateRequest ask;
  ask.set_container_id("gone");
  const auto state = vm.client().Call(ask);
  REQUIRE_FALSE(state);
  CHECK(state.error().err == ENOENT);
  for (auto id = root->mount_ids.rbegin(); id != root->mount_ids.rend(); ++id) {
    v1::UnmountRequest unmount;
    unmount.set_mount_id(*id);
    const auto gone = vm.client().Call(unmount);
    CHECK_MESSAGE(gone, Why(gone));
  }
}

}  // namespace
}  // namespace gcs::test
