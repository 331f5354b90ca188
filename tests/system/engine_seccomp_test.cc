// SPDX-License-Identifier: Apache-2.0
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <set>
#include <thread>

#include "system/engine_support.h"

namespace gcs::test {
namespace {

using base::Json;

// A seccomp agent: accepts one connection, keeps what it is sent.
class Supervisor {
 public:
  explicit Supervisor(const std::string& path) : listener_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path.c_str(), path.size() + 1);
    REQUIRE(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(listener_.get(), 1) == 0);
  }
  // After this the filter's descriptor and the state are here.
  void Receive() {
    const base::Fd connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    REQUIRE(connection.valid());
    char text[65536];
    iovec iov{text, sizeof text};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(connection.get(), &message, MSG_CMSG_CLOEXEC);
    REQUIRE(n > 0);
    state = Json::parse(std::string(text, n));
    REQUIRE(message.msg_controllen >= CMSG_LEN(sizeof(int)));
    int fd = -1;
    memcpy(&fd, CMSG_DATA(reinterpret_cast<cmsghdr*>(control)), sizeof fd);
    notify.Reset(fd);
  }
  // Answers every system call with success, until nobody with the filter is left.
  void AnswerAll() {
    for (;;) {
      pollfd poll_fd{notify.get(), POLLIN, 0};
      REQUIRE(poll(&poll_fd, 1, 20'000) == 1);
      if ((poll_fd.revents & POLLIN) == 0) return;
      seccomp_notif request{};
      // ENOENT: it was killed meanwhile.
      if (ioctl(notify.get(), SECCOMP_IOCTL_NOTIF_RECV, &request) != 0) continue;
      seen.insert(request.data.nr);
      seccomp_notif_resp response{.id = request.id, .val = 0, .error = 0, .flags = 0};
      ioctl(notify.get(), SECCOMP_IOCTL_NOTIF_SEND, &response);
    }
  }

  std::set<int> seen;
  Json state;
  base::Fd notify;

 private:
  base::Fd listener_;
};

Json NotifyConfig(const TempDir& dir, const std::vector<std::string>& calls, const std::string& script) {
  Json config = DefaultConfig(EngineMachine::Get().root(), {"sh", "-c", script});
  config["linux"]["seccomp"] = {{"defaultAction", "SCMP_ACT_ALLOW"},
                                {"listenerPath", dir / "agent"},
                                {"listenerMetadata", "meta"},
                                {"syscalls", {{{"names", calls}, {"action", "SCMP_ACT_NOTIFY"}}}}};
  return config;
}

TEST_CASE("escape 24: a seccomp listener decides over system calls, with or without no_new_privs") {
  for (const bool no_new_privileges : {true, false}) {
    CAPTURE(no_new_privileges);
    const TempDir dir;
    Supervisor supervisor(dir / "agent");
    // Even calls that the engine itself needs on the way may be asked about: nothing of ours comes after the
    // load.
    const std::vector<std::string> calls =
        no_new_privileges ? std::vector<std::string>{"uname", "sendmsg", "close_range", "getppid"}
                          : std::vector<std::string>{"uname"};
    Json config = NotifyConfig(dir, calls, "hostname; ls /proc/self/fd | wc -l");
    config["process"]["noNewPrivileges"] = no_new_privileges;
    RunningContainer running;
    std::thread agent([&] {
      supervisor.Receive();
      supervisor.AnswerAll();
    });
    const auto created = running.Create(config, NextId());
    REQUIRE_MESSAGE(created, created.error().ToString());
    const auto started = running.Start();
    REQUIRE_MESSAGE(started, started.error().ToString());
    const int pid = running.container->init.pid();
    const std::string id = running.container->id;
    const Outcome outcome = running.Finish();
    agent.join();
    CHECK(outcome.status == 0);
    // Neither listener nor anything else is open in there.
    CHECK(outcome.out.ends_with("\n4\n"));
    CHECK(supervisor.seen.contains(SYS_uname));
    CHECK(supervisor.seen.contains(SYS_getppid) == no_new_privileges);
    CHECK(supervisor.state["metadata"] == "meta");
    CHECK(supervisor.state["fds"] == Json{"seccompFd"});
    CHECK(supervisor.state["pid"] == pid);
    CHECK(supervisor.state["state"]["id"] == id);
    CHECK(supervisor.state["state"]["status"] == "creating");
  }
}

TEST_CASE("a listener that nobody takes is an error of create or start, and leaves nothing") {
  const TempDir dir;
  Json config = NotifyConfig(dir, {"uname"}, "true");
  config["process"]["noNewPrivileges"] = false;
  const base::Error error = FailCreate(config);
  CHECK(error.step == "hand over seccomp listener");
  CHECK(error.err == ENOENT);
  CHECK(error.object == dir / "agent");
  config["process"]["noNewPrivileges"] = true;
  RunningContainer running;
  REQUIRE(running.Create(config, NextId()));
  const auto started = running.Start();
  REQUIRE_FALSE(started);
  CHECK(started.error().step == "hand over seccomp listener");
}

}  // namespace
}  // namespace gcs::test
