// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <pthread.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <future>
#include <memory>
#include <set>
#include <system_error>
#include <thread>
#include <vector>

#include "base/executor.h"

namespace gcs::base {
namespace {

constexpr std::chrono::seconds kPatience{20};

TEST_CASE("a pool runs everything posted before it is destroyed") {
  std::atomic<int> ran = 0;
  {
    Pool pool(3);
    for (int i = 0; i < 500; ++i) pool.Post([&ran] { ++ran; });
  }
  CHECK(ran == 500);
}

TEST_CASE("a pool runs as many tasks at once as it has threads, and no more") {
  std::atomic<int> now = 0;
  std::atomic<int> most = 0;
  {
    Pool pool(4);
    // Four tasks that wait for each other end only if all four run at once.
    auto meet = std::make_shared<std::barrier<>>(4);
    for (int i = 0; i < 4; ++i) pool.Post([meet] { meet->arrive_and_wait(); });
    for (int i = 0; i < 40; ++i) {
      pool.Post([&] {
        const int running = ++now;
        int seen = most;
        while (running > seen && !most.compare_exchange_weak(seen, running)) {
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        --now;
      });
    }
  }
  CHECK(most <= 4);
  CHECK(most >= 2);
}

TEST_CASE("a blocked task does not keep others from running") {
  Pool pool(2);
  std::promise<void> release;
  std::promise<void> other_ran;
  pool.Post([blocked = release.get_future().share()] { blocked.wait(); });
  pool.Post([&other_ran] { other_ran.set_value(); });
  CHECK(other_ran.get_future().wait_for(kPatience) == std::future_status::ready);
  release.set_value();
}

TEST_CASE("a pool of no threads still has one") {
  std::promise<void> ran;
  Pool pool(0);
  pool.Post([&ran] { ran.set_value(); });
  CHECK(ran.get_future().wait_for(kPatience) == std::future_status::ready);
}

// No thread can be made while it lives: none has room for such a stack (as with EAGAIN of clone(2)).
class NoThreads {
 public:
  NoThreads() {
    pthread_getattr_default_np(&saved_);
    pthread_attr_t huge = saved_;
    pthread_attr_setstacksize(&huge, size_t{1} << 52);
    pthread_setattr_default_np(&huge);
    CHECK_THROWS_AS(std::thread([] {}).join(), std::system_error);
  }
  ~NoThreads() { pthread_setattr_default_np(&saved_); }
  NoThreads(const NoThreads&) = delete;
  NoThreads& operator=(const NoThreads&) = delete;

 private:
  pthread_attr_t saved_{};
};

TEST_CASE("a pool that gets no more threads works with the one it has") {
  std::atomic<int> ran = 0;
  Pool pool(4);
  const NoThreads full;
  std::promise<void> release;
  std::promise<void> last;
  pool.Post([blocked = release.get_future().share()] { blocked.wait(); });
  for (int i = 0; i < 20; ++i) pool.Post([&ran] { ++ran; });
  pool.Post([&last] { last.set_value(); });
  release.set_value();
  CHECK(last.get_future().wait_for(kPatience) == std::future_status::ready);
  CHECK(ran == 20);
}

TEST_CASE("a pool that got no thread at all gets one when there is room, and loses nothing") {
  std::atomic<int> ran = 0;
  {
    std::promise<void> later;
    auto full = std::make_unique<NoThreads>();
    Pool pool(4);
    pool.Post([&ran] { ++ran; });
    CHECK(ran == 0);
    full.reset();
    pool.Post([&later] { later.set_value(); });
    CHECK(later.get_future().wait_for(kPatience) == std::future_status::ready);
    CHECK(ran == 1);
  }
  {
    const NoThreads full;
    Pool pool(4);
    pool.Post([&ran] { ++ran; });
  }
  CHECK(ran == 2);
}

TEST_CASE("a task may post another one, also while the pool is being destroyed") {
  std::atomic<int> depth = 0;
  {
    std::function<void()> again;  // outlives the pool, whose destructor still runs it
    Pool pool(1);
    again = [&] {
      if (++depth < 50) pool.Post(again);
    };
    pool.Post(again);
  }
  CHECK(depth == 50);
}

TEST_CASE("what a task holds is let go when it has run") {
  Pool pool(1);
  auto held = std::make_shared<int>(1);
  const std::weak_ptr<int> watch = held;
  pool.Post([held = std::move(held)] { ++*held; });
  std::promise<void> next;
  pool.Post([&next] { next.set_value(); });
  REQUIRE(next.get_future().wait_for(kPatience) == std::future_status::ready);
  CHECK(watch.expired());
}

TEST_CASE("a strand keeps the order and never overlaps, whoever posts") {
  std::vector<int> order;
  std::atomic<bool> inside = false;
  std::atomic<int> overlaps = 0;
  {
    Pool pool(4);
    auto strand = std::make_shared<Strand>(&pool);
    for (int i = 0; i < 1000; ++i) {
      strand->Post([&, i] {
        if (inside.exchange(true)) ++overlaps;
        order.push_back(i);
        inside = false;
      });
    }
  }
  CHECK(overlaps == 0);
  REQUIRE(order.size() == 1000);
  for (int i = 0; i < 1000; ++i) REQUIRE(order[i] == i);
}

TEST_CASE("tasks of a strand that nobody holds any more still run") {
  std::atomic<int> ran = 0;
  {
    Pool pool(2);
    auto strand = std::make_shared<Strand>(&pool);
    for (int i = 0; i < 20; ++i) strand->Post([&ran] { ++ran; });
    strand.reset();
  }
  CHECK(ran == 20);
}

TEST_CASE("a slow strand does not hold up another one") {
  Pool pool(2);
  auto slow = std::make_shared<Strand>(&pool);
  auto quick = std::make_shared<Strand>(&pool);
  std::promise<void> release;
  std::promise<void> ran;
  slow->Post([blocked = release.get_future().share()] { blocked.wait(); });
  for (int i = 0; i < 8; ++i) slow->Post([] {});
  quick->Post([&ran] { ran.set_value(); });
  CHECK(ran.get_future().wait_for(kPatience) == std::future_status::ready);
  release.set_value();
}

TEST_CASE("many threads may post to one pool") {
  std::atomic<int> ran = 0;
  {
    Pool pool(3);
    std::vector<std::jthread> posters;
    posters.reserve(4);
    for (int t = 0; t < 4; ++t) {
      posters.emplace_back([&] {
        for (int i = 0; i < 250; ++i) pool.Post([&ran] { ++ran; });
      });
    }
    posters.clear();
  }
  CHECK(ran == 1000);
}

}  // namespace
}  // namespace gcs::base
