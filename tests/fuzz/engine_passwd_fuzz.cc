// SPDX-License-Identifier: Apache-2.0
// A container's /etc/passwd: the home directory that is found is that of a line that has the user's id, and
// none is missed that a slow reader finds.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "engine/child_home.h"

namespace {

// The same by other means.
std::string SlowHomeOf(const std::string& passwd, uint32_t uid) {
  std::istringstream lines(passwd);
  for (std::string line; std::getline(lines, line);) {
    std::vector<std::string> fields{""};
    for (const char c : line) {
      if (c == ':') {
        fields.emplace_back();
      } else {
        fields.back() += c;
      }
    }
    if (fields.size() < 7) continue;
    std::string id = fields[2];
    if (id.empty() || id.find_first_not_of("0123456789") != std::string::npos) continue;
    while (id.size() > 1 && id[0] == '0') id.erase(0, 1);
    if (id == std::to_string(uid)) return fields[5];
  }
  return "";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint32_t uid = 0;
  if (size < 1) return 0;
  // One byte chooses among ids that the corpus has; four more are any.
  constexpr uint32_t kUids[] = {0, 1, 1000, 65534, UINT32_MAX};
  const uint8_t which = data[0] % 6;
  if (which < 5) {
    uid = kUids[which];
  } else if (size >= 5) {
    memcpy(&uid, data + 1, sizeof uid);
  }
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::vector<char> exact(text.begin(), text.end());  // AddressSanitizer knows this end to the byte
  const std::string found(gcs::engine::HomeOf({exact.data(), exact.size()}, uid));
  if (found != SlowHomeOf(text, uid)) {
    fprintf(stderr, "home '%s', not '%s'\n", found.c_str(), SlowHomeOf(text, uid).c_str());
    abort();
  }
  return 0;
}
