// SPDX-License-Identifier: Apache-2.0
// Every byte once: large outputs, inputs at the edges of buffers, terminals, broken connections, ports.
#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "vm/vm_support.h"

namespace gcs::test {
namespace {

// As guest_probe's `pattern`; compares instead of keeping.
class PatternCheck {
 public:
  explicit PatternCheck(uint64_t seed) : seed_(seed) {}
  void Add(std::string_view data) {
    for (const char c : data) {
      if (at_ % 8 == 0) {
        seed_ ^= seed_ << 13;
        seed_ ^= seed_ >> 7;
        seed_ ^= seed_ << 17;
      }
      if (static_cast<unsigned char>(c) != static_cast<unsigned char>(seed_ >> (8 * (at_ % 8))) && good_) {
        good_ = false;
        first_bad_ = at_;
      }
      ++at_;
    }
  }
  uint64_t size() const { return at_; }
  bool good() const { return good_; }
  uint64_t first_bad() const { return first_bad_; }

 private:
  uint64_t seed_;
  uint64_t at_ = 0;
  bool good_ = true;
  uint64_t first_bad_ = 0;
};

std::string Bytes(size_t size) {
  std::string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>((i * 37) + (i >> 7));
  return out;
}

TEST_CASE("a large output arrives whole and in order (1 GiB, 128 MiB in CI)") {
  const uint64_t size = (Full() ? 1024ULL : 128ULL) << 20;
  TestContainer container(
      TestContainer::Make({"/opt/probe", "pattern", "88172645463325252", std::to_string(size)}));
  REQUIRE(container.created());
  PatternCheck check(88172645463325252);
  host::AttachOptions options;
  options.container_id = container.id();
  options.on_output = [&check](v1::Stream stream, std::string_view data) {
    if (stream == v1::STREAM_STDOUT) check.Add(data);
  };
  auto session = host::AttachSession::Open(TestVm::Get().client(), std::move(options));
  REQUIRE_MESSAGE(session, Why(session));
  const int64_t begin = base::MonotonicNs();
  container.Start();
  const v1::ExitStatus exit = container.Wait(600'000);
  CHECK(exit.exit_code() == 0);
  const auto ended = (*session)->WaitOutputs(600'000);
  REQUIRE_MESSAGE(ended, Why(ended));
  const int64_t took = base::MonotonicNs() - begin;
  CHECK(check.size() == size);
  CHECK_MESSAGE(check.good(), "first wrong byte at " << check.first_bad());
  CHECK((*session)->lost_bytes() == 0);
  MESSAGE("stdout over gRPC: " << (size * 1000 / static_cast<uint64_t>(took)) << " MB/s");
}

TEST_CASE("input at the edges of 64 KiB and far above arrives whole") {
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{65535}, size_t{65536}, size_t{65537}, size_t{3} << 20}) {
    CAPTURE(size);
    const std::string input = Bytes(size);
    const Ran ran = RunToEnd(TestContainer::Make({"cat"}), input, true);
    CHECK(ran.exit.exit_code() == 0);
    CHECK(ran.out.size() == size);
    CHECK((ran.out == input));
  }
}

TEST_CASE("a program that does not read its input ends all the same, and so does its writer") {
  auto options = TestContainer::Make({"sh", "-c", "read line; echo $line"});
  options.stdio.mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
  TestContainer container(std::move(options));
  REQUIRE(container.created());
  Output output(container.id(), {}, true);
  container.Start();
  const std::string rest(4 << 20, 'x');
  CHECK(output.session().Write("first\n"));
  // False once the process has ended.
  CHECK_FALSE(output.session().Write(rest));
  CHECK(container.Wait().exit_code() == 0);
  output.Finish();
  CHECK(output.out() == "first\n");
}

TEST_CASE("a terminal has the asked size, follows resizes, and echoes") {
  auto options = TestContainer::Make({"/opt/probe", "winsize"});
  options.settings.terminal = true;
  options.settings.width = 132;
  options.settings.height = 43;
  options.stdio.mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
  options.stdio.mutable_stderr()->set_mode(v1::StreamSpec::MODE_NULL);
  TestContainer container(std::move(options));
  REQUIRE_MESSAGE(container.created(), Why(container.created()));
  Output output(container.id(), {}, true, false);
  CHECK(output.session().terminal());
  container.Start();
  REQUIRE(output.WaitFor("size 132x43\r\n"));
  output.session().Resize(100, 30);
  CHECK(container.Wait().exit_code() == 0);
  output.Finish();
  CHECK(output.out().find("size 100x30\r\n") != std::string::npos);
}

TEST_CASE("a shell on a terminal answers, and Ctrl-C reaches its program") {
  auto options = TestContainer::Make({"sh"});
  options.settings.terminal = true;
  options.stdio.mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
  options.stdio.mutable_stderr()->set_mode(v1::StreamSpec::MODE_NULL);
  TestContainer container(std::move(options));
  REQUIRE_MESSAGE(container.created(), Why(container.created()));
  Output output(container.id(), {}, true, false);
  container.Start();
  CHECK(output.session().Write("echo $((6*7)); sleep 1000\n"));
  REQUIRE(output.WaitFor("42\r\n"));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(output.session().Write("\x03"));
  CHECK(output.session().Write("exit 5\n"));
  CHECK(container.Wait().exit_code() == 5);
}

TEST_CASE("an end is not held up by a grandchild that keeps the outputs") {
  const int64_t begin = base::MonotonicNs();
  const Ran ran = RunToEnd({"/opt/probe", "orphan"});
  CHECK(ran.out == "gone\n");
  CHECK(ran.exit.exit_code() == 7);
  CHECK(base::MonotonicNs() - begin < 10 * base::kNsPerSec);
}

TEST_CASE("output waits for its reader: nothing is lost when one comes after the end") {
  TestContainer container(TestContainer::Make({"sh", "-c", "echo early; echo late >&2"}));
  container.Start();
  CHECK(container.Wait().exit_code() == 0);
  Output output(container.id());
  output.Finish();
  CHECK(output.out() == "early\n");
  CHECK(output.err() == "late\n");
}

TEST_CASE("connections that break in the middle of a run lose and repeat no byte") {
  TestVm& vm = TestVm::Get();
  const uint64_t size = 24 << 20;
  auto options = TestContainer::Make({"sh", "-c",
                                      "cat > /dev/shm/in; sha256sum < /dev/shm/in >&2; "
                                      "/opt/probe pattern 88172645463325252 " +
                                          std::to_string(size)});
  options.stdio.mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
  TestContainer container(std::move(options));
  REQUIRE(container.created());
  PatternCheck check(88172645463325252);
  std::string sum;
  host::AttachOptions attach;
  attach.container_id = container.id();
  attach.in = true;
  attach.on_output = [&](v1::Stream stream, std::string_view data) {
    if (stream == v1::STREAM_STDOUT) {
      check.Add(data);
    } else {
      sum += data;
    }
  };
  auto session = host::AttachSession::Open(vm.client(), std::move(attach));
  REQUIRE_MESSAGE(session, Why(session));
  container.Start();
  std::atomic<bool> stop = false;
  std::atomic<int> breaks = 0;
  std::thread breaker([&] {
    while (!stop) {
      std::this_thread::sleep_for(std::chrono::milliseconds(150));
      if (stop) break;
      vm.BreakConnections();
      ++breaks;
    }
  });
  const std::string input = Bytes(6 << 20);
  const bool written = (*session)->Write(input);
  (*session)->CloseStdin();
  const auto ended = (*session)->WaitOutputs(120'000);
  stop = true;
  breaker.join();
  CHECK(written);
  REQUIRE_MESSAGE(ended, Why(ended));
  CHECK(container.Wait().exit_code() == 0);
  CHECK(check.size() == size);
  CHECK_MESSAGE(check.good(), "first wrong byte at " << check.first_bad());
  CHECK((*session)->lost_bytes() == 0);
  CHECK((*session)->reconnects() > 0);
  // The input, as the guest saw it, against one that nobody disturbed.
  const Ran calm = RunToEnd(TestContainer::Make({"sha256sum"}), input);
  CHECK(sum == calm.out);
  MESSAGE(breaks.load() << " breaks, " << (*session)->reconnects() << " reconnects of the streams");
}

TEST_CASE("streams over ports that the agent dials carry the bytes and the half-close") {
  TestVm& vm = TestVm::Get();
  const auto in = vm.vm().Listen(3001);
  const auto out = vm.vm().Listen(3002);
  REQUIRE(in);
  REQUIRE(out);
  auto options = TestContainer::Make({"cat"});
  options.stdio.Clear();
  options.stdio.mutable_stdin()->set_mode(v1::StreamSpec::MODE_VSOCK);
  options.stdio.mutable_stdin()->set_port(3001);
  options.stdio.mutable_stdout()->set_mode(v1::StreamSpec::MODE_VSOCK);
  options.stdio.mutable_stdout()->set_port(3002);
  TestContainer container(std::move(options));
  REQUIRE_MESSAGE(container.created(), Why(container.created()));
  const auto accept_one = [](const base::Fd& listener) {
    pollfd entry = {.fd = listener.get(), .events = POLLIN, .revents = 0};
    REQUIRE(poll(&entry, 1, 10'000) == 1);
    return base::Fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  };
  const base::Fd to = accept_one(*in);
  const base::Fd from = accept_one(*out);
  REQUIRE(to);
  REQUIRE(from);
  container.Start();
  const std::string data = Bytes(5 << 20);
  std::thread writer([&] {
    for (size_t at = 0; at < data.size();) {
      const ssize_t n = send(to.get(), data.data() + at, data.size() - at, MSG_NOSIGNAL);
      if (n <= 0) break;
      at += n;
    }
    shutdown(to.get(), SHUT_WR);
  });
  std::string back;
  std::vector<char> buffer(256 << 10);
  while (true) {
    pollfd entry = {.fd = from.get(), .events = POLLIN, .revents = 0};
    if (poll(&entry, 1, 30'000) != 1) break;
    const ssize_t n = recv(from.get(), buffer.data(), buffer.size(), 0);
    if (n <= 0) break;
    back.append(buffer.data(), n);
  }
  writer.join();
  CHECK(container.Wait().exit_code() == 0);
  CHECK(back.size() == data.size());
  CHECK((back == data));
}

TEST_CASE("a port that nobody listens on fails the Create at once") {
  auto options = TestContainer::Make({"cat"});
  options.stdio.mutable_stdout()->set_mode(v1::StreamSpec::MODE_VSOCK);
  options.stdio.mutable_stdout()->set_port(3999);
  const int64_t begin = base::MonotonicNs();
  const TestContainer container(std::move(options));
  CHECK(base::MonotonicNs() - begin < 5 * base::kNsPerSec);
  REQUIRE_FALSE(container.created());
  CHECK(container.created().error().from_agent);
}

}  // namespace
}  // namespace gcs::test
