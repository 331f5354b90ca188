// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "guest/init_line.h"
#include "guest/keep_log.h"

namespace gcs::guest {

struct KeepFile {
  base::Fd fd;
  uint64_t size = 0;
};

// What one life of the agent leaves to the next: values by key, each with descriptors. Values lie in a memory
// file that init holds, descriptors with init itself. Any thread.
class Keep {
 public:
  struct Entry {
    std::string key;
    std::string value;
    std::vector<base::Fd> fds;  // invalid where one has been dropped
  };

  // `line`: connected; must outlive the Keep. Takes over what the agent before has kept (readable by
  // TakeEntries) and has init close what nothing refers to. A log that is damaged is kept up to the damage.
  static base::Result<std::unique_ptr<Keep>> Open(InitLine* line);

  // Of the agent before, in the order they were first put; they stay kept. Once.
  std::vector<Entry> TakeEntries();

  // A new entry, or one that replaces that of the key with its descriptors. When it returns, a crash loses
  // nothing of it; after an error all is as before. EINVAL: more than kMaxStoreFds descriptors, a key above
  // 4 KiB. ENOSPC: a value above 16 MiB, more than 256 MiB altogether, init's store is full.
  // `pid`: a process whose exit init is to keep, should it reap it; with descriptors.
  base::Result<> Put(const std::string& key, std::string_view value, std::span<const int> fds = {},
                     int pid = 0);
  // How init has seen the process of an entry end; nothing if it hasn't. ENOENT. Asks init.
  base::Result<std::optional<base::InitExit>> ExitOf(const std::string& key);
  // Another value for a key that there is; its descriptors stay. ENOENT; ENOSPC as for Put.
  base::Result<> Update(const std::string& key, std::string_view value);
  // Drops one descriptor of an entry (index as in Put), e.g. the write end of a pipe whose reader is to see
  // the end. Never blocks on init.
  void DropFd(const std::string& key, size_t index);
  // With its descriptors; never blocks on init.
  void Remove(const std::string& key);

 private:
  struct Live {
    uint64_t first_fd = 0;
    uint32_t count = 0;
    uint32_t dropped = 0;
    uint64_t size = 0;  // of a record with all of it
  };
  explicit Keep(InitLine* line) : line_(line) {}
  base::Result<> TakeOver();
  // The rest but CompactIfWorth with mutex_ held.
  base::Result<> Append(const KeepRecord& record, std::string_view key, std::string_view value);
  base::Result<> CheckRoom(uint64_t before, uint64_t size) const;
  base::Result<KeepFile> Compacted() const;
  void CompactIfWorth();

  InitLine* const line_;
  std::mutex mutex_;  // never held while init is asked
  // The second is there while init is asked to hold it instead of the first: every record goes into both, so
  // that it does not matter which of them a crash leaves.
  KeepFile file_;
  KeepFile next_;
  bool compacting_ = false;
  uint64_t compact_above_ = 0;  // after a failure
  std::unordered_map<std::string, Live> live_;
  uint64_t live_size_ = 0;
  uint64_t next_fd_ = 0;
  std::vector<Entry> taken_over_;
};

}  // namespace gcs::guest
