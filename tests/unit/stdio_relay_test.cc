// SPDX-License-Identifier: Apache-2.0
#include <netinet/in.h>
#include <sys/ioctl.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "unit/stdio_support.h"

namespace gcs::stdio::test {
namespace {

struct Relay {
  std::unique_ptr<ProcessIo> io;
  ChildFds child;
  base::Fd in, out, err;  // the peer's ends
};

base::FdPair TcpPair() {
  base::Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(listener.valid());
  sockaddr_in address{
      .sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
  socklen_t length = sizeof address;
  REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
  REQUIRE(listen(listener.get(), 1) == 0);
  REQUIRE(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
  base::Fd ours(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(ours.valid());
  REQUIRE(connect(ours.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
  return {std::move(ours), base::Fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC))};
}

// Closing this end then sends a reset.
void CloseWithReset(base::Fd& socket) {
  const linger now{.l_onoff = 1, .l_linger = 0};
  REQUIRE(setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
  socket.Reset();
}

Relay MakeRelay(LoopThread& loop, base::FdPair (*pair)() = SocketPair, int64_t drain_ns = 2'000'000'000,
                int64_t linger_ns = 5'000'000'000) {
  Relay relay;
  Config config;
  config.name = "c/p";
  for (auto [stream, peer] : {std::pair{&config.in, &relay.in}, std::pair{&config.out, &relay.out}}) {
    auto [ours, theirs] = pair();
    stream->mode = Mode::kSocket;
    stream->socket = std::move(ours);
    *peer = std::move(theirs);
  }
  config.drain_limit_ns = drain_ns;
  config.linger_ns = linger_ns;
  auto made = ProcessIo::Create(loop.get(), std::move(config));
  REQUIRE(made);
  relay.io = std::move(made->io);
  relay.child = std::move(made->child);
  return relay;
}

bool PeerClosed(int fd, std::chrono::milliseconds limit) {
  pollfd state{.fd = fd, .events = 0, .revents = 0};
  return poll(&state, 1, static_cast<int>(limit.count())) == 1 && (state.revents & (POLLHUP | POLLERR)) != 0;
}

TEST_CASE("256 MiB go through the relays both ways unchanged") {
  LoopThread loop;
  const uint64_t total = uint64_t{256} << 20;
  auto relay = MakeRelay(loop);
  std::thread feeder([&] {
    CHECK(WritePattern(relay.in.get(), total));
    relay.in.Reset();
  });
  std::thread process([&] {
    // What `cat` does.
    std::vector<char> buffer(1 << 17);
    for (;;) {
      const ssize_t n = read(relay.child.in.get(), buffer.data(), buffer.size());
      if (n <= 0) break;
      CHECK(WriteAll(relay.child.out.get(), {buffer.data(), static_cast<size_t>(n)}));
    }
    relay.child = {};
  });
  CHECK(CheckPattern(relay.out.get()) == total);
  feeder.join();
  process.join();
  CHECK(relay.io->Output(Stream::kStdout).end == total);
}

TEST_CASE("relayed sizes around pipe and socket limits arrive whole, over unix and TCP sockets") {
  LoopThread loop;
  for (auto* pair : {&SocketPair, &TcpPair}) {
    for (const size_t size : {0, 1, 65535, 65536, 65537, 1 << 20}) {
      CAPTURE(size);
      auto relay = MakeRelay(loop, pair);
      std::thread feeder([&] {
        CHECK(WriteAll(relay.in.get(), Pattern(0, size)));
        shutdown(relay.in.get(), SHUT_WR);
      });
      std::thread process([&] {
        const std::string all = ReadAll(relay.child.in.get());
        CHECK(WriteAll(relay.child.out.get(), all));
        relay.child = {};
      });
      CHECK(ReadAll(relay.out.get()) == Pattern(0, size));
      feeder.join();
      process.join();
    }
  }
}

TEST_CASE("a slow reader of a relayed output holds the process back without loss") {
  LoopThread loop;
  auto relay = MakeRelay(loop);
  std::atomic<uint64_t> written = 0;
  const uint64_t total = 8 << 20;
  std::thread writer([&] {
    for (uint64_t at = 0; at < total; at += 65536) {
      CHECK(WriteAll(relay.child.out.get(), Pattern(at, 65536)));
      written += 65536;
    }
    relay.child = {};
  });
  uint64_t before = 0;
  REQUIRE(WaitUntil([&] {
    std::this_thread::sleep_for(50ms);
    return std::exchange(before, written.load()) == written && written > 0;
  }));
  CHECK(written < total);
  uint64_t at = 0;
  for (;; std::this_thread::sleep_for(1ms)) {
    const std::string piece = ReadAll(relay.out.get(), 40'000);
    CHECK(piece == Pattern(at, piece.size()));
    at += piece.size();
    if (piece.size() < 40'000) break;
  }
  writer.join();
  CHECK(at == total);
}

TEST_CASE("the end of a relayed output is a half-close, and the socket is closed after the peer's end") {
  LoopThread loop;
  auto relay = MakeRelay(loop);
  loop.Sync();
  const size_t fds = OpenFds();
  REQUIRE(WriteAll(relay.child.out.get(), "bye"));
  relay.child.out.Reset();
  CHECK(ReadAll(relay.out.get()) == "bye");
  REQUIRE(WaitUntil([&] { return OpenFds() == fds - 2; }));  // the pipe's ends; the socket waits for us
  std::this_thread::sleep_for(20ms);
  CHECK(OpenFds() == fds - 2);
  shutdown(relay.out.get(), SHUT_WR);
  CHECK(WaitUntil([&] { return OpenFds() == fds - 3; }));
}

TEST_CASE("a finished socket whose peer stays is closed after the linger time") {
  LoopThread loop;
  auto relay = MakeRelay(loop, SocketPair, 2'000'000'000, 50'000'000);
  loop.Sync();
  const size_t fds = OpenFds();
  relay.child = {};
  // Two sockets and four pipe ends; the peer's two ends stay.
  CHECK(WaitUntil([&] { return OpenFds() == fds - 7; }, 2s));
}

TEST_CASE("a process that closes its stdin stops the relay's peer") {
  LoopThread loop;
  auto relay = MakeRelay(loop);
  relay.child.in.Reset();
  loop.Sync();
  CHECK(WaitUntil([&] { return send(relay.in.get(), "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE; }));
  CHECK(relay.io->Stdin().closed);
}

TEST_CASE(
    "a process that closes its stdin under a full relay stops the peer, and its exit closes the socket") {
  LoopThread loop;
  auto relay = MakeRelay(loop, SocketPair, 2'000'000'000, 50'000'000);
  fcntl(relay.in.get(), F_SETFL, O_NONBLOCK);
  const std::string block = Pattern(0, 65536);
  // The pipe (enlarged when found full) and the socket fill up.
  REQUIRE(WaitUntil([&] {
    bool moved = false;
    while (write(relay.in.get(), block.data(), block.size()) > 0) moved = true;
    std::this_thread::sleep_for(20ms);
    return !moved;
  }));
  SUBCASE("closed by the process") { relay.child.in.Reset(); }
  SUBCASE("exit while a grandchild keeps it") { relay.io->ProcessExited({}); }
  CHECK(WaitUntil([&] { return send(relay.in.get(), "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE; }));
  CHECK(WaitUntil([&] { return relay.io->Stdin().closed; }));
  pollfd state{.fd = relay.in.get(), .events = 0, .revents = 0};
  CHECK(WaitUntil([&] { return poll(&state, 1, 0) == 1 && (state.revents & POLLHUP) != 0; }));
}

TEST_CASE("a peer that resets a relayed output in the middle neither kills nor blocks the process") {
  LoopThread loop;
  auto relay = MakeRelay(loop, TcpPair);
  REQUIRE(WriteAll(relay.child.out.get(), Pattern(0, 1000)));
  CHECK(ReadAll(relay.out.get(), 1000) == Pattern(0, 1000));
  CloseWithReset(relay.out);
  CHECK(WritePattern(relay.child.out.get(), 4 << 20));
  CHECK(WaitUntil([&] { return relay.io->Output(Stream::kStdout).lost; }));
  relay.child = {};
  Signal drained;
  relay.io->ProcessExited([&] { drained.Set(); });
  CHECK(drained.Wait(1s));
}

TEST_CASE("a peer that resets a relayed input ends the process's input") {
  LoopThread loop;
  auto relay = MakeRelay(loop, TcpPair);
  REQUIRE(WriteAll(relay.in.get(), "some"));
  CHECK(ReadAll(relay.child.in.get(), 4) == "some");
  CloseWithReset(relay.in);
  CHECK(ReadAll(relay.child.in.get()).empty());
}

TEST_CASE("the exit waits for a relayed output's last byte, though a grandchild keeps the pipe") {
  LoopThread loop;
  auto relay = MakeRelay(loop);
  base::Fd grandchild(dup(relay.child.out.get()));
  const uint64_t total = 600'000;
  std::thread reader;
  std::atomic<bool> drained = false;
  uint64_t got = 0;
  std::thread peer([&] {
    std::this_thread::sleep_for(30ms);
    got = CheckPattern(relay.out.get());
  });
  REQUIRE(WritePattern(relay.child.out.get(), total));
  relay.child = {};
  relay.io->ProcessExited([&] { drained = true; });
  CHECK(WaitUntil([&] { return drained.load(); }));
  peer.join();
  CHECK(got == total);
  CHECK(WritePattern(grandchild.get(), 1 << 20));
}

TEST_CASE(
    "the exit is told after the drain limit when the peer doesn't read, and the bytes still arrive later") {
  LoopThread loop;
  auto relay = MakeRelay(loop, SocketPair, 100'000'000);
  // Fill the socket, then the pipe.
  fcntl(relay.child.out.get(), F_SETFL, O_NONBLOCK);
  uint64_t total = 0;
  REQUIRE(WaitUntil([&] {
    for (;;) {
      const std::string piece = Pattern(total, 4096);
      const ssize_t n = write(relay.child.out.get(), piece.data(), piece.size());
      if (n < 0) break;
      total += static_cast<uint64_t>(n);
    }
    std::this_thread::sleep_for(20ms);
    int queued = 0;
    ioctl(relay.child.out.get(), FIONREAD, &queued);
    return queued >= 60'000;
  }));
  relay.child = {};
  Signal drained;
  const auto begin = std::chrono::steady_clock::now();
  relay.io->ProcessExited([&] { drained.Set(); });
  REQUIRE(drained.Wait(5s));
  CHECK(std::chrono::steady_clock::now() - begin >= 100ms);
  CHECK(CheckPattern(relay.out.get()) == total);
}

TEST_CASE("destroying a relay in the middle closes the peer's sockets") {
  LoopThread loop;
  auto relay = MakeRelay(loop);
  REQUIRE(WriteAll(relay.child.out.get(), "x"));
  relay.io.reset();
  loop.Sync();
  CHECK(PeerClosed(relay.in.get(), 1s));
  CHECK(ReadAll(relay.out.get()).size() <= 1);
  CHECK(ReadAll(relay.child.in.get()).empty());
}

}  // namespace
}  // namespace gcs::stdio::test
