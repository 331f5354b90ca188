// SPDX-License-Identifier: Apache-2.0
#include "net/resolv_conf.h"

#include <arpa/inet.h>
#include <net/if.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace gcs::net {

using base::MakeError;
using base::Result;

namespace {

constexpr std::string_view kStep = "write resolv.conf";
constexpr size_t kMost = 64;  // C libraries use far fewer

bool IsAddress(const std::string& text) {
  std::array<unsigned char, sizeof(in6_addr)> bytes;
  if (inet_pton(AF_INET, text.c_str(), bytes.data()) == 1) return true;
  const size_t percent = text.find('%');
  if (inet_pton(AF_INET6, text.substr(0, percent).c_str(), bytes.data()) != 1) return false;
  if (percent == std::string::npos) return true;
  const std::string zone = text.substr(percent + 1);
  return !zone.empty() && zone.size() < IFNAMSIZ &&
         std::ranges::all_of(
             zone, [](unsigned char c) { return isalnum(c) != 0 || c == '-' || c == '_' || c == '.'; });
}

// One word of printable characters that no comment begins with.
bool IsWord(const std::string& text) {
  return !text.empty() && text.size() <= 255 && std::ranges::all_of(text, [](unsigned char c) {
    return c > ' ' && c < 0x7f && c != '#' && c != ';';
  });
}

template <typename Good>
Result<> Check(const std::vector<std::string>& words, const char* name, Good good, const char* message) {
  if (words.size() > kMost) return MakeError(E2BIG, kStep, name, "more than 64");
  for (size_t i = 0; i < words.size(); ++i) {
    // A NUL would end what the C functions see, not what is written.
    if (words[i].find('\0') == std::string::npos && good(words[i])) continue;
    return MakeError(EINVAL, kStep, std::string(name) + "[" + std::to_string(i) + "]", message);
  }
  return {};
}

std::string Line(const char* keyword, const std::vector<std::string>& words) {
  if (words.empty()) return {};
  std::string line = keyword;
  for (const std::string& word : words) line += " " + word;
  return line + "\n";
}

}  // namespace

Result<std::string> ResolvConf(const std::vector<std::string>& name_servers,
                               const std::vector<std::string>& search_domains,
                               const std::vector<std::string>& options) {
  GCS_TRY(Check(name_servers, "name_servers", IsAddress, "no IP address"));
  GCS_TRY(Check(search_domains, "search_domains", IsWord, "no domain"));
  GCS_TRY(Check(options, "options", IsWord, "no option"));
  std::string text;
  for (const std::string& server : name_servers) text += "nameserver " + server + "\n";
  return text + Line("search", search_domains) + Line("options", options);
}

}  // namespace gcs::net
