// SPDX-License-Identifier: Apache-2.0
// Whatever bytes a process or the host puts into a log line: the line stays JSON, and well-formed text stays
// the same.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/log.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::string quoted;
  gcs::base::AppendJsonString(quoted, text);
  const nlohmann::json parsed = nlohmann::json::parse(quoted, nullptr, false);
  if (!parsed.is_string()) abort();

  // The JSON library is the judge of what is UTF-8: it refuses to write anything else.
  bool well_formed = true;
  try {
    (void)nlohmann::json(std::string(text)).dump();
  } catch (const nlohmann::json::exception&) {
    well_formed = false;
  }
  const auto value = parsed.get<std::string>();
  if (well_formed != (value == text)) abort();
  if (!well_formed && value.find("\xef\xbf\xbd") == std::string::npos) abort();
  return 0;
}
