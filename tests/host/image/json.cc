// SPDX-License-Identifier: Apache-2.0
#include "host/image/json.h"

namespace gcs::host {
namespace {

constexpr int kMaxDepth = 32;

base::Error WrongType(const std::string& name, const char* key, const char* want) {
  return {"read JSON", EBADMSG, name, std::string("member \"") + key + "\" is not " + want};
}

// nlohmann's parser keeps its own stack, but destroying a deep value costs too: nesting is checked before it
// is built.
bool TooDeep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

}  // namespace

base::Result<Json> ParseJson(std::string_view text, const std::string& name) {
  if (TooDeep(text)) return base::MakeError(EBADMSG, "parse JSON", name, "nested deeper than 32");
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return base::MakeError(EBADMSG, "parse JSON", name, "malformed");
  return value;
}

const Json* Member(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

base::Result<std::string> StringMember(const Json& object, const char* key, const std::string& name) {
  const Json* value = Member(object, key);
  if (value == nullptr) return std::string();
  const auto* text = value->get_ptr<const std::string*>();
  if (text == nullptr) return std::unexpected(WrongType(name, key, "a string"));
  return *text;
}

base::Result<std::vector<std::string>> StringsMember(const Json& object, const char* key,
                                                     const std::string& name) {
  std::vector<std::string> out;
  const Json* value = Member(object, key);
  if (value == nullptr) return out;
  if (!value->is_array()) return std::unexpected(WrongType(name, key, "an array of strings"));
  for (const Json& item : *value) {
    const auto* text = item.get_ptr<const std::string*>();
    if (text == nullptr) return std::unexpected(WrongType(name, key, "an array of strings"));
    out.push_back(*text);
  }
  return out;
}

}  // namespace gcs::host
