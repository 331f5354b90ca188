// SPDX-License-Identifier: Apache-2.0
#include "guest/journal.h"

#include <doctest/doctest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace {

using gcs::guest::ContainerStarted;
using gcs::guest::DeviceChanged;
using gcs::guest::Event;
using gcs::guest::EventGap;
using gcs::guest::Journal;

std::vector<Event> Read(const Journal& journal, uint64_t after, size_t limit = 1000) {
  auto events = journal.Read(after, limit);
  REQUIRE(events.has_value());
  return *std::move(events);
}

TEST_CASE("events are numbered from 1 and read after the cursor") {
  Journal journal;
  CHECK(Read(journal, 0).empty());
  CHECK(journal.Append("a", "", ContainerStarted{}) == 1);
  CHECK(journal.Append("b", "p", gcs::guest::ProcessStarted{7}) == 2);
  CHECK(journal.Append("c", "", ContainerStarted{}) == 3);
  const auto events = Read(journal, 1);
  REQUIRE(events.size() == 2);
  CHECK(events[0].sequence == 2);
  CHECK(events[0].container_id == "b");
  CHECK(events[0].process_id == "p");
  CHECK(std::get<gcs::guest::ProcessStarted>(events[0].body).pid == 7);
  CHECK(events[0].time_ns > 0);
  CHECK(Read(journal, 3).empty());
  CHECK(Read(journal, 0, 2).size() == 2);
}

TEST_CASE("a cursor beyond the newest event is an error") {
  Journal journal;
  const auto none = journal.Read(1, 10);
  REQUIRE(!none.has_value());
  CHECK(none.error().err == ERANGE);
}

TEST_CASE("an overflow is reported as a gap to those that had a cursor before it") {
  Journal journal({.events = 4, .bytes = 1 << 20});
  for (int i = 0; i < 10; ++i) journal.Append(std::to_string(i), "", ContainerStarted{});
  auto events = Read(journal, 3);
  REQUIRE(events.size() == 5);
  CHECK(std::get<EventGap>(events[0].body).lost == 3);  // 4, 5, 6
  CHECK(events[0].sequence == 6);
  CHECK(events[1].sequence == 7);
  // Going on from the gap's number misses nothing and reports nothing twice.
  events = Read(journal, 6);
  REQUIRE(events.size() == 4);
  CHECK(events[0].sequence == 7);
  // 0 asks for what is kept.
  events = Read(journal, 0);
  REQUIRE(events.size() == 4);
  CHECK(events[0].sequence == 7);
}

TEST_CASE("long events are bounded by bytes, and the newest is always kept") {
  Journal journal({.events = 1000, .bytes = 10'000});
  for (int i = 0; i < 100; ++i) journal.Append("c", "", DeviceChanged{true, std::string(1000, 'd')});
  CHECK(Read(journal, 0).size() < 10);
  journal.Append("c", "", DeviceChanged{true, std::string(50'000, 'd')});
  const auto events = Read(journal, 0);
  REQUIRE(events.size() == 1);
  CHECK(events[0].sequence == 101);
}

TEST_CASE("watchers are woken for each event until they are removed") {
  Journal journal;
  int first = 0;
  int second = 0;
  const uint64_t a = journal.AddWatch([&] { ++first; });
  journal.AddWatch([&] { ++second; });
  journal.Append("x", "", ContainerStarted{});
  journal.RemoveWatch(a);
  journal.Append("x", "", ContainerStarted{});
  CHECK(first == 1);
  CHECK(second == 2);
}

TEST_CASE("a reader that follows many writers sees every event once, in order") {
  Journal journal;
  constexpr int kWriters = 4;
  constexpr int kEach = 1000;
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([&] {
      for (int i = 0; i < kEach; ++i) journal.Append("x", "", ContainerStarted{});
    });
  }
  uint64_t cursor = 0;
  bool in_order = true;
  while (cursor < kWriters * kEach) {
    for (const Event& event : Read(journal, cursor, 16)) {
      in_order = in_order && event.sequence == cursor + 1;
      cursor = event.sequence;
    }
  }
  for (auto& writer : writers) writer.join();
  CHECK(in_order);
}

}  // namespace
