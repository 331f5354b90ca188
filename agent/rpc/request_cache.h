// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/support/status.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"

namespace gcs::rpc {

// Makes mutating calls repeatable: the first call with a key acts, every later one gets its answer; those
// that come while it still acts wait for it. Answers are kept for a time and within bounds, the oldest given
// up first; calls that act are always kept. Any thread.
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
  RequestCache(const RequestCache&) = delete;
  RequestCache& operator=(const RequestCache&) = delete;

  // True: the key is new, and the caller acts and calls Complete exactly once. False: `deliver` is called
  // once with the first call's answer, now or at its Complete. `now_ns` is CLOCK_MONOTONIC.
  bool Begin(const std::string& key, Deliver deliver, int64_t now_ns);
  void Complete(const std::string& key, const Answer& answer, int64_t now_ns);

  [[nodiscard]] size_t entries() const;

 private:
  struct Entry {
    bool complete = false;
    Answer answer;
    std::vector<Deliver> waiting;
    int64_t expires_ns = 0;
    std::list<std::string>::iterator place;  // in completed_, when complete
  };
  void Drop(int64_t now_ns);
  static size_t SizeOf(const std::string& key, const Entry& entry);

  const Limits limits_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Entry> entries_;
  std::list<std::string> completed_;  // keys, oldest answer first
  size_t bytes_ = 0;                  // of the completed entries
};

}  // namespace gcs::rpc
