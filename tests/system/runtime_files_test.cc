// SPDX-License-Identifier: Apache-2.0
// Nothing external at run time: under strace the agent serves every kind of call that it has here, containers
// included, and opens no shared object, no locale, and none of the files that libc's name services read.
// Debian's static gRPC has code that would (getaddrinfo, getservbyname); it must never be executed.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "gcs/v1/containers.grpc.pb.h"
#include "gcs/v1/events.grpc.pb.h"
#include "gcs/v1/guest.grpc.pb.h"
#include "gcs/v1/processes.grpc.pb.h"
#include "gcs/v1/stdio.grpc.pb.h"
#include "gcs/v1/storage.grpc.pb.h"
#include "support/temp.h"

namespace gcs::test {
namespace {

namespace fs = std::filesystem;

// gcs under strace, in a mount namespace whose /sys/fs/cgroup is cgroup2 alone.
class TracedAgent {
 public:
  explicit TracedAgent(const std::string& dir) : socket_(dir + "/api"), trace_(dir + "/trace") {
    const std::string state = "--state-dir=" + dir + "/state";
    const std::string listen = "--listen-unix=" + socket_;
    const std::string dial = "--dial-unix=" + dir + "/host";
    const char* argv[] = {"strace",
                          "-f",
                          "-qq",
                          "-s",
                          "256",
                          "-e",
                          "trace=open,openat,openat2,execve,execveat,connect,pivot_root,setns",
                          "-o",
                          trace_.c_str(),
                          GCS_PROGRAM,
                          "--port=0",
                          listen.c_str(),
                          dial.c_str(),
                          state.c_str(),
                          nullptr};
    pid_ = fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);  // strace passes its end on
      if (unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
        _exit(99);
      while (umount2("/sys/fs/cgroup", MNT_DETACH) == 0) continue;
      if (mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, nullptr) != 0) _exit(98);
      execvp(argv[0], const_cast<char**>(argv));
      _exit(97);
    }
    for (int i = 0; i < 1000 && !Connect(); ++i) usleep(10'000);
  }
  ~TracedAgent() {
    if (pid_ > 0) End();
  }
  TracedAgent(const TracedAgent&) = delete;
  TracedAgent& operator=(const TracedAgent&) = delete;

  [[nodiscard]] base::Fd Connect() const {
    base::Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, socket_.c_str(), sizeof address.sun_path - 1);
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
    return fd;
  }

  [[nodiscard]] std::shared_ptr<grpc::Channel> Channel() const {
    base::Fd fd = Connect();
    REQUIRE(fd.valid());
    fcntl(fd.get(), F_SETFL, O_NONBLOCK);
    return grpc::CreateInsecureChannelFromFd("agent", fd.Release());
  }

  // Its trace.
  std::vector<std::string> End() {
    // SIGTERM to strace goes to nobody else: the agent is its child.
    std::ifstream children("/proc/" + std::to_string(pid_) + "/task/" + std::to_string(pid_) + "/children");
    pid_t agent = 0;
    if (children >> agent) kill(agent, SIGTERM);
    waitpid(std::exchange(pid_, -1), nullptr, 0);
    std::vector<std::string> lines;
    std::ifstream in(trace_);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }

 private:
  const std::string socket_, trace_;
  pid_t pid_ = -1;
};

std::string MakeRoot(const std::string& path) {
  for (const char* sub : {"bin", "etc", "proc", "dev", "tmp", "sys"})
    fs::create_directories(path + "/" + sub);
  fs::copy_file("/bin/busybox", path + "/bin/busybox");
  for (const char* name : {"sh", "cat", "true", "sleep"})
    fs::create_symlink("busybox", path + "/bin/" + name);
  std::ofstream(path + "/etc/passwd") << "root:x:0:0:root:/root:/bin/sh\n";
  return path;
}

std::string Config(const std::string& root, const std::string& script) {
  return R"({"ociVersion": "1.0.2",
    "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
                "args": ["sh", "-c", ")" +
         script + R"("]},
    "root": {"path": ")" +
         root + R"("}, "hostname": "traced",
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
               {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
    "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]}})";
}

// One call of each kind. Those whose end depends on the machine are not asked how they ended.
void CallEverything(const TracedAgent& agent, const std::string& root) {
  const auto channel = agent.Channel();
  const auto containers = v1::ContainerService::NewStub(channel);
  const auto processes = v1::ProcessService::NewStub(channel);
  const auto guest = v1::GuestService::NewStub(channel);
  const auto storage = v1::StorageService::NewStub(channel);
  const auto call = [](auto& stub, auto method, const auto& request, auto response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const grpc::Status status = (stub.*method)(&context, request, &response);
    CHECK_MESSAGE(status.ok(), status.error_message());
    return response;
  };
  using Containers = v1::ContainerService::Stub;
  call(*guest, &v1::GuestService::Stub::Info, v1::InfoRequest(), v1::InfoResponse());

  v1::MountTmpfsRequest tmpfs;
  tmpfs.set_mount_id("volume");
  call(*storage, &v1::StorageService::Stub::MountTmpfs, tmpfs, v1::MountTmpfsResponse());
  call(*storage, &v1::StorageService::Stub::ListDisks, v1::ListDisksRequest(), v1::ListDisksResponse());

  v1::CreateContainerRequest create;
  create.set_container_id("traced");
  create.set_config_json(Config(root, "cat; exit 7"));
  create.mutable_stdio()->mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
  create.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  call(*containers, &Containers::Create, create, v1::CreateContainerResponse());
  v1::StartContainerRequest start;
  start.set_container_id("traced");
  call(*containers, &Containers::Start, start, v1::StartContainerResponse());
  v1::ExecRequest exec;
  exec.set_container_id("traced");
  exec.set_process_id("second");
  exec.set_process_json(R"({"args": ["true"]})");
  call(*processes, &v1::ProcessService::Stub::Exec, exec, v1::ExecResponse());
  v1::ListProcessesRequest list;
  list.set_container_id("traced");
  call(*processes, &v1::ProcessService::Stub::List, list, v1::ListProcessesResponse());
  call(*containers, &Containers::Stats, v1::ContainerStatsRequest(), v1::ContainerStatsResponse());
  call(*containers, &Containers::List, v1::ListContainersRequest(), v1::ListContainersResponse());
  {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const auto stream = v1::StdioService::NewStub(channel)->Attach(&context);
    v1::AttachRequest message;
    message.mutable_open()->set_container_id("traced");
    message.mutable_open()->set_stdin(true);
    message.mutable_open()->add_outputs()->set_stream(v1::STREAM_STDOUT);
    CHECK(stream->Write(message));
    message.mutable_stdin()->set_data("through the agent");
    message.mutable_stdin()->set_close(true);
    CHECK(stream->Write(message));
    std::string out;
    v1::AttachResponse answer;
    while (stream->Read(&answer)) out += answer.output().data();
    CHECK(stream->Finish().ok());
    CHECK(out == "through the agent");
  }
  v1::WaitContainerRequest wait;
  wait.set_container_id("traced");
  CHECK(call(*containers, &Containers::Wait, wait, v1::WaitContainerResponse()).exit().exit_code() == 7);
  {
    grpc::ClientContext context;
    v1::CopyOutRequest copy;
    copy.set_container_id("traced");
    copy.set_path("/etc");
    const auto stream = guest->CopyOut(&context, copy);
    v1::CopyOutResponse piece;
    while (stream->Read(&piece)) continue;
    stream->Finish();  // fails on a kernel without AF_ALG
  }
  v1::DeleteContainerRequest remove;
  remove.set_container_id("traced");
  call(*containers, &Containers::Delete, remove, v1::DeleteContainerResponse());
  v1::UnmountRequest unmount;
  unmount.set_mount_id("volume");
  call(*storage, &v1::StorageService::Stub::Unmount, unmount, v1::UnmountResponse());
  {
    grpc::ClientContext context;
    v1::WatchEventsRequest watch;
    watch.set_no_follow(true);
    const auto stream = v1::EventService::NewStub(channel)->Watch(&context, watch);
    v1::Event event;
    int events = 0;
    while (stream->Read(&event)) ++events;
    CHECK(events >= 5);
    CHECK(stream->Finish().ok());
  }
}

TEST_CASE("the agent opens no shared object, no locale and no file of libc's name services") {
  const TempDir dir;
  const std::string root = MakeRoot(dir / "root");
  TracedAgent agent(dir.path());
  CallEverything(agent, root);
  const std::vector<std::string> trace = agent.End();

  const std::regex line("^(\\d+) +(\\w+)\\((.*)$");
  const std::regex wrong(
      "\"[^\"]*(\\.so(\\.[0-9.]+)?|ld\\.so\\.cache|/gconv[^\"]*|/locale[^\"]*|"
      "/etc/(nsswitch|resolv|host|gai)\\.conf|/etc/hosts|/etc/passwd|/etc/group|/etc/services|/nscd/"
      "socket)\"");
  // Processes that have become a container's: by a root or a mount namespace of its own, then by a program.
  std::set<std::string> inside, programs;
  size_t opens = 0;
  size_t executed = 0;
  for (const std::string& text : trace) {
    // Of a call that other lines have interrupted the end is on a line of its own.
    if (text.find("<... execve") != std::string::npos && text.ends_with(" = 0")) {
      programs.insert(text.substr(0, text.find(' ')));
    }
    std::smatch match;
    if (!std::regex_match(text, match, line)) continue;
    const std::string pid = match[1];
    const std::string call = match[2];
    const std::string rest = match[3];
    if (call == "pivot_root" || (call == "setns" && rest.find("CLONE_NEWNS") != std::string::npos)) {
      inside.insert(pid);
    }
    if (call.starts_with("execve") && rest.ends_with(" = 0") && executed++ > 0) programs.insert(pid);
    if (inside.contains(pid) || programs.contains(pid)) continue;
    if (!call.starts_with("open") && call != "connect") continue;
    ++opens;
    if (rest.find("RESOLVE_IN_ROOT") != std::string::npos) continue;  // inside a container's root
    CHECK_MESSAGE(!std::regex_search(rest, wrong), text);
  }
  // It did see the agent at work, and the programs of the container.
  CHECK(opens > 50);
  CHECK(programs.size() >= 2);
}

}  // namespace
}  // namespace gcs::test
