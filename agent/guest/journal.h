// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "guest/exit_status.h"
#include "guest/keep.h"

namespace gcs::guest {

// What can happen; events.proto has the meaning of each.
struct ContainerCreated {
  int pid = 0;
};
struct ContainerStarted {};
struct ProcessExited {
  ExitStatus exit;
};
struct ContainerOom {
  uint64_t kills = 0;
};
struct ContainerPaused {};
struct ContainerResumed {};
struct ContainerUpdated {};
struct ContainerDeleted {};
struct ProcessStarted {
  int pid = 0;
};
struct DeviceChanged {
  bool added = false;
  std::string device;
};
struct ClockStepped {
  int64_t step_ns = 0;
};
struct AgentStarted {
  uint32_t restarts = 0;
};
// Never stored: made by Read in the place of events that were dropped.
struct EventGap {
  uint64_t lost = 0;
};
using EventBody = std::variant<ContainerCreated, ContainerStarted, ProcessExited, ContainerOom,
                               ContainerPaused, ContainerResumed, ContainerUpdated, ContainerDeleted,
                               ProcessStarted, DeviceChanged, ClockStepped, AgentStarted, EventGap>;

struct Event {
  uint64_t sequence = 0;  // from 1; a gap has the number of the last event lost
  int64_t time_ns = 0;    // CLOCK_REALTIME
  std::string container_id;
  std::string process_id;
  EventBody body;
};

// What happened, in order, the newest kept within bounds. Any thread; nothing here blocks.
class Journal {
 public:
  struct Limits {
    size_t events = 8192;
    size_t bytes = 1 << 20;  // of the events as they lie in memory
  };

  // With a Keep the events outlive the agent: begins with those of `entries` (keys that start with kEventKey)
  // and keeps what is appended.
  explicit Journal(Limits limits = {8192, 1 << 20}, Keep* keep = nullptr);
  static constexpr std::string_view kEventKey = "event/";
  void Restore(const std::vector<Keep::Entry>& entries);
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Returns the event's sequence number.
  uint64_t Append(std::string container_id, std::string process_id, EventBody body);

  // The same unless the journal tells of it already: since the creation of the container, of this process and
  // with this kind of body. For what an agent that crashed may or may not have told.
  void AppendOnce(const std::string& container_id, const std::string& process_id, EventBody body);

  // Events after the cursor, oldest first, at most `limit` (at least 1). A cursor of 0 begins at the oldest
  // event kept; any other whose successor is no longer kept yields an EventGap first. ERANGE for a cursor
  // beyond the newest event: it comes from another life of the agent, and waiting for it would hide what has
  // happened since.
  base::Result<std::vector<Event>> Read(uint64_t after, size_t limit) const;

  uint64_t newest() const;

  // Calls `wake` after each new event, on the appender's thread and under the journal's lock: it must neither
  // block nor call the journal. After RemoveWatch it is not called any more.
  uint64_t AddWatch(std::function<void()> wake);
  void RemoveWatch(uint64_t id);

 private:
  uint64_t AppendLocked(std::string container_id, std::string process_id, EventBody body);
  void Trim();

  const Limits limits_;
  Keep* const keep_;
  mutable std::mutex mutex_;
  std::deque<Event> events_;
  size_t bytes_ = 0;
  uint64_t newest_ = 0;
  std::map<uint64_t, std::function<void()>> watches_;
  uint64_t next_watch_ = 1;
};

}  // namespace gcs::guest
