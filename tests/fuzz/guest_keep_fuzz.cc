// SPDX-License-Identifier: Apache-2.0
// Of any bytes the reader takes records up to some point: the bytes up to there give the same without a rest,
// and what they come to, written again, gives the same once more.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz/require.h"
#include "guest/keep_log.h"

namespace {

using gcs::guest::KeepLog;
using gcs::guest::KeepOp;
using gcs::guest::KeepRecord;
using gcs::guest::KeptEntry;

bool Same(const KeepLog& a, const KeepLog& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (size_t i = 0; i < a.entries.size(); ++i) {
    const KeptEntry& x = a.entries[i];
    const KeptEntry& y = b.entries[i];
    if (x.key != y.key || x.value != y.value || x.first_fd != y.first_fd || x.count != y.count ||
        x.dropped != y.dropped) {
      return false;
    }
  }
  return true;
}

void Append(std::string& log, const KeepRecord& record, std::string_view key, std::string_view value) {
  const KeepRecord sealed = gcs::guest::SealKeepRecord(record, key, value);
  log.append(reinterpret_cast<const char*>(&sealed), sizeof sealed).append(key).append(value);
}

void Check(std::string_view bytes) {
  const KeepLog log = gcs::guest::ReadKeepLog(bytes);
  REQUIRE(log.good <= bytes.size());
  REQUIRE(!log.cut || log.good < bytes.size());
  const KeepLog good = gcs::guest::ReadKeepLog(bytes.substr(0, log.good));
  REQUIRE(good.good == log.good && !good.cut && Same(good, log));
  std::string again;
  for (const KeptEntry& entry : log.entries) {
    REQUIRE(entry.count <= 32);
    Append(again,
           {.op = KeepOp::kPut, .count = entry.count, .first_fd = entry.first_fd, .dropped = entry.dropped},
           entry.key, entry.value);
  }
  const KeepLog compacted = gcs::guest::ReadKeepLog(again);
  REQUIRE(compacted.good == again.size() && Same(compacted, log));
}

}  // namespace

// The bytes as they are, and as the fields of records whose sums are right: chance finds no CRC.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  Check(bytes);
  std::string log;
  for (size_t at = 0; at + 6 <= size;) {
    const uint8_t* field = data + at;
    const std::string_view key = bytes.substr(at + 6, field[4] % 4);
    const std::string_view value = bytes.substr(at + 6 + key.size(), field[5]);
    const uint64_t first =
        field[2] == 255 ? ~uint64_t{0} - field[3] : gcs::guest::kFirstKeepFd - 2 + field[2];
    Append(log,
           {.op = static_cast<KeepOp>(field[0] % 6),
            .count = field[1] % uint32_t{36},
            .first_fd = first,
            .dropped = field[3]},
           key, value);
    at += 6 + key.size() + value.size();
  }
  Check(log);
  return 0;
}
