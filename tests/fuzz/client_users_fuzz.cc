// SPDX-License-Identifier: Apache-2.0
// "user[:group]" in an image's /etc/passwd and /etc/group: any bytes give a user or an error with a step; a
// number that is asked for is what comes out.
#include <charconv>
#include <cstdlib>
#include <string>

#include "host/client/users.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Three texts, each ended by a 0: the user, passwd and group; the last two may be missing.
  std::string parts[3];
  int count = 0;
  std::string rest(reinterpret_cast<const char*>(data), size);
  while (count < 3) {
    const size_t end = rest.find('\0');
    parts[count++] = rest.substr(0, end);
    if (end == std::string::npos) break;
    rest.erase(0, end + 1);
  }
  const auto optional = [&](int index) { return index < count ? std::optional(parts[index]) : std::nullopt; };
  const auto user = gcs::host::ResolveUser(parts[0], optional(1), optional(2));
  if (!user) {
    if (user.error().step.empty() || user.error().err == 0) abort();
    return 0;
  }
  const auto number = [](const std::string& text, uint32_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return !text.empty() && error == std::errc() && end == text.data() + text.size();
  };
  uint32_t asked = 0;
  const size_t colon = parts[0].find(':');
  if (number(parts[0].substr(0, colon), asked) && user->uid != asked) abort();
  if (colon != std::string::npos && number(parts[0].substr(colon + 1), asked) && user->gid != asked) abort();
  for (const uint32_t gid : user->additional_gids) {
    if (gid == user->gid) abort();
  }
  return 0;
}
