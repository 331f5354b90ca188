// SPDX-License-Identifier: Apache-2.0
#include "guest/keep.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <tuple>

#include "base/clock.h"
#include "base/init_control.h"
#include "init/store.h"
#include "unit/keep_rig.h"

namespace {

using gcs::base::Fd;
using gcs::base::InitOp;
using gcs::base::InitPacket;
using gcs::base::kMaxStoreFds;
using gcs::guest::InitLine;
using gcs::guest::Keep;
using gcs::guest::kFirstKeepFd;
using gcs::guest::kKeepFileKey;
using gcs::guest::test::InitThread;
using gcs::guest::test::Life;
using gcs::guest::test::LineOver;
using gcs::guest::test::MakePair;
using gcs::init::Store;

// A descriptor that can be told from others.
Fd Marked(const std::string& text) {
  Fd fd(memfd_create("mark", MFD_CLOEXEC));
  REQUIRE(write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  return fd;
}
std::string MarkOf(const Fd& fd) {
  if (!fd) return "-";
  std::string text(64, '\0');
  const ssize_t n = pread(fd.get(), text.data(), text.size(), 0);
  return n < 0 ? "?" : text.substr(0, static_cast<size_t>(n));
}

// "key=value[mark,mark] ..." of all entries.
std::string Tell(const std::vector<Keep::Entry>& entries) {
  std::string all;
  for (const auto& entry : entries) {
    all += entry.key + "=" + entry.value + "[";
    for (size_t i = 0; i < entry.fds.size(); ++i) all += (i > 0 ? "," : "") + MarkOf(entry.fds[i]);
    all += "] ";
  }
  return all;
}
std::string Left(Store* store) { return Tell(Life(store)->TakeEntries()); }

// What init holds at `key`; the test is its only user while no Life is there.
Fd Held(Store* store, uint64_t key) {
  const auto pair = MakePair();
  InitPacket take{.message = {.op = static_cast<uint32_t>(InitOp::kStoreTake), .arg = key}};
  REQUIRE(store->Serve(pair.second.get(), take));
  auto reply = gcs::base::ReceiveInit(pair.first.get(), 0);
  REQUIRE(reply);
  return reply->message.arg > 0 && reply->keys[0] == key ? std::move(reply->fds[0]) : Fd();
}
void Hold(Store* store, uint64_t key, Fd fd) {
  const auto pair = MakePair();
  InitPacket put{.message = {.op = static_cast<uint32_t>(InitOp::kStorePut), .arg = key}};
  put.fds.push_back(std::move(fd));
  REQUIRE(store->Serve(pair.second.get(), put));
}

std::string LogOf(Store* store) {
  const Fd fd = Held(store, kKeepFileKey);
  struct stat info{};
  REQUIRE(fstat(fd.get(), &info) == 0);
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  REQUIRE(pread(fd.get(), bytes.data(), bytes.size(), 0) == info.st_size);
  return bytes;
}
void SetLog(Store* store, const std::string& bytes) {
  Fd fd(memfd_create("log", MFD_CLOEXEC));
  REQUIRE(write(fd.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  Hold(store, kKeepFileKey, std::move(fd));
}

TEST_CASE("what one life keeps is there for the next, in order, with its descriptors") {
  Store store;
  {
    const Life life(&store);
    CHECK(life->TakeEntries().empty());
    const Fd a = Marked("a");
    const Fd b = Marked("b");
    const Fd c = Marked("c");
    REQUIRE(life->Put("one", "1", std::array{a.get(), b.get()}));
    REQUIRE(life->Put("two", "2"));
    REQUIRE(life->Put("three", "3", std::array{c.get()}));
    REQUIRE(life->Put("four", std::string("\0x", 2), std::array{a.get()}));
    REQUIRE(life->Update("one", "1.1"));
    life->DropFd("one", 0);
    life->DropFd("one", 2);  // none
    life->DropFd("no", 0);
    life->Remove("two");
    life->Remove("no");
    REQUIRE(life->Put("three", "3.1", std::array{b.get(), c.get()}));
    REQUIRE(life->Put("two", "again"));
    CHECK(life->Update("no", "").error().err == ENOENT);
  }
  CHECK(store.size() == 1 + 1 + 2 + 1);
  const std::string expected =
      std::string("one=1.1[-,b] three=3.1[b,c] four=") + std::string("\0x", 2) + "[a] two=again[] ";
  {
    const Life life(&store);
    CHECK(Tell(life->TakeEntries()) == expected);
    CHECK(life->TakeEntries().empty());
    // They stay kept, and this life goes on with them.
    life->Remove("four");
    life->DropFd("three", 1);
    REQUIRE(life->Update("two", "and again"));
  }
  CHECK(Left(&store) == "one=1.1[-,b] three=3.1[b,-] two=and again[] ");
  CHECK(Left(&store) == "one=1.1[-,b] three=3.1[b,-] two=and again[] ");
  CHECK(store.size() == 1 + 1 + 1);
}

TEST_CASE("init tells the next life how a process ended that it has reaped") {
  Store store;
  constexpr int kPid = 4711;
  const auto put = [](const Life& life, const std::string& key, int pid) {
    const Fd mark = Marked(key);
    REQUIRE(life.keep->Put(key, "", std::array{mark.get()}, pid));
  };
  {
    const Life life(&store);
    put(life, "first", kPid);
    put(life, "lives", kPid + 1);
    put(life, "again", kPid);  // the number's next owner: the first was reaped by the agent
    put(life, "gone", kPid + 2);
    life.keep->Remove("gone");
  }
  store.NoteExit(kPid, {.status = 42 << 8, .max_rss_kib = UINT32_MAX, .user_ms = 3, .system_ms = 4});
  store.NoteExit(kPid, {.status = 1 << 8});
  store.NoteExit(kPid + 2, {.status = 1 << 8});
  store.NoteExit(1, {});
  const Life life(&store);
  const auto exit = life.keep->ExitOf("again");
  REQUIRE(exit);
  REQUIRE(*exit);
  CHECK((*exit)->status == 42 << 8);
  CHECK((*exit)->max_rss_kib == UINT32_MAX);
  CHECK((*exit)->user_ms == 3);
  CHECK((*exit)->system_ms == 4);
  CHECK_FALSE(*life.keep->ExitOf("first"));
  CHECK_FALSE(*life.keep->ExitOf("lives"));
  CHECK(life.keep->ExitOf("gone").error().err == ENOENT);
  REQUIRE(life.keep->Put("none", "", std::array{Marked("none").get()}));
  CHECK(life.keep->ExitOf("none").error().err == ENOENT);
}

TEST_CASE("a dropped write end lets the reader see the end") {
  Store store;
  const Life life(&store);
  int ends[2];
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  const Fd reader(ends[0]);
  Fd writer(ends[1]);
  REQUIRE(life->Put("p", "", std::array{reader.get(), writer.get()}));
  writer.Reset();
  pollfd state{.fd = reader.get(), .events = POLLIN, .revents = 0};
  CHECK(poll(&state, 1, 50) == 0);
  life->DropFd("p", 1);
  CHECK(poll(&state, 1, 5000) == 1);
  CHECK((state.revents & POLLHUP) != 0);
}

TEST_CASE("what cannot be kept is refused and leaves all as it was") {
  Store store(1 + 3);
  {
    const Life life(&store);
    const Fd a = Marked("a");
    const std::vector<int> fds(kMaxStoreFds + 1, a.get());
    CHECK(life->Put("many", "", fds).error().err == EINVAL);
    CHECK(life->Put(std::string(4097, 'k'), "").error().err == EINVAL);
    CHECK(life->Put("long", std::string((16 << 20) + 1, 'v')).error().err == ENOSPC);
    REQUIRE(life->Put("one", "1", std::span(fds).first(3)));
    CHECK(life->Put("one", "2", std::span(fds).first(1)).error().err == ENOSPC);
    CHECK(life->Put("two", "", std::span(fds).first(1)).error().err == ENOSPC);
    CHECK(life->Update("one", std::string((16 << 20) + 1, 'v')).error().err == ENOSPC);
    life->DropFd("one", 1);
    REQUIRE(life->Put("two", "2", std::span(fds).first(1)));
  }
  CHECK(Left(&store) == "one=1[a,-,a] two=2[a] ");
}

TEST_CASE("values are bounded altogether") {
  Store store;
  const Life life(&store);
  const std::string large(16 << 20, 'v');
  for (int i = 0; i < 15; ++i) REQUIRE(life->Put(std::to_string(i), large));
  CHECK(life->Put("one more", large).error().err == ENOSPC);
  REQUIRE(life->Put("small", "v"));
  CHECK(life->Update("small", large).error().err == ENOSPC);
  life->Remove("3");
  CHECK(life->Update("small", large));
}

TEST_CASE("compaction keeps what is live, in order, and gives the memory back") {
  Store store;
  std::string expected;
  {
    const Life life(&store);
    const Fd a = Marked("a");
    const Fd b = Marked("b");
    for (int i = 0; i < 20; ++i) {
      REQUIRE(life->Put("k" + std::to_string(i), "", std::array{a.get(), b.get()}));
      life->DropFd("k" + std::to_string(i), static_cast<size_t>(i) % 2);
    }
    life->Remove("k7");
    for (int round = 0; round < 500; ++round) {
      for (int i = 19; i >= 0; --i) {
        const auto updated =
            life->Update("k" + std::to_string(i), std::to_string(round) + std::string(1000, '.'));
        CHECK(updated.has_value() == (i != 7));
      }
    }
  }
  CHECK(LogOf(&store).size() < (1 << 20) + 2000);
  {
    Store replaced;
    const Life life(&replaced);
    for (int i = 0; i < 2100; ++i) REQUIRE(life->Put("k", std::string(1000, '.')));
    CHECK(LogOf(&replaced).size() < (1 << 20) + 2000);
  }
  for (int i = 0; i < 20; ++i) {
    if (i == 7) continue;
    expected +=
        "k" + std::to_string(i) + "=499" + std::string(1000, '.') + (i % 2 == 0 ? "[-,b] " : "[a,-] ");
  }
  CHECK(Left(&store) == expected);
}

TEST_CASE("a crash while init is asked to hold the compacted log loses nothing, whether init has it or not") {
  for (const bool served : {false, true}) {
    CAPTURE(served);
    Store store;
    std::atomic<bool> waiting = false;
    std::atomic<bool> go_on = false;
    bool first = true;
    const auto gate = [&](const InitPacket& packet) {
      if (packet.message.op != static_cast<uint32_t>(InitOp::kStorePut) || packet.message.arg != kKeepFileKey)
        return;
      if (std::exchange(first, false)) return;  // that of Open
      waiting = true;
      waiting.notify_all();
      go_on.wait(false);
    };
    Fd as_left;
    {
      const Life life(&store, served ? InitThread::Hook() : gate, served ? gate : InitThread::Hook());
      const Fd a = Marked("a");
      REQUIRE(life->Put("removed", "", std::array{a.get()}));
      REQUIRE(life->Put("updated", ""));
      std::thread writer([&] {
        for (int i = 0; i < 1100 && !waiting; ++i)
          std::ignore = life->Update("updated", std::string(1000, 'x'));
      });
      waiting.wait(false);
      // Neither waits for init.
      CHECK(life->Update("updated", "last"));
      life->Remove("removed");
      as_left = Held(&store, kKeepFileKey);  // init's thread stands still
      struct stat info{};
      REQUIRE(fstat(as_left.get(), &info) == 0);
      CHECK((info.st_size > (1 << 20)) == !served);
      Fd copy(memfd_create("copy", MFD_CLOEXEC));
      off_t at = 0;
      while (at < info.st_size) REQUIRE(sendfile(copy.get(), as_left.get(), &at, 1 << 30) > 0);
      as_left = std::move(copy);
      go_on = true;
      go_on.notify_all();
      writer.join();
    }
    // As a crash at that moment would have left it.
    Hold(&store, kKeepFileKey, std::move(as_left));
    CHECK(Left(&store) == "updated=last[] ");
  }
}

TEST_CASE("a compacted log that init refuses is offered again, and nothing is lost meanwhile") {
  Store store;
  int refuse = 1 + 2;  // that of Open passes
  int asked = 0;
  {
    const Life life(&store, [&](const InitPacket& packet) {
      if (packet.message.arg != kKeepFileKey || packet.fds.empty()) return;
      ++asked;
      if (asked > 1 && asked <= refuse) const_cast<InitPacket&>(packet).fds.clear();
    });
    REQUIRE(life->Put("k", ""));
    for (int i = 0; i < 6000; ++i) REQUIRE(life->Update("k", std::to_string(i) + std::string(1000, 'x')));
  }
  CHECK(asked > refuse);
  CHECK(LogOf(&store).size() < (2 << 20));
  CHECK(Left(&store) == "k=5999" + std::string(1000, 'x') + "[] ");
}

TEST_CASE("a log cut anywhere gives the records before the cut") {
  Store store;
  std::vector<size_t> ends;
  {
    const Life life(&store);
    for (int i = 0; i < 3; ++i) {
      REQUIRE(life->Put("k" + std::to_string(i), "value"));
      ends.push_back(LogOf(&store).size());
    }
  }
  const std::string whole = LogOf(&store);
  const std::string all[] = {"", "k0=value[] ", "k0=value[] k1=value[] ",
                             "k0=value[] k1=value[] k2=value[] "};
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    CAPTURE(cut);
    SetLog(&store, whole.substr(0, cut));
    const auto complete =
        static_cast<size_t>(std::count_if(ends.begin(), ends.end(), [&](size_t end) { return end <= cut; }));
    {
      const Life life(&store);
      CHECK(Tell(life->TakeEntries()) == all[complete]);
      REQUIRE(life->Put("more", "m"));
    }
    // What came after the cut is no part of the log any more.
    CHECK(Left(&store) == all[complete] + "more=m[] ");
    // All or nothing: also in the words of the reader.
    const auto log = gcs::guest::ReadKeepLog(std::string_view(whole).substr(0, cut));
    const size_t good = complete == 0 ? 0 : ends[complete - 1];
    CHECK(log.good == good);
    CHECK(log.cut == (cut > good));
  }
}

TEST_CASE("a log that is damaged gives what comes before the damage") {
  Store store;
  std::vector<size_t> ends = {0};
  {
    const Life life(&store);
    for (int i = 0; i < 3; ++i) {
      const Fd fd = Marked("f" + std::to_string(i));
      REQUIRE(life->Put("k" + std::to_string(i), "value", std::array{fd.get()}));
      ends.push_back(LogOf(&store).size());
    }
  }
  const std::string whole = LogOf(&store);
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x41);
    const auto log = gcs::guest::ReadKeepLog(damaged);
    const size_t before =
        static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), at) - ends.begin()) - 1;
    CAPTURE(at);
    REQUIRE(log.entries.size() == before);
    REQUIRE(log.good == ends[before]);
  }
  std::string damaged = whole;
  damaged[ends[1] + 45] ^= 1;
  SetLog(&store, damaged);
  CHECK(Left(&store) == "k0=value[f0] ");
  // Those of the entries that are lost are not held for ever.
  CHECK(store.size() == 1 + 1);
  for (const std::string& foreign : {std::string(100'000, '\0'), std::string("x"), std::string(5000, 'K')}) {
    SetLog(&store, foreign);
    CHECK(Left(&store).empty());
  }
  int ends_of_pipe[2];
  REQUIRE(pipe2(ends_of_pipe, O_CLOEXEC) == 0);
  Hold(&store, kKeepFileKey, Fd(ends_of_pipe[0]));
  close(ends_of_pipe[1]);
  CHECK(Left(&store).empty());
}

TEST_CASE(
    "descriptors that nothing refers to are dropped, others' keys are left alone; a missing one is invalid") {
  Store store;
  {
    const Life life(&store);
    const Fd a = Marked("a");
    REQUIRE(life->Put("k", "v", std::array{a.get(), a.get()}));
  }
  Hold(&store, 2, Marked("of somebody else"));
  for (const uint64_t key : {kFirstKeepFd + 2, kFirstKeepFd + 3, kFirstKeepFd + 9})
    Hold(&store, key, Marked("x"));
  CHECK(Left(&store) == "k=v[a,a] ");
  CHECK(store.size() == 1 + 1 + 2);
  Hold(&store, kFirstKeepFd + 9, Marked("x"));
  {
    // Their numbers are not given again while a drop may be on its way.
    const Life life(&store);
    const Fd b = Marked("b");
    REQUIRE(life->Put("l", "", std::array{b.get()}));
  }
  CHECK(MarkOf(Held(&store, kFirstKeepFd + 10)) == "b");
  InitPacket drop{
      .message = {.op = static_cast<uint32_t>(InitOp::kStoreDrop), .arg = kFirstKeepFd, .arg2 = 1}};
  REQUIRE(store.Serve(-1, drop));
  CHECK(Left(&store) == "k=v[-,a] l=[b] ");
}

TEST_CASE("any thread may keep, all of it is there") {
  Store store;
  {
    const Life life(&store);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        const Fd fd = Marked(std::to_string(t));
        for (int i = 0; i < 300; ++i) {
          const std::string key = std::to_string(t) + "." + std::to_string(i);
          if (!life->Put(key, std::string(2000, 'v'), std::array{fd.get(), fd.get()})) abort();
          if (!life->Update(key, key)) abort();
          life->DropFd(key, 0);
          if (i % 3 != 0) life->Remove(key);
        }
      });
    }
    for (auto& thread : threads) thread.join();
  }
  std::set<std::string> seen;
  for (const auto& entry : Life(&store)->TakeEntries()) {
    seen.insert(entry.key);
    CHECK(entry.value == entry.key);
    REQUIRE(entry.fds.size() == 2);
    CHECK_FALSE(entry.fds[0].valid());
    CHECK(MarkOf(entry.fds[1]) == entry.key.substr(0, 1));
  }
  CHECK(seen.size() == 4 * 100);
  CHECK(store.size() == 1 + 400);
}

// What a process that is to be killed has done and been told of, as it went.
struct Done {
  int put;      // number of the last Put that returned
  int putting;  // of the one before which this was written
};

// Keeps, replaces and removes until it is killed: entry number n is under key n % 10 with the value n and
// as many descriptors as n % 4, marked n; before n it removes key n % 7 at times.
[[noreturn]] void Storm(Fd agent, int done) {
  const auto line = LineOver(std::move(agent));
  auto keep = Keep::Open(line.get());
  if (!keep) _exit(1);
  for (int n = 1;; ++n) {
    const Done before{n - 1, n};
    if (pwrite(done, &before, sizeof before, 0) != sizeof before) _exit(2);
    std::vector<Fd> marks;
    std::vector<int> fds;
    for (int i = 0; i < n % 4; ++i) {
      marks.push_back(Marked(std::to_string(n)));
      fds.push_back(marks.back().get());
    }
    // Large enough that some are cut in the middle, and that there is a compaction now and then.
    if (!(*keep)->Put(std::to_string(n % 10),
                      std::to_string(n) + std::string(static_cast<size_t>(n % 13) * 9000, '.'), fds))
      _exit(3);
  }
}

TEST_CASE("an agent killed at any moment has left all that it was told is kept, and nothing else") {
  std::mt19937 random(4711);
  int most = 0;
  for (int round = 0; round < 100; ++round) {
    CAPTURE(round);
    Store store;
    const Fd done = Marked(std::string(sizeof(Done), '\0'));
    auto pair = MakePair();
    const pid_t child = fork();
    if (child == 0) {
      pair.second.Reset();
      Storm(std::move(pair.first), done.get());
    }
    REQUIRE(child > 0);
    pair.first.Reset();
    {
      const InitThread init(&store, std::move(pair.second));
      usleep(std::uniform_int_distribution<useconds_t>(500, 30'000)(random));
      kill(child, SIGKILL);
      int status = 0;
      REQUIRE(waitpid(child, &status, 0) == child);
      REQUIRE(WIFSIGNALED(status));
    }
    Done last{};
    REQUIRE(pread(done.get(), &last, sizeof last, 0) == sizeof last);
    std::map<std::string, int> expected;
    for (int n = 1; n <= last.put; ++n) expected[std::to_string(n % 10)] = n;
    size_t fds = 0;
    const Life life(&store);
    const auto entries = life->TakeEntries();
    for (const auto& entry : entries) {
      CAPTURE(entry.key);
      const auto n = static_cast<int>(strtol(entry.value.c_str(), nullptr, 10));
      const bool in_flight = n == last.putting && entry.key == std::to_string(n % 10);
      const auto found = expected.find(entry.key);
      REQUIRE((in_flight || (found != expected.end() && found->second == n)));
      CHECK(entry.value.size() == std::to_string(n).size() + static_cast<size_t>(n % 13) * 9000);
      REQUIRE(entry.fds.size() == static_cast<size_t>(n % 4));
      for (const Fd& fd : entry.fds) CHECK(MarkOf(fd) == std::to_string(n));
      fds += entry.fds.size();
      if (found != expected.end()) expected.erase(found);
    }
    CHECK(expected.empty());
    // Open's drops are done when a later packet is answered.
    REQUIRE(life.line->TakeAll());
    CHECK(store.size() == 1 + fds);
    most = std::max(most, last.put);
  }
  CHECK(most > 20);
}

TEST_CASE("a line that is not connected or not answered is an error") {
  unsetenv(gcs::base::kInitFdVariable);
  const auto none = InitLine::FromEnvironment();
  REQUIRE(none);
  CHECK(Keep::Open(none->get()).error().err == EBUSY);
  auto pair = MakePair();
  const auto line = LineOver(std::move(pair.first));
  pair.second.Reset();
  CHECK(Keep::Open(line.get()).error().err == EPIPE);
  line->Drop(1, 1);
}

TEST_CASE("drops never wait for init and none is lost") {
  auto pair = MakePair();
  const auto line = LineOver(std::move(pair.first));
  constexpr uint64_t kDrops = 20'000;
  const int64_t begin = gcs::base::MonotonicNs();
  for (uint64_t i = 0; i < kDrops; ++i) line->Drop(2 * i, 1);
  CHECK(gcs::base::MonotonicNs() - begin < 5 * gcs::base::kNsPerSec);
  Store store;
  std::set<uint64_t> seen;
  {
    const InitThread init(&store, std::move(pair.second), [&](const InitPacket& packet) {
      if (packet.message.op == static_cast<uint32_t>(InitOp::kStoreDrop)) seen.insert(packet.message.arg);
    });
    for (int tries = 0; tries < 1000 && seen.size() < kDrops; ++tries) {
      CHECK(line->TakeAll());
    }
    const_cast<std::unique_ptr<InitLine>&>(line).reset();
  }
  CHECK(seen.size() == kDrops);
}

}  // namespace
