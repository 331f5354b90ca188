// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace gcs::base {

using Json = nlohmann::json;

// Objects and arrays in each other that a document may have: what copies, compares or writes it takes stack
// for each.
inline constexpr size_t kMaxJsonDepth = 128;

// Parses a document of at most `limit` bytes (else EFBIG) and kMaxJsonDepth levels (else E2BIG). The error's
// message says where it is broken.
Result<Json> ParseJson(std::string_view text, std::string_view what, size_t limit = 16 << 20);

// Reads typed values out of a JSON object. The first value of a wrong type or range is remembered as an error
// that names its JSON path ("process.user.uid"); reading goes on with defaults, and the caller asks once, at
// the end: `if (auto e = r.error())`. null counts as absent. Keys that nobody asks for are ignored, as the
// OCI specification wants.
class JsonReader {
 public:
  // The document itself. `step` names the errors.
  JsonReader(const Json& value, std::string_view step);

  [[nodiscard]] bool Has(const char* key) const;
  // The object below `key`; an empty reader (every Has is false) if absent.
  JsonReader Object(const char* key);
  std::string String(const char* key, std::string_view fallback = {});
  std::string RequiredString(const char* key);
  bool Bool(const char* key, bool fallback = false);
  // Integers in [least, most].
  int64_t Int(const char* key, int64_t fallback, int64_t least, int64_t most);
  std::optional<int64_t> OptionalInt(const char* key, int64_t least, int64_t most);
  // Numbers from 0 to 2^64-1.
  uint64_t Uint64(const char* key, uint64_t fallback);
  std::vector<std::string> Strings(const char* key);
  std::vector<std::pair<std::string, std::string>> StringMap(const char* key);
  // The elements of an array of objects.
  std::vector<JsonReader> Objects(const char* key);

  // JSON path of `key` in this object.
  [[nodiscard]] std::string Path(std::string_view key) const;
  // Records an error about `key` (first one wins).
  void Fail(std::string_view key, std::string_view message, int err = EINVAL);
  [[nodiscard]] const std::optional<Error>& error() const { return *error_; }
  [[nodiscard]] const Json& value() const { return *value_; }

 private:
  JsonReader(const Json* value, std::string path, std::string step,
             std::shared_ptr<std::optional<Error>> error);
  const Json* Find(const char* key) const;

  const Json* value_;
  std::string path_;
  std::string step_;
  std::shared_ptr<std::optional<Error>> error_;
};

}  // namespace gcs::base
