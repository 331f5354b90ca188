// SPDX-License-Identifier: Apache-2.0
#include "base/procfs.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace gcs::base {

namespace {

// What comes before `separator`; the text begins behind it then. The rest, if there is none.
std::string_view Take(std::string_view& text, char separator) {
  const size_t end = text.find(separator);
  const std::string_view part = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return part;
}

template <typename Number>
bool ParseNumber(std::string_view text, Number& value, int radix = 10) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, radix);
  return error == std::errc() && end == text.data() + text.size();
}

// "\040" and its like; a backslash that begins no escape is kept.
std::string Unescape(std::string_view text) {
  constexpr size_t kEscape = 4;
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    unsigned code = 0;
    const bool escape = text.size() >= kEscape && text[0] == '\\' && ParseNumber(text.substr(1, 3), code, 8);
    out += escape ? static_cast<char>(code) : text[0];
    text.remove_prefix(escape ? kEscape : 1);
  }
  return out;
}

bool ParseLine(std::string_view line, MountInfo& mount) {
  if (!ParseNumber(Take(line, ' '), mount.id) || !ParseNumber(Take(line, ' '), mount.parent)) return false;
  Take(line, ' ');  // major:minor
  Take(line, ' ');  // root within the file system
  mount.target = Unescape(Take(line, ' '));
  if (!mount.target.starts_with('/')) return false;
  // Mount options and any number of optional fields, up to a single hyphen.
  while (!line.empty()) {
    if (Take(line, ' ') != "-") continue;
    mount.type = Take(line, ' ');
    Take(line, ' ');  // source, which may be empty
    mount.options = line;
    return !mount.type.empty();
  }
  return false;
}

}  // namespace

std::vector<MountInfo> ParseMountInfo(std::string_view text) {
  std::vector<MountInfo> mounts;
  while (!text.empty()) {
    MountInfo mount;
    if (ParseLine(Take(text, '\n'), mount)) mounts.push_back(std::move(mount));
  }
  return mounts;
}

std::optional<ProcessStat> ParseProcessStat(std::string_view text) {
  // The name in parentheses may hold anything, parentheses too; what follows may not.
  const size_t name_end = text.rfind(") ");
  if (name_end == std::string_view::npos) return std::nullopt;
  text.remove_prefix(name_end + 2);
  text = text.substr(0, text.find('\n'));
  ProcessStat stat;
  const std::string_view state = Take(text, ' ');
  if (state.size() != 1) return std::nullopt;
  stat.state = state[0];
  constexpr int kStart = 22;  // the last field that counts; the state is the third
  for (int field = 4; field <= kStart; ++field) {
    const std::string_view word = Take(text, ' ');
    uint64_t* value = field == 14   ? &stat.user_ticks
                      : field == 15 ? &stat.system_ticks
                      : field == 22 ? &stat.start_ticks
                                    : nullptr;
    if (value != nullptr && !ParseNumber(word, *value)) return std::nullopt;
  }
  return stat;
}

uint64_t ParseStatusNumber(std::string_view text, std::string_view key) {
  uint64_t value = 0;
  while (!text.empty()) {
    std::string_view line = Take(text, '\n');
    if (Take(line, ':') != key) continue;
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    std::from_chars(line.data(), line.data() + line.size(), value);
    break;
  }
  return value;
}

std::string_view ParseUnifiedCgroup(std::string_view text) {
  constexpr std::string_view kUnified = "0::";
  while (!text.empty()) {
    const std::string_view line = Take(text, '\n');
    if (line.starts_with(kUnified)) return line.substr(kUnified.size());
  }
  return {};
}

}  // namespace gcs::base
