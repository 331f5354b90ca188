// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "base/fd.h"
#include "base/init_control.h"

using gcs::base::CallInit;
using gcs::base::Fd;
using gcs::base::InitMessage;
using gcs::base::InitOp;
using gcs::base::kInitReply;

namespace {

struct Line {
  Fd agent;
  Fd init;
};

Line MakeLine() {
  int fds[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

}  // namespace

TEST_CASE("a request of the agent gets its reply") {
  const Line line = MakeLine();
  std::thread init([&] {
    InitMessage message;
    if (recv(line.init.get(), &message, sizeof message, 0) != sizeof message) return;
    message.op |= kInitReply;
    message.arg = 3;
    message.arg2 = 9;
    send(line.init.get(), &message, sizeof message, 0);
  });
  const auto reply = CallInit(line.agent.get(), InitOp::kHello);
  init.join();
  REQUIRE(reply);
  CHECK(reply->arg == 3);
  CHECK(reply->arg2 == 9);
}

TEST_CASE("the late reply of a call that has given up is not taken for that of the next") {
  const Line line = MakeLine();
  const uint32_t op = static_cast<uint32_t>(InitOp::kHello);
  CHECK(CallInit(line.agent.get(), {.op = op, .id = 1}, {}, 20).error().err == ETIMEDOUT);
  for (const uint32_t id : {1U, 2U}) {
    const InitMessage reply{.op = op | kInitReply, .id = id, .arg = id};
    REQUIRE(send(line.init.get(), &reply, sizeof reply, 0) == sizeof reply);
  }
  const auto reply = CallInit(line.agent.get(), {.op = op, .id = 2}, {}, 20);
  REQUIRE(reply);
  CHECK(reply->message.arg == 2);
}

TEST_CASE("an init that reads nothing is an error too") {
  const Line line = MakeLine();
  while (send(line.agent.get(), "x", 1, MSG_DONTWAIT) == 1) continue;
  CHECK(CallInit(line.agent.get(), InitOp::kHello, 0, 20).error().err == ETIMEDOUT);
}

TEST_CASE("an init that is silent, gone or talks nonsense is an error, not a hang") {
  const Line line = MakeLine();
  CHECK(CallInit(line.agent.get(), InitOp::kHello, 0, 20).error().err == ETIMEDOUT);

  const InitMessage request{.op = static_cast<uint32_t>(InitOp::kHello)};  // no reply bit
  send(line.init.get(), &request, sizeof request, 0);
  CHECK(CallInit(line.agent.get(), InitOp::kHello, 0, 20).error().err == EPROTO);

  send(line.init.get(), "short", 5, 0);
  CHECK(CallInit(line.agent.get(), InitOp::kHello, 0, 20).error().err == EPROTO);

  const InitMessage refused{.op = static_cast<uint32_t>(InitOp::kHello) | kInitReply, .status = EPERM};
  send(line.init.get(), &refused, sizeof refused, 0);
  CHECK(CallInit(line.agent.get(), InitOp::kHello, 0, 20).error().err == EPERM);

  Line closed = MakeLine();
  closed.init.Reset();
  CHECK(CallInit(closed.agent.get(), InitOp::kHello, 0, 20).error().err == EPIPE);
  CHECK(CallInit(-1, InitOp::kHello, 0, 20).error().err == EBADF);
}
