// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel_posix.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/init_control.h"

namespace gcs::test {

// The real gcs program, run with a unix socket and no vsock. Without a line to init it can neither power off
// nor reboot; with `with_init` this test is its init.
class Agent {
 public:
  struct Setup {
    std::vector<std::string> arguments;
    bool with_init = false;
    std::string dial_prefix;  // default: below the agent's directory
  };

  Agent() : Agent(Setup()) {}
  explicit Agent(const Setup& setup) {
    char pattern[] = "/tmp/gcs-rpc-test-XXXXXX";
    if (mkdtemp(pattern) == nullptr) throw std::runtime_error("mkdtemp");
    directory_ = pattern;
    // The agent dies with a test that crashes.
    std::vector<std::string> arguments = {
        kSetpriv,
        "--pdeathsig",
        "KILL",
        GCS_PROGRAM,
        "--port=0",
        "--listen-unix=" + socket_path(),
        "--dial-unix=" + (setup.dial_prefix.empty() ? directory_ + "/host" : setup.dial_prefix),
        "--state-dir=" + directory_ + "/state",
        "--log-level=debug",
        "--no-containers"};
    arguments.insert(arguments.end(), setup.arguments.begin(), setup.arguments.end());
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    std::vector<char*> environment;
    std::string init_variable = std::string(base::kInitFdVariable) + "=3";
    base::Fd init_theirs;
    if (setup.with_init) {
      int pair[2];
      if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        throw std::runtime_error("socketpair");
      init_.Reset(pair[0]);
      init_theirs.Reset(pair[1]);
      environment.push_back(init_variable.data());
    }
    environment.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const std::string log = log_path();
    posix_spawn_file_actions_addopen(&actions, 2, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (init_theirs) posix_spawn_file_actions_adddup2(&actions, init_theirs.get(), 3);
    if (setup.with_init) init_thread_ = std::thread([this] { PlayInit(); });
    if (posix_spawn(&pid_, kSetpriv, &actions, nullptr, argv.data(), environment.data()) != 0) {
      throw std::runtime_error("cannot start " GCS_PROGRAM);
    }
    posix_spawn_file_actions_destroy(&actions);
    for (int i = 0; i < 1000 && !Connect(); ++i) usleep(10'000);
  }

  ~Agent() {
    if (pid_ > 0) Stop(SIGKILL);
    if (init_thread_.joinable()) {
      shutdown(init_.get(), SHUT_RDWR);
      init_thread_.join();
    }
    std::filesystem::remove_all(directory_);
  }
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  // The wait status.
  int Stop(int signal) {
    kill(pid_, signal);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const std::string& directory() const { return directory_; }
  [[nodiscard]] std::string socket_path() const { return directory_ + "/api"; }
  [[nodiscard]] std::string log_path() const { return directory_ + "/log"; }
  [[nodiscard]] std::string Log() const {
    std::ifstream in(log_path());
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
  }
  // Requests for power off and reboot that this init has accepted.
  [[nodiscard]] int ends() const { return ends_; }

  [[nodiscard]] size_t Descriptors() const { return Count("fd"); }
  [[nodiscard]] size_t Threads() const { return Count("task"); }
  // Resident anonymous memory in KiB.
  [[nodiscard]] size_t AnonKib() const {
    std::ifstream in("/proc/" + std::to_string(pid_) + "/status");
    for (std::string line; std::getline(in, line);) {
      if (line.starts_with("RssAnon:")) return std::stoul(line.substr(8));
    }
    return 0;
  }

  // A connected stream socket; none if nobody listens yet.
  [[nodiscard]] base::Fd Connect() const {
    base::Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, socket_path().c_str(), sizeof address.sun_path - 1);
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
    return fd;
  }

  [[nodiscard]] std::shared_ptr<grpc::Channel> Channel() const {
    base::Fd fd = Connect();
    if (!fd) throw std::runtime_error("cannot connect to the agent: " + Log());
    fcntl(fd.get(), F_SETFL, O_NONBLOCK);
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(64 << 20);
    return grpc::CreateCustomInsecureChannelFromFd("agent", fd.Release(), arguments);
  }

 private:
  static constexpr const char* kSetpriv = "/usr/bin/setpriv";

  size_t Count(const char* what) const {
    const std::filesystem::directory_iterator entries("/proc/" + std::to_string(pid_) + "/" + what);
    return static_cast<size_t>(std::distance(begin(entries), end(entries)));
  }

  void PlayInit() {
    base::InitMessage message;
    while (recv(init_.get(), &message, sizeof message, 0) == sizeof message) {
      if (message.op != static_cast<uint32_t>(base::InitOp::kHello)) ++ends_;
      message.op |= base::kInitReply;
      message.arg = 4;  // starts: three restarts
      if (send(init_.get(), &message, sizeof message, MSG_NOSIGNAL) < 0) return;
    }
  }

  std::string directory_;
  pid_t pid_ = -1;
  base::Fd init_;
  std::thread init_thread_;
  std::atomic<int> ends_ = 0;
};

}  // namespace gcs::test
