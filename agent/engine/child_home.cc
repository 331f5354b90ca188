// SPDX-License-Identifier: Apache-2.0
#include "engine/child_home.h"

#include <algorithm>
#include <charconv>

namespace gcs::engine {

std::string_view HomeOf(std::string_view passwd, uint32_t uid) noexcept {
  constexpr int kFields = 7;  // name, password, uid, gid, gecos, home, shell
  while (!passwd.empty()) {
    const size_t end = std::min(passwd.find('\n'), passwd.size());
    std::string_view line = passwd.substr(0, end);
    passwd.remove_prefix(std::min(end + 1, passwd.size()));
    std::string_view fields[kFields];
    int count = 0;
    for (size_t colon = 0; colon != std::string_view::npos && count < kFields;) {
      colon = line.find(':');
      fields[count++] = line.substr(0, colon);
      if (colon != std::string_view::npos) line.remove_prefix(colon + 1);
    }
    uint64_t id = 0;
    const char* last = fields[2].end();
    const auto parsed = std::from_chars(fields[2].begin(), last, id);
    if (count == kFields && parsed.ec == std::errc() && parsed.ptr == last && id == uid) return fields[5];
  }
  return {};
}

}  // namespace gcs::engine
