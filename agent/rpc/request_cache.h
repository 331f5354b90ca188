// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/support/status.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "guest/keep.h"

namespace gcs::rpc {

// Makes mutating calls repeatable: the first call with a key acts, every later one gets its answer; those
// that come while it still acts wait for it. Answers are kept for a time and within bounds, the oldest given
// up first; calls that act are always kept. With a Keep all of it outlives the agent. Any thread.
class RequestCache {
 public:
  struct Answer {
    grpc::Status status;
    std::string response;  // serialized; empty unless status is OK
  };
  using Deliver = std::function<void(const Answer&)>;

  struct Limits {
    int64_t life_ns = 600 * base::kNsPerSec;  // from the answer on
    size_t entries = 4096;
    size_t bytes = 4 << 20;
  };

  explicit RequestCache(Limits limits = {600 * base::kNsPerSec, 4096, 4 << 20});
  // A call that an agent that crashed was at.
  struct Open {
    std::string key;  // "ContainerService.Create\n<request id>"
    std::string subject;
    int64_t begun_ns = 0;  // CLOCK_REALTIME
  };
  // Before the first Begin. Takes over what an earlier agent has answered and what it was at. Each of the
  // latter is to be ended by Complete or Abort; until then its repetitions wait.
  std::vector<Open> KeepIn(guest::Keep* keep, const std::vector<guest::Keep::Entry>& entries, int64_t now_ns);
  RequestCache(const RequestCache&) = delete;
  RequestCache& operator=(const RequestCache&) = delete;

  // True: the key is new, and the caller acts and calls Complete exactly once. False: `deliver` is called
  // once with the first call's answer, now or at its Complete. `now_ns` is CLOCK_MONOTONIC.
  // `subject` is what the call is about, for who has to end it after a crash.
  bool Begin(const std::string& key, std::string_view subject, Deliver deliver, int64_t now_ns);
  void Complete(const std::string& key, const Answer& answer, int64_t now_ns);

  // Nothing has come of the call: whoever repeats it acts anew. Those that wait for it are told to
  // (UNAVAILABLE).
  void Abort(const std::string& key);

  [[nodiscard]] size_t entries() const;

 private:
  struct Entry {
    bool complete = false;
    Answer answer;
    std::vector<Deliver> waiting;
    int64_t expires_ns = 0;
    std::list<std::string>::iterator place;  // in completed_, when complete
  };
  void Insert(const std::string& key, Entry& entry, const Answer& answer, int64_t expires_ns);
  void Drop(int64_t now_ns);
  static size_t SizeOf(const std::string& key, const Entry& entry);

  const Limits limits_;
  guest::Keep* keep_ = nullptr;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Entry> entries_;
  std::list<std::string> completed_;  // keys, oldest answer first
  size_t bytes_ = 0;                  // of the completed entries
};

}  // namespace gcs::rpc
