// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "unit/stdio_support.h"

namespace gcs::stdio::test {
namespace {

using std::string;

TEST_CASE("a null stream is the real /dev/null and others are pipes, blocking and close-on-exec") {
  LoopThread loop;
  Config config;
  config.name = "c/p";
  config.out.mode = Mode::kStream;
  config.owner_uid = geteuid();
  auto made = ProcessIo::Create(loop.get(), std::move(config));
  REQUIRE(made);
  struct stat info{};
  REQUIRE(fstat(made->child.in.get(), &info) == 0);
  CHECK(S_ISCHR(info.st_mode));
  CHECK(info.st_rdev == makedev(1, 3));
  REQUIRE(fstat(made->child.out.get(), &info) == 0);
  CHECK(S_ISFIFO(info.st_mode));
  CHECK((fcntl(made->child.out.get(), F_GETFL) & O_NONBLOCK) == 0);
  CHECK((fcntl(made->child.out.get(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("bad stream configurations are refused with the reason") {
  LoopThread loop;
  Config no_socket;
  no_socket.name = "c/p";
  no_socket.out.mode = Mode::kSocket;
  auto made = ProcessIo::Create(loop.get(), std::move(no_socket));
  REQUIRE(!made);
  CHECK(made.error().err == EINVAL);
  CHECK(made.error().object == "c/p");
  for (const uint64_t ring : {kMinRingBytes - 1, kMaxRingBytes + 1}) {
    Config config;
    config.ring_bytes = ring;
    CHECK(ProcessIo::Create(loop.get(), std::move(config)).error().err == EINVAL);
  }
  Config terminal;
  terminal.terminal = true;
  terminal.err.mode = Mode::kStream;
  CHECK(ProcessIo::Create(loop.get(), std::move(terminal)).error().err == EINVAL);
}

TEST_CASE("output of every size around the pipe's limits arrives whole and ends") {
  LoopThread loop;
  for (const size_t size : {0, 1, 4095, 4096, 65535, 65536, 65537, 262143, 262144, 262145, 1 << 20}) {
    CAPTURE(size);
    auto [io, child] = Streams(loop);
    std::thread writer([&] {
      WriteAll(child.out.get(), Pattern(0, size));
      child.out.Reset();
    });
    Client client(*io, {});
    const auto got = client.Drain(Stream::kStdout);
    writer.join();
    CHECK(got.end);
    CHECK(got.gap == 0);
    CHECK(got.data == Pattern(0, size));
  }
}

TEST_CASE("slow alternating output on both streams is seen at once, not at the end") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  Client client(*io, {.err = true});
  for (int i = 0; i < 10; ++i) {
    REQUIRE(WriteAll(child.out.get(), "out\n"));
    CHECK(client.Drain(Stream::kStdout, 4).data == "out\n");
    REQUIRE(WriteAll(child.err.get(), "err\n"));
    CHECK(client.Drain(Stream::kStderr, 4).data == "err\n");
  }
}

TEST_CASE("a full ring blocks the process and an acknowledgement lets it go on") {
  LoopThread loop;
  auto [io, child] = Streams(loop, 8192);
  std::atomic<uint64_t> written = 0;
  const uint64_t total = 1 << 20;
  std::thread writer([&] {
    for (uint64_t at = 0; at < total; at += 4096) {
      if (!WriteAll(child.out.get(), Pattern(at, 4096))) return;
      written += 4096;
    }
    child.out.Reset();
  });
  Client client(*io, {.manual_ack = true});
  REQUIRE(WaitUntil([&] { return written >= 65536 + 8192; }));
  std::this_thread::sleep_for(50ms);
  CHECK(written <= 65536 + 8192);
  CHECK(io->Output(Stream::kStdout).end == 8192);
  // Reading alone frees nothing.
  CHECK(client.Drain(Stream::kStdout, 8192).data == Pattern(0, 8192));
  std::this_thread::sleep_for(20ms);
  CHECK(io->Output(Stream::kStdout).end == 8192);
  CHECK(client.session->Ack(Stream::kStdout, 8193).error().err == ERANGE);
  REQUIRE(client.session->Ack(Stream::kStdout, 4096));
  CHECK(client.Drain(Stream::kStdout, 4096).data == Pattern(8192, 4096));
  CHECK(io->Output(Stream::kStdout).begin == 4096);
  REQUIRE(client.session->Ack(Stream::kStdout, 12288));
  const auto rest = client.Drain(Stream::kStdout, SIZE_MAX, 10s, true);
  writer.join();
  CHECK(rest.end);
  CHECK(rest.data == Pattern(12288, total - 12288));
}

TEST_CASE("a reader that vanishes and returns at an offset loses and repeats nothing") {
  LoopThread loop;
  auto [io, child] = Streams(loop, 16384);
  const uint64_t total = 300'000;
  std::thread writer([&] {
    WritePattern(child.out.get(), total);
    child.out.Reset();
  });
  string all;
  int returns = 0;
  for (bool end = false; !end; ++returns) {
    Client client(*io, {.manual_ack = true, .offset = all.size()});
    const auto got = client.Drain(Stream::kStdout, 5000);
    CHECK(got.gap == 0);
    all += got.data;
    end = got.end;
    // Half of what was consumed is acknowledged before the connection breaks.
    REQUIRE(client.session->Ack(Stream::kStdout, all.size() - got.data.size() / 2));
  }
  writer.join();
  CHECK(returns > 50);
  CHECK(all == Pattern(0, total));
}

TEST_CASE("unacknowledged output is sent again to the next client that asks for it") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  REQUIRE(WriteAll(child.out.get(), "hello world"));
  {
    Client first(*io, {.manual_ack = true});
    CHECK(first.Drain(Stream::kStdout, 11).data == "hello world");
    REQUIRE(first.session->Ack(Stream::kStdout, 5));
  }
  Client second(*io, {.manual_ack = true, .offset = 5});
  CHECK(second.Drain(Stream::kStdout, 6).data == " world");
  Client late(*io, {.offset = 0});
  const auto got = late.Drain(Stream::kStdout, 6);
  CHECK(got.gap == 5);
  CHECK(got.data == " world");
  CHECK(io->Attach({.outputs = {{Stream::kStdout, 12}}}).error().err == ERANGE);
}

TEST_CASE("a client that doesn't acknowledge frees the ring by reading") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  REQUIRE(WriteAll(child.out.get(), Pattern(0, 60'000)));
  Client client(*io, {});
  CHECK(client.Drain(Stream::kStdout, 60'000).data.size() == 60'000);
  CHECK(io->Output(Stream::kStdout).begin == 60'000);
  CHECK(RingMemory(*io) <= 4096);
}

TEST_CASE("two readers get all bytes each, and the slower one decides what is kept") {
  LoopThread loop;
  auto [io, child] = Streams(loop, 8192);
  const uint64_t total = 200'000;
  Client slow(*io, {.manual_ack = true});
  Client fast(*io, {});
  std::thread writer([&] {
    WritePattern(child.out.get(), total);
    child.out.Reset();
  });
  CHECK(fast.Drain(Stream::kStdout, 8192).data == Pattern(0, 8192));
  CHECK(fast.Drain(Stream::kStdout, 1, 50ms).data.empty());
  string fast_all = Pattern(0, 8192);
  std::thread fast_reader([&] { fast_all += fast.Drain(Stream::kStdout).data; });
  const auto got = slow.Drain(Stream::kStdout, SIZE_MAX, 10s, true);
  fast_reader.join();
  writer.join();
  CHECK(got.data == Pattern(0, total));
  CHECK(fast_all == Pattern(0, total));
}

TEST_CASE("a slow reader that leaves no longer holds up the others") {
  LoopThread loop;
  auto [io, child] = Streams(loop, 4096);
  auto slow = std::make_unique<Client>(*io, Client::Options{.manual_ack = true});
  Client fast(*io, {});
  std::thread writer([&] {
    WritePattern(child.out.get(), 100'000);
    child.out.Reset();
  });
  CHECK(fast.Drain(Stream::kStdout, 4096).data.size() == 4096);
  CHECK(fast.Drain(Stream::kStdout, 1, 30ms).data.empty());
  slow.reset();
  const auto got = fast.Drain(Stream::kStdout);
  writer.join();
  CHECK(got.end);
  CHECK(got.data == Pattern(4096, 100'000 - 4096));
}

TEST_CASE("a drop-oldest ring never blocks the process and readers see the gap") {
  LoopThread loop;
  auto [io, child] = Streams(loop, 8192, Overflow::kDropOldest);
  const uint64_t total = 1 << 20;
  Client client(*io, {.manual_ack = true});
  REQUIRE(WritePattern(child.out.get(), total));
  child.out.Reset();
  REQUIRE(WaitUntil([&] { return io->Output(Stream::kStdout).ended; }));
  const auto state = io->Output(Stream::kStdout);
  CHECK(state.end == total);
  CHECK(state.begin == total - 8192);
  CHECK(state.dropped == total - 8192);
  const auto got = client.Drain(Stream::kStdout);
  CHECK(got.end);
  CHECK(got.gap == total - 8192);
  CHECK(got.data == Pattern(total - 8192, 8192));
}

TEST_CASE("stdin of every size around the limits arrives whole, half-closed after the last byte") {
  LoopThread loop;
  for (const size_t size : {0, 1, 4096, 65535, 65536, 65537, 262143, 262144, 262145, 1 << 20}) {
    CAPTURE(size);
    auto [io, child] = Streams(loop);
    Client client(*io, {.out = false, .in = true});
    string got;
    std::thread reader([&] { got = ReadAll(child.in.get()); });
    CHECK(client.Write(0, Pattern(0, size), true) == size);
    reader.join();
    CHECK(got == Pattern(0, size));
    CHECK(WaitUntil([&] { return client.session->Stdin().accepted == size; }));
    CHECK(!client.session->Stdin().closed);
  }
}

TEST_CASE("stdin is accepted only as the process takes it, and the queue is bounded") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  Client client(*io, {.out = false, .in = true});
  const string data = Pattern(0, 1 << 20);
  uint64_t received = 0;
  REQUIRE(WaitUntil([&] {
    received = client.session->WriteStdin(received, std::string_view(data).substr(received), false).value();
    const auto state = client.session->Stdin();
    return state.accepted == 65536 && state.received == 65536 + kStdinQueueBytes;
  }));
  std::this_thread::sleep_for(20ms);
  CHECK(client.session->WriteStdin(received, std::string_view(data).substr(received), false).value() ==
        received);
  CHECK(client.session->Stdin().accepted == 65536);
  CHECK(ReadAll(child.in.get(), 65536) == data.substr(0, 65536));
  CHECK(WaitUntil([&] { return client.session->Stdin().accepted == 131072; }));
}

TEST_CASE("repeated stdin is skipped, a hole and bytes after the close are errors") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  {
    Client first(*io, {.out = false, .in = true});
    CHECK(io->Attach({.want_stdin = true}).error().err == EBUSY);
    CHECK(first.Write(0, "hello ", false) == 6);
  }
  Client second(*io, {.out = false, .in = true});
  CHECK(second.session->Stdin().received == 6);
  CHECK(second.session->WriteStdin(7, "x", false).error().err == ERANGE);
  CHECK(second.Write(0, "hello world", false) == 11);
  CHECK(second.Write(3, "lo", false) == 11);
  CHECK(second.Write(0, "hello world", true) == 11);
  CHECK(second.Write(11, "", true) == 11);
  CHECK(second.session->WriteStdin(11, "more", false).error().err == EPIPE);
  CHECK(ReadAll(child.in.get()) == "hello world");
  Client none(*io, {});
  CHECK(none.session->WriteStdin(0, "x", false).error().err == EINVAL);
}

TEST_CASE("a process that closes its stdin is reported and further input is thrown away") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  Client client(*io, {.out = false, .in = true});
  SUBCASE("while the queue is empty") {}
  SUBCASE("while the queue is full") {
    CHECK(client.session->WriteStdin(0, Pattern(0, 200'000), false).value() == 200'000);
    REQUIRE(WaitUntil([&] { return client.session->Stdin().accepted == 65536; }));
  }
  const auto before = client.session->Stdin();
  child.in.Reset();
  REQUIRE(WaitUntil([&] { return client.session->Stdin().closed; }));
  CHECK(client.session->Stdin().accepted == before.accepted);
  CHECK(client.Write(before.received, Pattern(0, 1 << 20), false) == before.received + (1 << 20));
  CHECK(client.session->Stdin().accepted == before.accepted);
}

TEST_CASE(
    "what the process wrote before its exit is delivered and then the stream ends, though a grandchild keeps "
    "the pipe") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  base::Fd grandchild(dup(child.out.get()));
  REQUIRE(WriteAll(child.out.get(), Pattern(0, 50'000)));
  child = {};
  Signal drained;
  io->ProcessExited([&] { drained.Set(); });
  REQUIRE(drained.Wait(1s));
  Client client(*io, {});
  const auto got = client.Drain(Stream::kStdout);
  CHECK(got.end);
  CHECK(got.data == Pattern(0, 50'000));
  // The grandchild neither dies of SIGPIPE nor blocks, and adds nothing.
  CHECK(WritePattern(grandchild.get(), 1 << 20));
  CHECK(io->Output(Stream::kStdout).end == 50'000);
  CHECK(client.Drain(Stream::kStdout).data.empty());
  CHECK(io->Stdin().closed);
}

TEST_CASE("a real grandchild that writes without end does not hold the end back") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  const int out = child.out.get();
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      alarm(20);  // in case that the test dies
      for (;;) {
        if (write(out, "noise\n", 6) < 0) _exit(1);
      }
    }
    char line[32];
    const int n = snprintf(line, sizeof line, "%d\n", grandchild);
    _exit(write(out, line, static_cast<size_t>(n)) == n ? 0 : 1);
  }
  child = {};
  Client client(*io, {});
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  CHECK(status == 0);
  Signal drained;
  io->ProcessExited([&] { drained.Set(); });
  const auto got = client.Drain(Stream::kStdout);
  CHECK(drained.Wait(1s));
  CHECK(got.end);
  // The child's own line is in there, between the noise.
  pid_t grandchild = 0;
  for (size_t at = 0; at < got.data.size();) {
    const size_t eol = got.data.find('\n', at);
    if (eol == string::npos) break;
    if (isdigit(got.data[at]) != 0) grandchild = std::stoi(got.data.substr(at, eol - at));
    at = eol + 1;
  }
  REQUIRE(grandchild > 1);
  CHECK(kill(grandchild, SIGKILL) == 0);
}

TEST_CASE("an exit with a full ring and a full pipe and no reader keeps every byte until somebody reads") {
  LoopThread loop;
  auto [io, child] = Streams(loop, 4096);
  base::Fd grandchild(dup(child.out.get()));
  REQUIRE(WriteAll(child.out.get(), Pattern(0, 4096)));
  REQUIRE(WaitUntil([&] { return io->Output(Stream::kStdout).end == 4096; }));
  REQUIRE(WriteAll(child.out.get(), Pattern(4096, 65536)));
  child = {};
  Signal drained;
  io->ProcessExited([&] { drained.Set(); });
  // Nothing is lost by telling the exit: the rest waits in the pipe.
  CHECK(drained.Wait(1s));
  CHECK(!io->Output(Stream::kStdout).ended);
  std::this_thread::sleep_for(20ms);
  Client client(*io, {});
  const auto got = client.Drain(Stream::kStdout);
  CHECK(got.end);
  CHECK(got.data == Pattern(0, 4096 + 65536));
}

TEST_CASE("input that the process has taken before its exit counts, the queue behind it is thrown away") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  Client client(*io, {.out = false, .in = true});
  CHECK(client.session->WriteStdin(0, Pattern(0, 100'000), true).value() == 100'000);
  REQUIRE(WaitUntil([&] { return client.session->Stdin().accepted == 65536; }));
  io->ProcessExited({});
  REQUIRE(WaitUntil([&] { return client.session->Stdin().closed; }));
  CHECK(client.session->Stdin().accepted == 65536);
}

TEST_CASE("a session that outlives its process's streams sees their end") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  REQUIRE(WriteAll(child.out.get(), "last words"));
  Client client(*io, {.in = true});
  REQUIRE(WaitUntil([&] { return io->Output(Stream::kStdout).end == 10; }));
  io.reset();
  const auto got = client.Drain(Stream::kStdout);
  CHECK(got.end);
  CHECK(got.data == "last words");
  CHECK(client.session->Stdin().closed);
}

TEST_CASE("a session may be dropped from its own wake callback") {
  LoopThread loop;
  auto [io, child] = Streams(loop);
  auto session = std::make_shared<std::unique_ptr<Session>>();
  auto signal = std::make_shared<Signal>();
  auto made = io->Attach({.outputs = {{Stream::kStdout, 0}}, .wake = [session, signal] {
                            session->reset();
                            signal->Set();
                          }});
  REQUIRE(made);
  *session = std::move(*made);
  loop.Sync();  // the loop's thread has seen it
  REQUIRE(WriteAll(child.out.get(), "x"));
  CHECK(signal->Wait());
  loop.Sync();
  CHECK(*session == nullptr);
}

TEST_CASE("a thousand processes' streams come and go without a leak of descriptors or memory") {
  LoopThread loop;
  loop.Sync();
  const size_t fds = OpenFds();
  for (int i = 0; i < 1000; ++i) {
    auto [io, child] = Streams(loop);
    auto [ours, theirs] = SocketPair();
    Config config;
    config.out.mode = Mode::kSocket;
    config.out.socket = std::move(ours);
    config.in.mode = Mode::kStream;
    auto relay = ProcessIo::Create(loop.get(), std::move(config));
    REQUIRE(relay);
    if (i % 4 == 0) {
      REQUIRE(WriteAll(child.out.get(), "something"));
      Client client(*io, {.in = true});
      client.Write(0, "input", i % 8 == 0);
      if (i % 3 == 0) client.Drain(Stream::kStdout, 9);
      io->ProcessExited({});
    }
  }
  // And with them the memory files, once the last pump that was asked for has had its turn.
  CHECK(WaitUntil([&] { return OpenFds() == fds; }));
}

TEST_CASE("a creation that fails in the middle leaves no descriptor behind") {
  LoopThread loop;
  loop.Sync();
  const size_t fds = OpenFds();
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  base::Fd lowest(dup(0));
  const rlim_t first_free = static_cast<rlim_t>(lowest.get());
  lowest.Reset();
  // The socket pair takes two; three pipes and two memory files would take eight.
  for (rlim_t room = 2; room < 10; ++room) {
    auto [ours, theirs] = SocketPair();
    Config config;
    config.name = "c/p";
    config.in.mode = config.err.mode = Mode::kStream;
    config.out.mode = Mode::kSocket;
    config.out.socket = std::move(ours);
    const rlimit low{.rlim_cur = first_free + room, .rlim_max = before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &low) == 0);
    const auto made = ProcessIo::Create(loop.get(), std::move(config));
    REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
    REQUIRE(!made);
    CHECK(made.error().err == EMFILE);
    const std::string& step = made.error().step;
    CHECK((step == "pipe2" || step == "memfd_create"));
    CHECK(made.error().object == "c/p");
    CHECK(OpenFds() == fds + 1);
  }
  CHECK(OpenFds() == fds);
}

TEST_CASE("a hundred idle processes with a client each hold no more than a page") {
  LoopThread loop;
  std::vector<ProcessIo::Created> processes;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 100; ++i) {
    processes.push_back(Streams(loop));
    clients.push_back(
        std::make_unique<Client>(*processes.back().io, Client::Options{.err = true, .in = true}));
    REQUIRE(WriteAll(processes.back().child.out.get(), Pattern(0, 40'000)));
    CHECK(clients.back()->Drain(Stream::kStdout, 40'000).data.size() == 40'000);
  }
  for (const auto& process : processes) CHECK(RingMemory(*process.io) <= 4096);
}

}  // namespace
}  // namespace gcs::stdio::test
