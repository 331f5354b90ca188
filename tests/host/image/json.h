// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace gcs::host {

using Json = nlohmann::json;

// Parses a document from outside: no exception, nesting of at most 32, EBADMSG with the document's name.
base::Result<Json> ParseJson(std::string_view text, const std::string& name);

// Members of an object; a null or missing one gives the empty value, one of another type EBADMSG.
base::Result<std::string> StringMember(const Json& object, const char* key, const std::string& name);
base::Result<std::vector<std::string>> StringsMember(const Json& object, const char* key,
                                                     const std::string& name);
// The member itself; nullptr when missing or null.
const Json* Member(const Json& object, const char* key);

}  // namespace gcs::host
