// SPDX-License-Identifier: Apache-2.0
// The journal and the records of containers over the lives of an agent.
#include <doctest/doctest.h>

#include "guest/container_keep.h"
#include "guest/event_text.h"
#include "guest/journal.h"
#include "unit/keep_rig.h"

namespace gcs::guest::test {
namespace {

std::vector<Event> All(const Journal& journal) {
  auto events = journal.Read(0, SIZE_MAX);
  REQUIRE(events);
  return *events;
}

const ExitStatus kExit{.exit_code = 137,
                       .signal = 9,
                       .oom_killed = true,
                       .started_at_ns = 1,
                       .exited_at_ns = 2,
                       .user_time_ns = 3,
                       .system_time_ns = 4,
                       .max_rss_kib = 5};

TEST_CASE("events outlive the agent, whatever they tell, and go on with the next number") {
  const std::vector<EventBody> bodies{
      ContainerCreated{7}, ContainerStarted{},         ProcessExited{kExit}, ContainerOom{3},
      ContainerPaused{},   ContainerResumed{},         ContainerUpdated{},   ContainerDeleted{},
      ProcessStarted{8},   DeviceChanged{true, "sda"}, ClockStepped{-5},     AgentStarted{2}};
  Store store;
  std::vector<Event> told;
  {
    const Life life(&store);
    Journal journal({}, life.keep.get());
    for (const EventBody& body : bodies) journal.Append("c", "p\"\xff", body);
    told = All(journal);
  }
  const Life life(&store);
  Journal journal({}, life.keep.get());
  journal.Restore(life.keep->TakeEntries());
  const auto events = All(journal);
  REQUIRE(events.size() == told.size());
  for (size_t i = 0; i < events.size(); ++i) {
    CHECK(events[i].sequence == told[i].sequence);
    CHECK(events[i].time_ns == told[i].time_ns);
    CHECK(events[i].container_id == "c");
    CHECK(events[i].body.index() == bodies[i].index());
    // The text holds all that there is of a body.
    Event same = told[i];
    same.process_id = events[i].process_id;
    CHECK(EncodeEvent(events[i]) == EncodeEvent(same));
  }
  CHECK(std::get<ProcessExited>(events[2].body).exit.max_rss_kib == 5);
  CHECK(journal.Append("", "", AgentStarted{3}) == told.size() + 1);
}

TEST_CASE("what the journal drops is not kept either") {
  Store store;
  {
    const Life life(&store);
    Journal journal({.events = 3, .bytes = 1 << 20}, life.keep.get());
    for (int i = 0; i < 10; ++i) journal.Append("c", "", ContainerStarted{});
  }
  const Life life(&store);
  CHECK(life.keep->TakeEntries().size() == 3);
}

TEST_CASE("what an agent may have told is told once") {
  Journal journal;
  journal.Append("c", "", ContainerCreated{1});
  journal.Append("c", "", ProcessExited{kExit});
  journal.Append("c", "", ContainerDeleted{});
  journal.AppendOnce("c", "", ContainerDeleted{});
  CHECK(journal.newest() == 3);
  journal.AppendOnce("c", "", ContainerCreated{2});  // another one of that id
  journal.AppendOnce("c", "", ContainerCreated{2});
  CHECK(journal.newest() == 4);
  journal.AppendOnce("c", "", ProcessExited{kExit});  // not this one's exit
  CHECK(journal.newest() == 5);
  journal.AppendOnce("c", "", ProcessExited{kExit});
  journal.AppendOnce("c", "exec", ProcessExited{kExit});
  journal.AppendOnce("d", "", ContainerStarted{});
  CHECK(journal.newest() == 7);
}

TEST_CASE("an event that is none is refused") {
  for (const char* text : {"", "{}", R"({"kind": 99})", R"({"kind": 0, "body": {"pid": "x"}})", "[1]"}) {
    CHECK_FALSE(DecodeEvent(text));
  }
}

TEST_CASE("records of containers and processes are read as they were written") {
  const ContainerRecord container{.cgroup_path = "/containers/c",
                                  .created_at_ns = INT64_MAX,
                                  .labels = {{"a", "b"}, {"a", "c"}},
                                  .owned_mounts = {"m1", "m2"},
                                  .deleting = true};
  const auto again = DecodeContainer(Encode(container));
  REQUIRE(again);
  CHECK(Encode(*again) == Encode(container));
  CHECK(again->labels == container.labels);
  const ProcessRecord process{.pid = 42,
                              .terminal = true,
                              .stdio = {.in = {stdio::Mode::kSocket, 0x40000001},
                                        .out = {stdio::Mode::kStream, 0},
                                        .overflow = stdio::Overflow::kDropOldest,
                                        .ring_bytes = 4096},
                              .parts = {stdio::Part::kIn, stdio::Part::kMaster},
                              .starting = true,
                              .started_at_ns = 5,
                              .oom_kills_before = 6,
                              .exit = kExit};
  const auto same = DecodeProcess(Encode(process));
  REQUIRE(same);
  CHECK(Encode(*same) == Encode(process));
  CHECK(same->parts == process.parts);
  CHECK(same->exit->signal == 9);
  CHECK_FALSE(DecodeProcess("{}"));
  CHECK_FALSE(DecodeContainer("{}"));
}

}  // namespace
}  // namespace gcs::guest::test
