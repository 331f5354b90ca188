// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/loop.h"

namespace gcs::base {
namespace {

std::unique_ptr<Loop> MakeLoop() {
  auto loop = Loop::Create();
  REQUIRE(loop.has_value());
  return std::move(*loop);
}

FdPair MakePipe() {
  int ends[2];
  REQUIRE(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
  return {Fd(ends[0]), Fd(ends[1])};
}

void Put(const Fd& fd) { REQUIRE(write(fd.get(), "x", 1) == 1); }

// Runs rounds until `done` or some seconds have passed.
template <typename Done>
bool RunUntil(Loop& loop, Done done) {
  const int64_t end = MonotonicNs() + 10 * kNsPerSec;
  while (!done() && MonotonicNs() < end) loop.RunOnce(20);
  return done();
}

TEST_CASE("a readable descriptor calls its callback with the event") {
  auto loop = MakeLoop();
  const FdPair pipe = MakePipe();
  uint32_t got = 0;
  REQUIRE(loop->Add(pipe.first.get(), EPOLLIN, [&](uint32_t events) { got = events; }));
  loop->RunOnce(0);
  CHECK(got == 0);
  Put(pipe.second);
  loop->RunOnce(1000);
  CHECK((got & EPOLLIN) != 0);
  loop->Remove(pipe.first.get());
}

TEST_CASE("adding a descriptor twice or a bad one is an error with errno") {
  auto loop = MakeLoop();
  const FdPair pipe = MakePipe();
  REQUIRE(loop->Add(pipe.first.get(), EPOLLIN, [](uint32_t) {}));
  const auto twice = loop->Add(pipe.first.get(), EPOLLIN, [](uint32_t) {});
  REQUIRE(!twice);
  CHECK(twice.error().err == EEXIST);
  const auto bad = loop->Add(1'000'000, EPOLLIN, [](uint32_t) {});
  REQUIRE(!bad);
  CHECK(bad.error().err == EBADF);
  const auto unknown = loop->Modify(pipe.second.get(), EPOLLOUT);
  REQUIRE(!unknown);
  CHECK(unknown.error().err == ENOENT);
}

TEST_CASE("a failed second Add leaves the first watch working") {
  auto loop = MakeLoop();
  const FdPair pipe = MakePipe();
  int calls = 0;
  REQUIRE(loop->Add(pipe.first.get(), EPOLLIN, [&](uint32_t) { ++calls; }));
  REQUIRE(!loop->Add(pipe.first.get(), EPOLLIN, [](uint32_t) {}));
  Put(pipe.second);
  loop->RunOnce(1000);
  CHECK(calls == 1);
}

TEST_CASE("Modify with no events pauses a watch and resumes it") {
  auto loop = MakeLoop();
  const FdPair pipe = MakePipe();
  int calls = 0;
  REQUIRE(loop->Add(pipe.first.get(), EPOLLIN, [&](uint32_t) { ++calls; }));
  REQUIRE(loop->Modify(pipe.first.get(), 0));
  Put(pipe.second);
  loop->RunOnce(10);
  CHECK(calls == 0);
  REQUIRE(loop->Modify(pipe.first.get(), EPOLLIN));
  loop->RunOnce(1000);
  CHECK(calls == 1);
}

TEST_CASE("a callback may remove itself") {
  auto loop = MakeLoop();
  const FdPair pipe = MakePipe();
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = held;
  REQUIRE(loop->Add(pipe.first.get(), EPOLLIN, [&, held = std::move(held)](uint32_t) {
    loop->Remove(pipe.first.get());
    ++*held;  // the callback's own state is still there
  }));
  Put(pipe.second);
  loop->RunOnce(1000);
  loop->RunOnce(10);
  CHECK(watch.expired());
}

TEST_CASE("a callback that removes another ready watch silences it, also when its number is used again") {
  auto loop = MakeLoop();
  FdPair one = MakePipe();
  FdPair two = MakePipe();
  int calls = 0;
  const auto remove_other = [&](FdPair& other) {
    return [&](uint32_t) {
      ++calls;
      const int number = other.first.get();
      loop->Remove(number);
      other.first.Reset();
      // The lowest free number: the same as the one just closed, now of a descriptor that nothing is ready
      // on.
      Fd again(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
      REQUIRE(again.get() == number);
      REQUIRE(loop->Add(again.get(), EPOLLIN, [&](uint32_t) { calls += 100; }));
      other.first = std::move(again);
    };
  };
  REQUIRE(loop->Add(one.first.get(), EPOLLIN, remove_other(two)));
  REQUIRE(loop->Add(two.first.get(), EPOLLIN, remove_other(one)));
  Put(one.second);
  Put(two.second);
  loop->RunOnce(1000);
  CHECK(calls == 1);
}

TEST_CASE("timers run in the order they are due, equal ones in the order of their making") {
  auto loop = MakeLoop();
  std::vector<int> order;
  loop->After(20 * kNsPerMs, [&] { order.push_back(3); });
  loop->After(5 * kNsPerMs, [&] { order.push_back(1); });
  loop->After(5 * kNsPerMs, [&] { order.push_back(2); });
  const int64_t begin = MonotonicNs();
  REQUIRE(RunUntil(*loop, [&] { return order.size() == 3; }));
  CHECK(MonotonicNs() - begin >= 20 * kNsPerMs);
  CHECK(order == std::vector{1, 2, 3});
}

TEST_CASE("a timer never runs early and a negative delay is none") {
  auto loop = MakeLoop();
  const int64_t begin = MonotonicNs();
  int64_t ran = 0;
  bool at_once = false;
  loop->After(3 * kNsPerMs, [&] { ran = MonotonicNs(); });
  loop->After(-1, [&] { at_once = true; });
  loop->RunOnce(0);
  CHECK(at_once);
  REQUIRE(RunUntil(*loop, [&] { return ran != 0; }));
  CHECK(ran - begin >= 3 * kNsPerMs);
}

TEST_CASE("a cancelled timer does not run, also when another timer cancels it") {
  auto loop = MakeLoop();
  int ran = 0;
  const auto id = loop->After(1 * kNsPerMs, [&] { ran += 100; });
  loop->Cancel(id);
  loop->Cancel(id);
  loop->Cancel(0);
  Loop::TimerId second = 0;
  loop->After(1 * kNsPerMs, [&] {
    ++ran;
    loop->Cancel(second);
  });
  second = loop->After(1 * kNsPerMs, [&] { ran += 100; });
  bool end = false;
  loop->After(10 * kNsPerMs, [&] { end = true; });
  REQUIRE(RunUntil(*loop, [&] { return end; }));
  CHECK(ran == 1);
}

TEST_CASE("a timer of no delay that makes itself again does not starve descriptors") {
  auto loop = MakeLoop();
  const FdPair pipe = MakePipe();
  bool read = false;
  int ticks = 0;
  REQUIRE(loop->Add(pipe.first.get(), EPOLLIN, [&](uint32_t) { read = true; }));
  std::function<void()> tick = [&] {
    if (++ticks < 100'000) loop->After(0, tick);
  };
  loop->After(0, tick);
  Put(pipe.second);
  for (int round = 0; round < 3 && !read; ++round) loop->RunOnce(0);
  CHECK(read);
}

TEST_CASE("a task posted from another thread wakes the loop") {
  auto loop = MakeLoop();
  std::atomic<bool> ran = false;
  std::thread::id where;
  std::jthread poster([&] {
    loop->Post([&] {
      where = std::this_thread::get_id();
      ran = true;
    });
  });
  CHECK(RunUntil(*loop, [&] { return ran.load(); }));
  CHECK(where == std::this_thread::get_id());
}

TEST_CASE("a task that posts itself runs once per round") {
  auto loop = MakeLoop();
  int ran = 0;
  std::function<void()> again = [&] {
    ++ran;
    loop->Post(again);
  };
  loop->Post(again);
  loop->RunOnce(100);
  CHECK(ran == 1);
  loop->RunOnce(100);
  CHECK(ran == 2);
}

TEST_CASE("no posted task is lost among many posting threads, and Stop lets the queued ones run") {
  auto loop = MakeLoop();
  std::atomic<int> ran = 0;
  std::jthread runner([&] { loop->Run(); });
  {
    std::vector<std::jthread> posters;
    posters.reserve(4);
    for (int t = 0; t < 4; ++t) {
      posters.emplace_back([&] {
        for (int i = 0; i < 2500; ++i) loop->Post([&] { ++ran; });
      });
    }
  }
  loop->Stop();
  runner.join();
  CHECK(ran == 10'000);
}

TEST_CASE("a loop stopped before it runs ends at once, and can run again") {
  auto loop = MakeLoop();
  int ran = 0;
  loop->Post([&] { ++ran; });
  loop->Stop();
  loop->Run();
  CHECK(ran == 1);
  loop->After(1 * kNsPerMs, [&] { loop->Stop(); });
  loop->Run();
  CHECK(ran == 1);
}

}  // namespace
}  // namespace gcs::base
