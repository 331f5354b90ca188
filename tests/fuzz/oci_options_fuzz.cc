// SPDX-License-Identifier: Apache-2.0
// gcs-oci's command line: any words give a command or an error that names a step, and what is behind exec's
// and ps's id reaches the process as it is.
#include <string>
#include <vector>

#include "engine/cli/options.h"
#include "fuzz/require.h"

namespace {

using namespace gcs;

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\0', at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 2048) return 0;
  const std::vector<std::string> words = Words(std::string(reinterpret_cast<const char*>(data), size));
  oci::CommandLine line;
  const auto parsed = oci::ParseCommandLine(words, line);
  if (!parsed) {
    REQUIRE(!parsed.error().step.empty() && parsed.error().err != 0 && !parsed.error().ToString().empty());
  } else {
    REQUIRE(line.command.empty() != line.text.empty());
    REQUIRE(line.interval_s > 0 && line.exec.options.preserve_fds >= 0 &&
            line.create.process.preserve_fds >= 0);
    REQUIRE(line.global.log_format == "text" || line.global.log_format == "json");
  }
  // Words of a program may look like anything. One form for each input: to make a parser takes longer than to
  // use it.
  const bool exec = words.size() % 2 == 0;
  const bool marked = words.size() % 4 < 2;
  std::vector<std::string> whole{"--debug", exec ? "exec" : "ps"};
  if (marked) whole.emplace_back("--");
  whole.emplace_back("id");
  whole.insert(whole.end(), words.begin(), words.end());
  oci::CommandLine other;
  REQUIRE(oci::ParseCommandLine(whole, other));
  REQUIRE(other.command == whole[1] && other.global.debug && (exec ? other.exec.id : other.id) == "id");
  REQUIRE((exec ? other.exec.args : other.ps_options) == words);
  return 0;
}
