// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

#include <csignal>
#include <thread>

#include "unit/stdio_support.h"

namespace gcs::stdio::test {
namespace {

struct Pty {
  base::Fd master, slave;
};

Pty OpenPty(bool raw) {
  int master = -1;
  int slave = -1;
  REQUIRE(openpty(&master, &slave, nullptr, nullptr, nullptr) == 0);
  if (raw) {
    termios settings{};
    REQUIRE(tcgetattr(slave, &settings) == 0);
    cfmakeraw(&settings);
    REQUIRE(tcsetattr(slave, TCSANOW, &settings) == 0);
  }
  return {base::Fd(master), base::Fd(slave)};
}

std::unique_ptr<ProcessIo> Terminal(LoopThread& loop, Mode mode = Mode::kStream) {
  Config config;
  config.name = "c/p";
  config.terminal = true;
  config.in.mode = config.out.mode = mode;
  config.width = 80;
  config.height = 25;
  auto made = ProcessIo::Create(loop.get(), std::move(config));
  REQUIRE(made);
  CHECK(!made->child.in.valid());
  CHECK(!made->child.out.valid());
  return std::move(made->io);
}

// One read of the process: a line, or "" at the end of input.
std::string ReadLine(const Pty& pty) {
  char line[64];
  // No mutex is held here; the analyzer takes the client's wait for one.
  const ssize_t n =
      read(pty.slave.get(), line, sizeof line);  // NOLINT(clang-analyzer-unix.BlockInCriticalSection)
  REQUIRE(n >= 0);
  return {line, static_cast<size_t>(n)};
}

TEST_CASE("a terminal echoes, edits lines and passes the client's EOF character on") {
  LoopThread loop;
  auto io = Terminal(loop);
  Client client(*io, {.in = true});
  CHECK(client.session->terminal());
  // Input that comes before the terminal waits for it.
  CHECK(client.Write(0, "hallo\x7f\x7flo\n", false) == 10);
  auto pty = OpenPty(false);
  REQUIRE(io->AttachTerminal(std::move(pty.master)));
  CHECK(io->AttachTerminal(base::Fd(dup(pty.slave.get()))).error().err == EALREADY);
  CHECK(ReadLine(pty) == "hallo\n");
  CHECK(client.Drain(Stream::kStdout, 5).data == "hallo");
  // `close` means nothing on a terminal; ^D does.
  CHECK(client.Write(10, "x\n", true) == 12);
  CHECK(ReadLine(pty) == "x\n");
  CHECK(client.Write(12, "\x04", false) == 13);
  CHECK(ReadLine(pty).empty());
}

TEST_CASE("a terminal's window size is set at the start and by resize") {
  LoopThread loop;
  auto io = Terminal(loop);
  CHECK(io->Resize(0, 10).error().err == EINVAL);
  CHECK(io->Resize(10, 65536).error().err == EINVAL);
  SUBCASE("the first size") {}
  SUBCASE("a resize before the terminal is there") { REQUIRE(io->Resize(100, 30)); }
  auto pty = OpenPty(false);
  REQUIRE(io->AttachTerminal(std::move(pty.master)));
  winsize size{};
  REQUIRE(ioctl(pty.slave.get(), TIOCGWINSZ, &size) == 0);
  CHECK((size.ws_col == 80 || size.ws_col == 100));
  CHECK((size.ws_row == 25 || size.ws_row == 30));
  REQUIRE(io->Resize(120, 40));
  REQUIRE(ioctl(pty.slave.get(), TIOCGWINSZ, &size) == 0);
  CHECK(size.ws_col == 120);
  CHECK(size.ws_row == 40);
  auto [pipes, child] = Streams(loop);
  CHECK(pipes->Resize(80, 25).error().err == ENOTTY);
  CHECK(pipes->AttachTerminal({}).error().err == EINVAL);
}

TEST_CASE("a terminal's hang-up ends its output after the last byte") {
  LoopThread loop;
  auto io = Terminal(loop);
  auto pty = OpenPty(true);
  REQUIRE(io->AttachTerminal(std::move(pty.master)));
  Client client(*io, {});
  std::thread process([&] {
    CHECK(WritePattern(pty.slave.get(), 300'000));
    pty.slave.Reset();
  });
  const auto got = client.Drain(Stream::kStdout);
  process.join();
  CHECK(got.end);
  CHECK(got.data == Pattern(0, 300'000));
}

TEST_CASE("a terminal's output before the exit is delivered, though a grandchild keeps the terminal open") {
  LoopThread loop;
  for (int round = 0; round < 20; ++round) {
    auto io = Terminal(loop);
    auto pty = OpenPty(true);
    REQUIRE(io->AttachTerminal(std::move(pty.master)));
    Client client(*io, {});
    const size_t size = 4000 + 137 * round;
    REQUIRE(WritePattern(pty.slave.get(), size));
    Signal drained;
    io->ProcessExited([&] { drained.Set(); });
    const auto got = client.Drain(Stream::kStdout);
    CHECK(drained.Wait(1s));
    CHECK(got.end);
    CHECK(got.data == Pattern(0, size));
    // The grandchild writes on into nowhere.
    CHECK(WritePattern(pty.slave.get(), 100'000));
  }
}

TEST_CASE("sizes around a terminal's limits go through a raw terminal both ways") {
  LoopThread loop;
  for (const size_t size : {4095, 4096, 4097, 8192, 65537, 1 << 20}) {
    CAPTURE(size);
    auto io = Terminal(loop);
    auto pty = OpenPty(true);
    REQUIRE(io->AttachTerminal(std::move(pty.master)));
    Client client(*io, {.in = true});
    std::thread process([&] {
      const std::string all = ReadAll(pty.slave.get(), size);
      CHECK(WriteAll(pty.slave.get(), all));
      pty.slave.Reset();
    });
    CHECK(client.Write(0, Pattern(0, size), false) == size);
    const auto got = client.Drain(Stream::kStdout);
    process.join();
    CHECK(got.end);
    CHECK(got.data == Pattern(0, size));
  }
}

TEST_CASE("a terminal is relayed to sockets with back-pressure") {
  LoopThread loop;
  auto [in_ours, in_peer] = SocketPair();
  auto [out_ours, out_peer] = SocketPair();
  Config config;
  config.name = "c/p";
  config.terminal = true;
  config.in = {.mode = Mode::kSocket, .socket = std::move(in_ours)};
  config.out = {.mode = Mode::kSocket, .socket = std::move(out_ours)};
  auto made = ProcessIo::Create(loop.get(), std::move(config));
  REQUIRE(made);
  const size_t size = 500'000;
  auto pty = OpenPty(true);
  std::thread feeder([&] { CHECK(WritePattern(in_peer.get(), size)); });
  REQUIRE(made->io->AttachTerminal(std::move(pty.master)));
  std::thread process([&] {
    const std::string all = ReadAll(pty.slave.get(), size);
    CHECK(WriteAll(pty.slave.get(), all));
    pty.slave.Reset();
  });
  CHECK(CheckPattern(out_peer.get()) == size);
  feeder.join();
  process.join();
}

TEST_CASE("a terminal whose output nobody wants does not block the process") {
  LoopThread loop;
  auto io = Terminal(loop, Mode::kNull);
  auto pty = OpenPty(true);
  REQUIRE(io->AttachTerminal(std::move(pty.master)));
  CHECK(WritePattern(pty.slave.get(), 1 << 20));
  CHECK(io->Attach({.outputs = {{Stream::kStdout, 0}}}).error().err == EINVAL);
}

TEST_CASE("a process that never got its terminal ends at its exit, for sockets too") {
  LoopThread loop;
  auto io = Terminal(loop);
  Client client(*io, {.in = true});
  Signal drained;
  io->ProcessExited([&] { drained.Set(); });
  CHECK(client.Drain(Stream::kStdout).end);
  CHECK(drained.Wait(1s));
  CHECK(client.session->Stdin().closed);

  auto [ours, peer] = SocketPair();
  Config config;
  config.terminal = true;
  config.out = {.mode = Mode::kSocket, .socket = std::move(ours)};
  auto made = ProcessIo::Create(loop.get(), std::move(config));
  REQUIRE(made);
  made->io->ProcessExited([&] { drained.Set(); });
  CHECK(drained.Wait(1s));
  CHECK(ReadAll(peer.get()).empty());
}

}  // namespace
}  // namespace gcs::stdio::test
