// SPDX-License-Identifier: Apache-2.0
#include "guest/keep_log.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <unordered_map>

#include "base/init_control.h"

namespace gcs::guest {

namespace {

constexpr uint32_t kMagic = 0x3150454b;  // "KEP1"
constexpr size_t kSummed = offsetof(KeepRecord, op);

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < table.size(); ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320U : 0U);
    table[i] = value;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

uint32_t Sum(const KeepRecord& record, std::string_view key, std::string_view value) {
  const std::string_view fixed(reinterpret_cast<const char*>(&record) + kSummed, sizeof record - kSummed);
  return Crc32(value, Crc32(key, Crc32(fixed)));
}

// Entries with their places, so that every step takes the same time however many there are.
class Replay {
 public:
  // False if the record contradicts what came before it.
  bool Apply(const KeepRecord& record, std::string_view key, std::string_view value) {
    const auto found = places_.find(key);
    KeptEntry* const entry = found != places_.end() ? &*entries_[found->second] : nullptr;
    switch (record.op) {
      case KeepOp::kPut: {
        if (record.count > base::kMaxStoreFds || (record.count > 0 && record.first_fd < kFirstKeepFd) ||
            record.first_fd > std::numeric_limits<uint64_t>::max() - record.count) {
          return false;
        }
        const KeptEntry put{key, value, record.first_fd, record.count, record.dropped};
        if (entry != nullptr) {
          *entry = {found->first, value, put.first_fd, put.count, put.dropped};
        } else {
          places_.emplace(key, entries_.size());
          entries_.emplace_back(put);
        }
        return true;
      }
      case KeepOp::kUpdate:
        if (entry != nullptr) entry->value = value;
        return entry != nullptr;
      case KeepOp::kDropFd:
        if (entry == nullptr || record.count >= entry->count) return false;
        entry->dropped |= uint32_t{1} << record.count;
        return true;
      case KeepOp::kRemove:
        if (entry == nullptr) return false;
        entries_[found->second].reset();
        places_.erase(found);
        return true;
    }
    return false;
  }

  std::vector<KeptEntry> Entries() const {
    std::vector<KeptEntry> entries;
    for (const auto& entry : entries_) {
      if (entry) entries.push_back(*entry);
    }
    return entries;
  }

 private:
  std::vector<std::optional<KeptEntry>> entries_;
  std::unordered_map<std::string_view, size_t> places_;
};

}  // namespace

uint32_t Crc32(std::string_view bytes, uint32_t before) {
  uint32_t sum = ~before;
  for (const char byte : bytes) sum = kTable[(sum ^ static_cast<uint8_t>(byte)) & 0xff] ^ (sum >> 8);
  return ~sum;
}

KeepRecord SealKeepRecord(KeepRecord record, std::string_view key, std::string_view value) {
  record.magic = kMagic;
  record.key_size = static_cast<uint32_t>(key.size());
  record.value_size = value.size();
  record.crc = Sum(record, key, value);
  return record;
}

KeepLog ReadKeepLog(std::string_view bytes) {
  KeepLog log;
  Replay replay;
  while (log.good < bytes.size()) {
    const std::string_view rest = bytes.substr(log.good);
    KeepRecord record;
    const size_t begun = std::min(rest.size(), sizeof record);
    memcpy(&record, rest.data(), begun);
    if (begun < sizeof record) {
      log.cut = memcmp(rest.data(), &kMagic, std::min(begun, sizeof kMagic)) == 0;
      break;
    }
    if (record.magic != kMagic || record.key_size > kMaxKeepKey || record.value_size > kMaxKeepValue) break;
    const size_t size = sizeof record + record.key_size + record.value_size;
    if (rest.size() < size) {
      log.cut = true;
      break;
    }
    const std::string_view key = rest.substr(sizeof record, record.key_size);
    const std::string_view value = rest.substr(sizeof record + key.size(), record.value_size);
    if (Sum(record, key, value) != record.crc || !replay.Apply(record, key, value)) break;
    log.good += size;
  }
  log.entries = replay.Entries();
  return log;
}

}  // namespace gcs::guest
