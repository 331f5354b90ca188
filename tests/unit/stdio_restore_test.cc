// SPDX-License-Identifier: Apache-2.0
// Streams that outlive the agent: a copy of this process serves them until it is killed, then this one goes
// on with the parts that it has kept, as init does for the agent.
#include <fcntl.h>
#include <pty.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <random>

#include "unit/stdio_support.h"

namespace gcs::stdio::test {
namespace {

using Parts = std::map<Part, base::Fd>;

Config StreamConfigOf(Mode mode) {
  Config config;
  config.name = "c/p";
  config.in.mode = mode;
  config.out.mode = mode;
  return config;
}

// Copies, as the descriptor store has them.
Parts Keep(const ProcessIo& io) {
  auto parts = io.Parts();
  REQUIRE(parts);
  Parts kept;
  for (auto& [part, fd] : *parts) kept[part] = std::move(fd);
  return kept;
}

Parts Copy(const Parts& parts) {
  Parts copies;
  for (const auto& [part, fd] : parts) copies[part] = base::Fd(fcntl(fd.get(), F_DUPFD_CLOEXEC, 3));
  return copies;
}

Config CopyOf(const Config& config) {
  Config copy = StreamConfigOf(config.out.mode);
  copy.in.mode = config.in.mode;
  copy.terminal = config.terminal;
  copy.ring_bytes = config.ring_bytes;
  return copy;
}

// An agent that is killed in the middle: restores the streams and pumps them until `life_us` has passed.
void LiveAndDie(const Parts& parts, const Config& config, unsigned life_us,
                const std::function<void(ProcessIo&)>& act) {
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    LoopThread loop;
    auto io = ProcessIo::Restore(loop.get(), CopyOf(config), Copy(parts));
    if (!io) _exit(1);
    act(**io);
    for (;;) pause();
  }
  usleep(life_us);
  kill(pid, SIGKILL);
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  REQUIRE(WIFSIGNALED(status));
}

unsigned Life(std::mt19937& random) { return std::uniform_int_distribution<unsigned>(0, 4000)(random); }

TEST_CASE("no byte of a process's output is lost or comes twice when its agents are killed") {
  constexpr uint64_t kTotal = 24 << 20;
  std::mt19937 random(std::random_device{}());
  Parts kept;
  ChildFds child;
  const Config config = StreamConfigOf(Mode::kStream);
  {
    LoopThread loop;
    auto made = ProcessIo::Create(loop.get(), CopyOf(config));
    REQUIRE(made);
    kept = Keep(*made->io);
    child = std::move(made->child);
  }
  std::thread writer([&] {
    for (uint64_t at = 0; at < kTotal;) {
      const uint64_t size = std::min<uint64_t>(kTotal - at, 1 + at % 50'000);
      if (!WriteAll(child.out.get(), Pattern(at, size))) return;
      at += size;
    }
    child.out.Reset();
  });
  uint64_t position = 0;
  int lives = 0;
  for (bool end = false; !end;) {
    LiveAndDie(kept, config, Life(random), [](ProcessIo&) {});
    ++lives;
    // A client of the next agent, which is still there at the end of it: reads on from where it was.
    LoopThread loop;
    auto io = ProcessIo::Restore(loop.get(), CopyOf(config), Copy(kept));
    REQUIRE(io);
    Client client(**io, {.offset = position});
    const auto got = client.Drain(Stream::kStdout, 1 + position % 200'000);
    REQUIRE(got.gap == 0);
    REQUIRE(got.data == Pattern(position, got.data.size()));
    position += got.data.size();
    end = got.end;
  }
  writer.join();
  CHECK(position == kTotal);
  CHECK(lives > 20);
}

TEST_CASE("no byte of a process's input is lost or comes twice when its agents are killed") {
  constexpr uint64_t kTotal = 4 << 20;
  std::mt19937 random(std::random_device{}());
  Parts kept;
  ChildFds child;
  const Config config = StreamConfigOf(Mode::kStream);
  {
    LoopThread loop;
    auto made = ProcessIo::Create(loop.get(), CopyOf(config));
    REQUIRE(made);
    kept = Keep(*made->io);
    child = std::move(made->child);
  }
  std::string got;
  std::thread reader([&] {
    char buffer[30'000];
    for (ssize_t n = 0; (n = read(child.in.get(), buffer, 1 + got.size() % sizeof buffer)) > 0;)
      got.append(buffer, static_cast<size_t>(n));
  });
  int lives = 0;
  for (bool closed = false; !closed; ++lives) {
    LiveAndDie(kept, config, Life(random), [&](ProcessIo& io) {
      auto session = io.Attach({.want_stdin = true});
      if (!session) _exit(1);
      // A client that resumes where the agent says and knows nothing of what the one before had sent.
      for (uint64_t at = (*session)->Stdin().accepted; at < kTotal;) {
        const auto received =
            (*session)->WriteStdin(at, Pattern(at, std::min<uint64_t>(kTotal - at, 70'000)), false);
        if (!received) _exit(1);
        if (*received == at) usleep(100);
        at = *received;
      }
      for (;;) pause();
    });
    LoopThread loop;
    auto io = ProcessIo::Restore(loop.get(), CopyOf(config), Copy(kept));
    REQUIRE(io);
    auto session = (*io)->Attach({.want_stdin = true});
    REQUIRE(session);
    if ((*session)->Stdin().received < kTotal) continue;
    REQUIRE((*session)->WriteStdin(kTotal, "", true));
    REQUIRE(WaitUntil([&] { return (*session)->Stdin().accepted == kTotal; }));
    loop.Sync();
    kept[Part::kIn].Reset();  // what Config::closed is told
    closed = true;
  }
  reader.join();
  CHECK(got.size() == kTotal);
  CHECK(got == Pattern(0, kTotal));
  CHECK(lives > 2);
}

TEST_CASE("a half-close that a client has asked for is done by the next agent") {
  Parts kept;
  ChildFds child;
  const Config config = StreamConfigOf(Mode::kStream);
  const std::string input = Pattern(0, 200'000);  // more than a pipe takes
  {
    LoopThread loop;
    auto made = ProcessIo::Create(loop.get(), CopyOf(config));
    REQUIRE(made);
    kept = Keep(*made->io);
    child = std::move(made->child);
    auto session = made->io->Attach({.want_stdin = true});
    REQUIRE(session);
    REQUIRE((*session)->WriteStdin(0, input, true) == input.size());
  }
  std::atomic<bool> closed = false;
  LoopThread loop;
  Config next = CopyOf(config);
  next.closed = [&](Part part) { closed = closed || part == Part::kIn; };
  auto io = ProcessIo::Restore(loop.get(), std::move(next), std::move(kept));
  REQUIRE(io);
  std::string got;
  char buffer[10'000];
  for (ssize_t n = 0; (n = read(child.in.get(), buffer, sizeof buffer)) > 0;)
    got.append(buffer, static_cast<size_t>(n));
  CHECK(got == input);
  CHECK(closed);
  CHECK((*io)->Stdin().accepted == input.size());
}

TEST_CASE("an ended output stays ended for the next agent, with what was not acknowledged") {
  Parts kept;
  ChildFds child;
  const Config config = StreamConfigOf(Mode::kStream);
  {
    LoopThread loop;
    auto made = ProcessIo::Create(loop.get(), CopyOf(config));
    REQUIRE(made);
    kept = Keep(*made->io);
    child = std::move(made->child);
    REQUIRE(WriteAll(child.out.get(), "last words"));
    Signal drained;
    made->io->ProcessExited([&] { drained.Set(); });
    REQUIRE(drained.Wait());
  }
  REQUIRE(WriteAll(child.out.get(), "of a descendant"));
  LoopThread loop;
  auto io = ProcessIo::Restore(loop.get(), CopyOf(config), std::move(kept));
  REQUIRE(io);
  Client client(**io, {.offset = 0});
  const auto got = client.Drain(Stream::kStdout);
  CHECK(got.end);
  CHECK(got.data == "last words");
}

TEST_CASE("a terminal goes on with the next agent") {
  int master = -1;
  int slave = -1;
  REQUIRE(openpty(&master, &slave, nullptr, nullptr, nullptr) == 0);
  const base::Fd theirs(slave);
  Parts kept;
  Config config = StreamConfigOf(Mode::kStream);
  config.terminal = true;
  {
    LoopThread loop;
    auto made = ProcessIo::Create(loop.get(), CopyOf(config));
    REQUIRE(made);
    REQUIRE(made->io->AttachTerminal(base::Fd(master)));
    kept = Keep(*made->io);
    REQUIRE(kept.contains(Part::kMaster));
    REQUIRE(WriteAll(theirs.get(), "before\n"));
    REQUIRE(WaitUntil([&] { return made->io->Output(Stream::kStdout).end == 8; }));
  }
  REQUIRE(WriteAll(theirs.get(), "between\n"));
  LoopThread loop;
  auto io = ProcessIo::Restore(loop.get(), CopyOf(config), std::move(kept));
  REQUIRE(io);
  REQUIRE(WriteAll(theirs.get(), "after\n"));
  Client client(**io, {.in = true, .offset = 0});
  CHECK(client.Drain(Stream::kStdout, 24).data == "before\r\nbetween\r\nafter\r\n");
  CHECK((*io)->Resize(80, 25));
  client.Write(0, "typed\n", false);
  char line[16];
  const ssize_t n = read(theirs.get(), line, sizeof line);
  CHECK(std::string(line, static_cast<size_t>(std::max<ssize_t>(n, 0))) == "typed\n");
}

TEST_CASE("a relay goes on over the same sockets") {
  constexpr uint64_t kTotal = 8 << 20;
  std::mt19937 random(std::random_device{}());
  auto [out_ours, out_host] = SocketPair();
  auto [in_ours, in_host] = SocketPair();
  Parts kept;
  ChildFds child;
  const Config config = StreamConfigOf(Mode::kSocket);
  {
    LoopThread loop;
    Config first = CopyOf(config);
    first.out.socket = std::move(out_ours);
    first.in.socket = std::move(in_ours);
    auto made = ProcessIo::Create(loop.get(), std::move(first));
    REQUIRE(made);
    kept = Keep(*made->io);
    child = std::move(made->child);
  }
  // The process echoes.
  std::thread process([&] {
    std::string buffer(20'000, '\0');
    for (ssize_t n = 0; (n = read(child.in.get(), buffer.data(), buffer.size())) > 0;)
      if (!WriteAll(child.out.get(), buffer.substr(0, static_cast<size_t>(n)))) return;
  });
  std::thread sender([&, fd = in_host.get()] {
    for (uint64_t at = 0; at < kTotal; at += 64 << 10)
      if (!WriteAll(fd, Pattern(at, 64 << 10))) return;
  });
  std::string got;
  std::thread receiver([&, fd = out_host.get()] {
    std::string buffer(20'000, '\0');
    while (got.size() < kTotal) {
      const ssize_t n = read(fd, buffer.data(), buffer.size());
      if (n <= 0) return;
      got.append(buffer.data(), static_cast<size_t>(n));
    }
  });
  for (int life = 0; life < 50; ++life) LiveAndDie(kept, config, Life(random), [](ProcessIo&) {});
  LoopThread loop;
  auto io = ProcessIo::Restore(loop.get(), CopyOf(config), std::move(kept));
  REQUIRE(io);
  receiver.join();
  sender.join();
  CHECK(got.size() == kTotal);
  CHECK(got == Pattern(0, kTotal));
  io->reset();
  loop.Sync();
  process.join();
}

TEST_CASE("parts that do not make a process's streams are refused") {
  LoopThread loop;
  CHECK(ProcessIo::Restore(loop.get(), StreamConfigOf(Mode::kStream), {}).error().err == EINVAL);
}

}  // namespace
}  // namespace gcs::stdio::test
