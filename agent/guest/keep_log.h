// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace gcs::guest {

// The format of the file that Keep (keep.h) leaves to the next agent: records, one after the other, each
// written at once, in the machine's byte order. Both ends are the same program or its successor on the same
// machine.
enum class KeepOp : uint32_t {
  kPut = 1,     // the entry of the key, new or in the place of the one there is
  kUpdate = 2,  // another value for it
  kDropFd = 3,  // descriptor number `count` of it has been dropped
  kRemove = 4,
};

struct KeepRecord {
  uint32_t magic = 0;
  uint32_t crc = 0;  // CRC-32 of all that follows, key and value among it
  KeepOp op{};
  uint32_t count = 0;     // kPut: of its descriptors
  uint64_t first_fd = 0;  // kPut: init's key of the first one
  uint32_t dropped = 0;   // kPut: bit i: descriptor i has been dropped
  uint32_t key_size = 0;
  uint64_t value_size = 0;
};
static_assert(sizeof(KeepRecord) == 40);

// What init holds for us: the file itself, descriptors from here on.
inline constexpr uint64_t kKeepFileKey = 1;
inline constexpr uint64_t kFirstKeepFd = uint64_t{1} << 32;
inline constexpr size_t kMaxKeepKey = 4096;
inline constexpr size_t kMaxKeepValue = 16 << 20;

uint32_t Crc32(std::string_view bytes, uint32_t before = 0);

// `record` with magic, sizes and sum filled in.
KeepRecord SealKeepRecord(KeepRecord record, std::string_view key, std::string_view value);

// What the records up to some point come to.
struct KeptEntry {
  std::string_view key;
  std::string_view value;
  uint64_t first_fd = 0;
  uint32_t count = 0;
  uint32_t dropped = 0;
};
struct KeepLog {
  std::vector<KeptEntry> entries;  // in the order in which they were first put; point into the bytes
  size_t good = 0;                 // bytes up to the first record that is none
  // The rest is the beginning of a record that was being written when the agent ended; else it is damaged.
  bool cut = false;
};
// Of any bytes.
KeepLog ReadKeepLog(std::string_view bytes);

}  // namespace gcs::guest
