// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

#include "base/fd.h"
#include "base/init_control.h"

namespace gcs::init {

// Descriptors that init holds for the agent, by key, across the agent's lives (kStore* in
// base/init_control.h).
class Store {
 public:
  static constexpr size_t kMost = 65'536;

  explicit Store(size_t most = kMost) : most_(most) {}

  // Does what a well-formed request asks and answers on `line`, without waiting. False, with nothing done, if
  // the request is no store's.
  bool Serve(int line, base::InitPacket& packet);

  // Of a process that init has reaped.
  void NoteExit(pid_t pid, const base::InitExit& exit);

  [[nodiscard]] size_t size() const { return held_.size(); }
  void Clear() { Drop(0, UINT64_MAX); }
  void set_most(size_t most) { most_ = most; }

 private:
  struct Watched {
    pid_t pid = 0;
    std::optional<base::InitExit> exit;
  };

  int Put(uint64_t first, uint64_t pid, base::InitPacket& packet);  // an errno
  void SendExit(int line, const base::InitMessage& request) const;
  void Drop(uint64_t first, uint64_t count);
  void SendFrom(int line, const base::InitMessage& request) const;

  size_t most_;
  std::map<uint64_t, base::Fd> held_;
  std::map<uint64_t, Watched> watched_;  // by the first key of their Put
  std::map<pid_t, uint64_t> living_;     // those without an exit, to that key
};

// Lets this process have as many descriptors as a full store takes. `before`: the limit until now, for those
// whom it starts. Returns how many the store may have.
size_t RaiseFileLimit(rlimit& before);

}  // namespace gcs::init
