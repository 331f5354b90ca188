// SPDX-License-Identifier: Apache-2.0
#include "guest/keep.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "base/log.h"

namespace gcs::guest {

namespace {

constexpr uint64_t kSmallLog = 1 << 20;
constexpr uint64_t kLogPerLive = 4;
constexpr uint64_t kMostLive = 256 << 20;

// The content of a file that nobody makes shorter meanwhile.
class Mapping {
 public:
  static base::Result<Mapping> Of(int fd, uint64_t size) {
    if (size == 0) return Mapping(nullptr, 0);
    void* const at = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return base::ErrnoError("mmap", "kept log");
    return Mapping(at, size);
  }
  Mapping(Mapping&& other) noexcept
      : at_(std::exchange(other.at_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping() {
    if (at_ != nullptr) munmap(at_, size_);
  }
  [[nodiscard]] std::string_view bytes() const { return {static_cast<const char*>(at_), size_}; }

 private:
  Mapping(void* at, size_t size) : at_(at), size_(size) {}
  void* at_;
  size_t size_;
};

uint64_t RecordSize(std::string_view key, std::string_view value) {
  return sizeof(KeepRecord) + key.size() + value.size();
}

// At the end of `file`, or not at all.
base::Result<> WriteRecord(KeepFile& file, const KeepRecord& record, std::string_view key,
                           std::string_view value) {
  const KeepRecord sealed = SealKeepRecord(record, key, value);
  const iovec parts[] = {{const_cast<KeepRecord*>(&sealed), sizeof sealed},
                         {const_cast<char*>(key.data()), key.size()},
                         {const_cast<char*>(value.data()), value.size()}};
  const ssize_t n = pwritev(file.fd.get(), parts, std::size(parts), static_cast<off_t>(file.size));
  if (n == static_cast<ssize_t>(RecordSize(key, value))) {
    file.size += static_cast<uint64_t>(n);
    return {};
  }
  auto error = n < 0 ? base::ErrnoError("pwritev", "kept log")
                     : base::MakeError(ENOSPC, "pwritev", "kept log", "cut short");
  // Should this fail too: the next record overwrites the piece, a reader takes it for one cut short.
  (void)!ftruncate(file.fd.get(), static_cast<off_t>(file.size));
  return error;
}

base::Result<KeepFile> WriteEntries(std::span<const KeptEntry> entries) {
  KeepFile file{.fd = base::Fd(memfd_create("gcs-keep", MFD_CLOEXEC)), .size = 0};
  if (!file.fd) return base::ErrnoError("memfd_create", "kept log");
  for (const KeptEntry& entry : entries) {
    GCS_TRY(WriteRecord(
        file,
        {.op = KeepOp::kPut, .count = entry.count, .first_fd = entry.first_fd, .dropped = entry.dropped},
        entry.key, entry.value));
  }
  return file;
}

}  // namespace

base::Result<std::unique_ptr<Keep>> Keep::Open(InitLine* line) {
  std::unique_ptr<Keep> keep(new Keep(line));
  GCS_TRY(keep->TakeOver());
  return keep;
}

base::Result<> Keep::TakeOver() {
  GCS_ASSIGN(auto stored, line_->TakeAll());
  std::map<uint64_t, base::Fd> held;
  next_fd_ = kFirstKeepFd;
  for (auto& [key, fd] : stored) {
    if (key >= kFirstKeepFd) {
      next_fd_ = std::max(next_fd_, key + 1);
      held.emplace(key, std::move(fd));
    } else if (key == kKeepFileKey) {
      file_.fd = std::move(fd);
    }
  }
  struct stat info{};
  if (file_.fd && fstat(file_.fd.get(), &info) == 0 && S_ISREG(info.st_mode)) {
    file_.size = static_cast<uint64_t>(info.st_size);
  } else if (file_.fd) {
    base::Log(base::Level::kError, "what the agent before has kept is no file");
    file_.fd.Reset();
  }
  GCS_ASSIGN(const Mapping mapping, Mapping::Of(file_.fd.get(), file_.size));
  const KeepLog log = ReadKeepLog(mapping.bytes());
  size_t missing = 0;
  for (const KeptEntry& kept : log.entries) {
    Entry& entry =
        taken_over_.emplace_back(Entry{.key = std::string(kept.key), .value = std::string(kept.value)});
    for (uint32_t i = 0; i < kept.count; ++i) {
      base::Fd& fd = entry.fds.emplace_back();
      if ((kept.dropped >> i & 1) != 0) continue;
      const auto found = held.find(kept.first_fd + i);
      if (found == held.end()) {
        ++missing;
        continue;
      }
      fd = std::move(found->second);
      held.erase(found);
    }
    const uint64_t size = RecordSize(kept.key, kept.value);
    live_.emplace(entry.key, Live{kept.first_fd, kept.count, kept.dropped, size});
    live_size_ += size;
    next_fd_ = std::max(next_fd_, kept.first_fd + kept.count);
  }
  if (log.good < file_.size || missing > 0) {
    base::Log(log.cut && missing == 0 ? base::Level::kInfo : base::Level::kError,
              log.cut ? "the agent before ended while it kept something"
                      : "what the agent before has kept is damaged",
              {{"entries", std::to_string(log.entries.size())},
               {"bytes", std::to_string(file_.size)},
               {"good", std::to_string(log.good)},
               {"missing_descriptors", std::to_string(missing)}});
  }
  if (!file_.fd || log.good < file_.size) {
    GCS_ASSIGN(KeepFile written, WriteEntries(log.entries));
    GCS_TRY(line_->Put(kKeepFileKey, std::array{written.fd.get()}));
    file_ = std::move(written);
  }
  // Of Puts that did not come to their record and of drops that did not come to init.
  for (auto at = held.begin(); at != held.end();) {
    const uint64_t first = at->first;
    uint64_t count = 0;
    for (; at != held.end() && at->first == first + count; ++at) ++count;
    line_->Drop(first, count);
  }
  return {};
}

std::vector<Keep::Entry> Keep::TakeEntries() {
  const std::lock_guard lock(mutex_);
  return std::exchange(taken_over_, {});
}

base::Result<> Keep::CheckRoom(uint64_t before, uint64_t size) const {
  if (live_size_ - before + size <= kMostLive) return {};
  return base::MakeError(ENOSPC, "keep", {}, "more than 256 MiB");
}

base::Result<> Keep::Append(const KeepRecord& record, std::string_view key, std::string_view value) {
  const uint64_t before = file_.size;
  GCS_TRY(WriteRecord(file_, record, key, value));
  if (!next_.fd) return {};
  auto also = WriteRecord(next_, record, key, value);
  if (!also && ftruncate(file_.fd.get(), static_cast<off_t>(before)) == 0) file_.size = before;
  return also;
}

base::Result<> Keep::Put(const std::string& key, std::string_view value, std::span<const int> fds, int pid) {
  if (fds.size() > base::kMaxStoreFds) return base::MakeError(EINVAL, "keep", key, "too many descriptors");
  if (key.size() > kMaxKeepKey) return base::MakeError(EINVAL, "keep", {}, "key too long");
  if (value.size() > kMaxKeepValue) return base::MakeError(ENOSPC, "keep", key, "value too large");
  const auto count = static_cast<uint32_t>(fds.size());
  uint64_t first = 0;
  if (count > 0) {
    {
      const std::lock_guard lock(mutex_);
      first = next_fd_;
      next_fd_ += count;
    }
    if (auto stored = line_->Put(first, fds, pid); !stored) {
      line_->Drop(first, count);  // it may have come only late
      return stored;
    }
  }
  Live replaced;
  {
    const std::lock_guard lock(mutex_);
    const Live entry{first, count, 0, RecordSize(key, value)};
    const auto found = live_.find(key);
    if (found != live_.end()) replaced = found->second;
    auto done = CheckRoom(replaced.size, entry.size);
    if (done) done = Append({.op = KeepOp::kPut, .count = count, .first_fd = first}, key, value);
    if (!done) {
      line_->Drop(first, count);
      return done;
    }
    live_[key] = entry;
    live_size_ += entry.size - replaced.size;
  }
  line_->Drop(replaced.first_fd, replaced.count);
  CompactIfWorth();
  return {};
}

base::Result<std::optional<base::InitExit>> Keep::ExitOf(const std::string& key) {
  uint64_t first = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(key);
    if (found == live_.end() || found->second.count == 0) return base::MakeError(ENOENT, "find exit", key);
    first = found->second.first_fd;
  }
  return line_->ExitOf(first);
}

base::Result<> Keep::Update(const std::string& key, std::string_view value) {
  if (value.size() > kMaxKeepValue) return base::MakeError(ENOSPC, "keep", key, "value too large");
  {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(key);
    if (found == live_.end()) return base::MakeError(ENOENT, "keep", key);
    const uint64_t size = RecordSize(key, value);
    GCS_TRY(CheckRoom(found->second.size, size));
    GCS_TRY(Append({.op = KeepOp::kUpdate}, key, value));
    live_size_ += size - found->second.size;
    found->second.size = size;
  }
  CompactIfWorth();
  return {};
}

void Keep::DropFd(const std::string& key, size_t index) {
  const std::lock_guard lock(mutex_);
  const auto found = live_.find(key);
  if (found == live_.end()) return;
  Live& entry = found->second;
  if (index >= entry.count || (entry.dropped >> index & 1) != 0) return;
  entry.dropped |= uint32_t{1} << index;
  const auto noted = Append({.op = KeepOp::kDropFd, .count = static_cast<uint32_t>(index)}, key, {});
  // The next agent then finds it missing.
  if (!noted) base::LogError("note that a kept descriptor is dropped", noted.error(), {{"key", key}});
  line_->Drop(entry.first_fd + index, 1);
}

void Keep::Remove(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const auto found = live_.find(key);
  if (found == live_.end()) return;
  const auto noted = Append({.op = KeepOp::kRemove}, key, {});
  if (!noted) base::LogError("note that what was kept is removed", noted.error(), {{"key", key}});
  line_->Drop(found->second.first_fd, found->second.count);
  live_size_ -= found->second.size;
  live_.erase(found);
}

base::Result<KeepFile> Keep::Compacted() const {
  GCS_ASSIGN(const Mapping mapping, Mapping::Of(file_.fd.get(), file_.size));
  const KeepLog log = ReadKeepLog(mapping.bytes());
  if (log.good != file_.size) {
    return base::MakeError(EBADMSG, "read", "kept log", "damaged at " + std::to_string(log.good));
  }
  return WriteEntries(log.entries);
}

void Keep::CompactIfWorth() {
  int fd = -1;
  {
    const std::lock_guard lock(mutex_);
    if (compacting_ || file_.size <= std::max({kSmallLog, kLogPerLive * live_size_, compact_above_})) return;
    compact_above_ = file_.size + kSmallLog;  // should it fail
    if (!next_.fd) {
      auto compacted = Compacted();
      if (!compacted) {
        base::LogError("compact the kept log", compacted.error());
        return;
      }
      next_ = *std::move(compacted);
    }
    compacting_ = true;
    fd = next_.fd.get();
  }
  const auto stored = line_->Put(kKeepFileKey, std::array{fd});
  const std::lock_guard lock(mutex_);
  compacting_ = false;
  if (!stored) {
    base::LogError("compact the kept log", stored.error());
    return;
  }
  file_ = std::exchange(next_, {});
  compact_above_ = 0;
}

}  // namespace gcs::guest
