// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/loop.h"
#include "transport/dialer.h"
#include "transport/endpoint.h"
#include "transport/listener.h"

namespace {

using gcs::base::Fd;
using gcs::base::kNsPerMs;
using gcs::base::kNsPerSec;
using gcs::base::Loop;
using gcs::base::MonotonicNs;
using gcs::transport::Endpoint;
using gcs::transport::Listener;

struct Directory {
  Directory() {
    char pattern[] = "/tmp/gcs-transport-XXXXXX";
    REQUIRE(mkdtemp(pattern) != nullptr);
    path = pattern;
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::string path;
};

template <typename Condition>
bool RunUntil(Loop& loop, Condition condition, int64_t limit_ns = 5 * kNsPerSec) {
  const int64_t end = MonotonicNs() + limit_ns;
  while (!condition() && MonotonicNs() < end) loop.RunOnce(20);
  return condition();
}

bool IsNonblockCloexec(int fd) {
  return (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0;
}

TEST_CASE("only CID 2 is the host") {
  sockaddr_vm peer{};
  peer.svm_family = AF_VSOCK;
  peer.svm_cid = VMADDR_CID_HOST;
  CHECK(gcs::transport::IsHost(peer));
  for (const unsigned cid : {0U, 1U, 3U, 4U, 0x7fffffffU, 0xffffffffU}) {
    peer.svm_cid = cid;
    CHECK(!gcs::transport::IsHost(peer));
  }
  peer.svm_cid = VMADDR_CID_HOST;
  peer.svm_family = AF_UNIX;
  CHECK(!gcs::transport::IsHost(peer));
}

TEST_CASE("a unix listener hands over non-blocking descriptors, is private and cleans up") {
  const Directory directory;
  const std::string path = directory.path + "/host_5";
  auto loop = Loop::Create();
  REQUIRE(loop.has_value());
  std::vector<Fd> accepted;
  int listening = 0;
  {
    Listener listener(loop->get(), Endpoint::Unix(path),
                      {[&](Fd fd) { accepted.push_back(std::move(fd)); }, [&] { ++listening; }});
    listener.Start();
    CHECK(listener.listening());
    CHECK(listening == 1);
    struct stat status{};
    REQUIRE(stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
    const auto dialer = gcs::transport::UnixDialer(directory.path + "/host");
    auto connection = dialer->Dial(5, MonotonicNs() + kNsPerSec);
    REQUIRE(connection.has_value());
    CHECK(IsNonblockCloexec(connection->get()));
    REQUIRE(RunUntil(**loop, [&] { return !accepted.empty(); }));
    CHECK(IsNonblockCloexec(accepted[0].get()));
    REQUIRE(write(connection->get(), "x", 1) == 1);
    char c = 0;
    CHECK(read(accepted[0].get(), &c, 1) == 1);
    CHECK(listener.refused() == 0);
  }
  CHECK(!std::filesystem::exists(path));
}

TEST_CASE("a listen that fails is tried again until it succeeds") {
  const Directory directory;
  const std::string path = directory.path + "/later/api";
  auto loop = Loop::Create();
  REQUIRE(loop.has_value());
  int listening = 0;
  Listener listener(loop->get(), Endpoint::Unix(path), {[](const Fd&) {}, [&] { ++listening; }});
  listener.Start();
  CHECK(!listener.listening());
  std::filesystem::create_directory(directory.path + "/later");
  CHECK(RunUntil(**loop, [&] { return listener.listening(); }));
  CHECK(listening == 1);
}

TEST_CASE("a stale socket file is replaced, any other file is not") {
  const Directory directory;
  const std::string path = directory.path + "/api";
  auto loop = Loop::Create();
  REQUIRE(loop.has_value());
  {
    Fd stale(socket(AF_UNIX, SOCK_STREAM, 0));
    const auto address = gcs::transport::UnixAddress(path);
    REQUIRE(address.has_value());
    REQUIRE(bind(stale.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) == 0);
  }
  {
    Listener listener(loop->get(), Endpoint::Unix(path), {[](const Fd&) {}, {}});
    listener.Start();
    CHECK(listener.listening());
  }
  Fd file(open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  Listener listener(loop->get(), Endpoint::Unix(path), {[](const Fd&) {}, {}});
  listener.Start();
  CHECK(!listener.listening());
  listener.Stop();
  CHECK(std::filesystem::is_regular_file(path));
}

TEST_CASE("a listener out of descriptors pauses and goes on") {
  const Directory directory;
  const std::string path = directory.path + "/host_1";
  auto loop = Loop::Create();
  REQUIRE(loop.has_value());
  size_t accepted = 0;
  Listener listener(loop->get(), Endpoint::Unix(path), {[&](const Fd&) { ++accepted; }, {}});
  listener.Start();
  const auto dialer = gcs::transport::UnixDialer(directory.path + "/host");
  auto connection = dialer->Dial(1, MonotonicNs() + kNsPerSec);
  REQUIRE(connection.has_value());
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit none = before;
  none.rlim_cur = 3;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
  int rounds = 0;
  const int64_t end = MonotonicNs() + 300 * kNsPerMs;
  while (MonotonicNs() < end) {
    (*loop)->RunOnce(50);
    ++rounds;
  }
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(accepted == 0);
  CHECK(rounds < 50);  // no spinning
  CHECK(RunUntil(**loop, [&] { return accepted == 1; }));
}

TEST_CASE("dialling a port that nobody serves fails at once, with the object named") {
  const Directory directory;
  const auto dialer = gcs::transport::UnixDialer(directory.path + "/host");
  const int64_t begin = MonotonicNs();
  const auto connection = dialer->Dial(9, begin + 5 * kNsPerSec);
  REQUIRE(!connection.has_value());
  CHECK(connection.error().err == ECONNREFUSED);
  CHECK(connection.error().object == directory.path + "/host_9");
  CHECK(MonotonicNs() - begin < kNsPerSec);
}

TEST_CASE("dialling ends at its deadline") {
  const Directory directory;
  Fd full(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto address = gcs::transport::UnixAddress(directory.path + "/host_2");
  REQUIRE(bind(full.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) == 0);
  REQUIRE(listen(full.get(), 0) == 0);
  const auto dialer = gcs::transport::UnixDialer(directory.path + "/host");
  std::vector<Fd> held;
  for (;;) {
    const int64_t begin = MonotonicNs();
    auto connection = dialer->Dial(2, begin + 200 * kNsPerMs);
    if (connection) {
      held.push_back(std::move(*connection));
      REQUIRE(held.size() < 10);
      continue;
    }
    CHECK(connection.error().err == ETIMEDOUT);
    CHECK(MonotonicNs() - begin >= 200 * kNsPerMs);
    CHECK(MonotonicNs() - begin < 2 * kNsPerSec);
    // Or when its caller no longer wants it.
    const Fd cancel(eventfd(1, EFD_CLOEXEC));
    connection = dialer->Dial(2, begin + 60 * kNsPerSec, cancel.get());
    REQUIRE(!connection);
    CHECK(connection.error().err == ECANCELED);
    CHECK(MonotonicNs() - begin < 2 * kNsPerSec);
    break;
  }
}

TEST_CASE("a unix path that is too long is an error, not cut") {
  CHECK(gcs::transport::UnixAddress(std::string(108, 'x')).error().err == ENAMETOOLONG);
  CHECK(gcs::transport::UnixAddress(std::string(107, 'x')).has_value());
  CHECK(gcs::transport::UnixAddress("").error().err == EINVAL);
}

}  // namespace
