// SPDX-License-Identifier: Apache-2.0
#include "base/json.h"

#include <algorithm>
#include <limits>

namespace gcs::base {

namespace {
const Json& EmptyObject() {
  static const Json empty = Json::object();
  return empty;
}

std::string_view TypeName(const Json& value) {
  switch (value.type()) {
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::null:
      return "null";
    default:
      return "a number";
  }
}

// Of objects and arrays in each other, as far as `text` is JSON.
size_t Depth(std::string_view text) {
  size_t depth = 0;
  size_t most = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      most = std::max(most, ++depth);
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return most;
}
}  // namespace

Result<Json> ParseJson(std::string_view text, std::string_view what, size_t limit) {
  if (text.size() > limit) {
    return MakeError(EFBIG, "parse JSON", what, "more than " + std::to_string(limit) + " bytes");
  }
  if (Depth(text) > kMaxJsonDepth) {
    return MakeError(E2BIG, "parse JSON", what, "more than " + std::to_string(kMaxJsonDepth) + " levels");
  }
  try {
    return Json::parse(text);
  } catch (const Json::exception& e) {
    return MakeError(EINVAL, "parse JSON", what, e.what());
  }
}

JsonReader::JsonReader(const Json& value, std::string_view step)
    : JsonReader(&value, "", std::string(step), std::make_shared<std::optional<Error>>()) {}

JsonReader::JsonReader(const Json* value, std::string path, std::string step,
                       std::shared_ptr<std::optional<Error>> error)
    : value_(value), path_(std::move(path)), step_(std::move(step)), error_(std::move(error)) {
  if (!value_->is_object()) {
    Fail("", "must be an object, is " + std::string(TypeName(*value_)));
    value_ = &EmptyObject();
  }
}

std::string JsonReader::Path(std::string_view key) const {
  if (path_.empty()) return std::string(key);
  if (key.empty()) return path_;
  return path_ + "." + std::string(key);
}

void JsonReader::Fail(std::string_view key, std::string_view message, int err) {
  if (!*error_) *error_ = Error{step_, err, Path(key), std::string(message)};
}

const Json* JsonReader::Find(const char* key) const {
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

bool JsonReader::Has(const char* key) const { return Find(key) != nullptr; }

JsonReader JsonReader::Object(const char* key) {
  const Json* found = Find(key);
  return {found != nullptr ? found : &EmptyObject(), Path(key), step_, error_};
}

std::string JsonReader::String(const char* key, std::string_view fallback) {
  const Json* found = Find(key);
  if (found == nullptr) return std::string(fallback);
  if (!found->is_string()) {
    Fail(key, "must be a string, is " + std::string(TypeName(*found)));
    return std::string(fallback);
  }
  const auto& text = found->get_ref<const std::string&>();
  if (text.find('\0') != std::string::npos) Fail(key, "contains a NUL character");
  return text;
}

std::string JsonReader::RequiredString(const char* key) {
  std::string text = String(key);
  if (text.empty()) Fail(key, "is required");
  return text;
}

bool JsonReader::Bool(const char* key, bool fallback) {
  const Json* found = Find(key);
  if (found == nullptr) return fallback;
  if (!found->is_boolean()) {
    Fail(key, "must be a boolean, is " + std::string(TypeName(*found)));
    return fallback;
  }
  return found->get<bool>();
}

std::optional<int64_t> JsonReader::OptionalInt(const char* key, int64_t least, int64_t most) {
  const Json* found = Find(key);
  if (found == nullptr) return std::nullopt;
  if (!found->is_number_integer()) {
    Fail(key, "must be an integer, is " + std::string(TypeName(*found)));
    return std::nullopt;
  }
  const bool too_big = found->is_number_unsigned() &&
                       found->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  const int64_t number = too_big ? 0 : found->get<int64_t>();
  if (too_big || number < least || number > most) {
    Fail(key, "must be from " + std::to_string(least) + " to " + std::to_string(most), ERANGE);
    return std::nullopt;
  }
  return number;
}

int64_t JsonReader::Int(const char* key, int64_t fallback, int64_t least, int64_t most) {
  return OptionalInt(key, least, most).value_or(fallback);
}

uint64_t JsonReader::Uint64(const char* key, uint64_t fallback) {
  const Json* found = Find(key);
  if (found == nullptr) return fallback;
  if (!found->is_number_unsigned()) {
    Fail(key, "must be an integer from 0 to 2^64-1");
    return fallback;
  }
  return found->get<uint64_t>();
}

std::vector<std::string> JsonReader::Strings(const char* key) {
  std::vector<std::string> strings;
  const Json* found = Find(key);
  if (found == nullptr) return strings;
  if (!found->is_array()) {
    Fail(key, "must be an array, is " + std::string(TypeName(*found)));
    return strings;
  }
  for (const Json& element : *found) {
    const std::string name = std::string(key) + "[" + std::to_string(strings.size()) + "]";
    if (!element.is_string()) {
      Fail(name, "must be a string, is " + std::string(TypeName(element)));
      return strings;
    }
    strings.push_back(element.get<std::string>());
    if (strings.back().find('\0') != std::string::npos) Fail(name, "contains a NUL character");
  }
  return strings;
}

std::vector<std::pair<std::string, std::string>> JsonReader::StringMap(const char* key) {
  std::vector<std::pair<std::string, std::string>> entries;
  const Json* found = Find(key);
  if (found == nullptr) return entries;
  JsonReader object = Object(key);
  for (const auto& [name, value] : object.value().items()) {
    entries.emplace_back(name, object.String(name.c_str()));
  }
  return entries;
}

std::vector<JsonReader> JsonReader::Objects(const char* key) {
  std::vector<JsonReader> readers;
  const Json* found = Find(key);
  if (found == nullptr) return readers;
  if (!found->is_array()) {
    Fail(key, "must be an array, is " + std::string(TypeName(*found)));
    return readers;
  }
  for (const Json& element : *found) {
    const std::string path = Path(key) + "[" + std::to_string(readers.size()) + "]";
    readers.push_back(JsonReader(&element, path, step_, error_));
  }
  return readers;
}

}  // namespace gcs::base
