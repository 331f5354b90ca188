// SPDX-License-Identifier: Apache-2.0
#include "engine/mount_options.h"

#include <linux/mount.h>
#include <sys/mount.h>

#include <algorithm>
#include <array>
#include <optional>

namespace gcs::engine {

namespace {

struct AttributeRow {
  std::string_view name;
  uint64_t set;
  uint64_t clear;
};

// Access times are one enumeration, so naming one of them clears the others.
constexpr std::array<AttributeRow, 18> kAttributes{{
    {"ro", MOUNT_ATTR_RDONLY, 0},
    {"rw", 0, MOUNT_ATTR_RDONLY},
    {"nosuid", MOUNT_ATTR_NOSUID, 0},
    {"suid", 0, MOUNT_ATTR_NOSUID},
    {"nodev", MOUNT_ATTR_NODEV, 0},
    {"dev", 0, MOUNT_ATTR_NODEV},
    {"noexec", MOUNT_ATTR_NOEXEC, 0},
    {"exec", 0, MOUNT_ATTR_NOEXEC},
    {"nodiratime", MOUNT_ATTR_NODIRATIME, 0},
    {"diratime", 0, MOUNT_ATTR_NODIRATIME},
    {"noatime", MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME},
    {"atime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME},
    {"relatime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME},
    {"norelatime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME},
    {"strictatime", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME},
    {"nostrictatime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME},
    {"nosymfollow", MOUNT_ATTR_NOSYMFOLLOW, 0},
    {"symfollow", 0, MOUNT_ATTR_NOSYMFOLLOW},
}};

struct PropagationRow {
  std::string_view name;
  uint64_t flag;
};
constexpr std::array<PropagationRow, 4> kPropagations{
    {{"shared", MS_SHARED}, {"slave", MS_SLAVE}, {"private", MS_PRIVATE}, {"unbindable", MS_UNBINDABLE}}};

// Ask for what is so anyway, or for what only mount(8) does.
constexpr std::array<std::string_view, 6> kIgnored{"defaults", "loud",       "silent",
                                                   "async",    "nolazytime", "norro"};

std::optional<AttributeRow> FindAttribute(std::string_view name) {
  const auto* row = std::ranges::find(kAttributes, name, &AttributeRow::name);
  return row == kAttributes.end() ? std::nullopt : std::optional(*row);
}

// The last of contradicting options counts, as with mount(8).
void Merge(const AttributeRow& row, uint64_t& set, uint64_t& clear) {
  set = (set & ~row.clear) | row.set;
  // What is cleared and set in one call is an enumeration's change; a plain flag must not be in both.
  const uint64_t enumeration = row.clear & MOUNT_ATTR__ATIME;
  clear = ((clear & ~row.set) | row.clear) | enumeration;
}

bool ParsePropagation(std::string_view name, MountOptions& result) {
  for (const auto& row : kPropagations) {
    const bool plain = name == row.name;
    const bool recursive = name.size() == row.name.size() + 1 && name[0] == 'r' && name.substr(1) == row.name;
    if (!plain && !recursive) continue;
    result.propagation = row.flag;
    result.recursive_propagation = recursive;
    return true;
  }
  return false;
}

}  // namespace

bool MountOptions::Has(std::string_view key) const {
  return std::ranges::any_of(data, [&](const auto& entry) { return entry.first == key; });
}

base::Result<MountOptions> ParseMountOptions(const std::vector<std::string>& options,
                                             std::string_view object) {
  MountOptions result;
  for (const std::string& option : options) {
    if (option.empty() || std::ranges::find(kIgnored, option) != kIgnored.end()) continue;
    if (option == "bind" || option == "rbind") {
      result.bind = true;
      result.recursive = result.recursive || option == "rbind";
      continue;
    }
    if (option == "tmpcopyup") {
      result.copy_up = true;
      continue;
    }
    if (option == "remount") {
      result.remount = true;
      continue;
    }
    if (option == "idmap" || option == "ridmap") {
      result.id_mapped = true;
      result.recursive_id_map = option == "ridmap";
      continue;
    }
    if (ParsePropagation(option, result)) continue;
    if (const auto row = FindAttribute(option)) {
      Merge(*row, result.set, result.clear);
      continue;
    }
    if (option[0] == 'r') {
      if (const auto row = FindAttribute(std::string_view(option).substr(1))) {
        Merge(*row, result.recursive_set, result.recursive_clear);
        continue;
      }
    }
    const size_t equals = option.find('=');
    const std::string key = option.substr(0, equals);
    result.data.emplace_back(key, equals == std::string::npos ? "" : option.substr(equals + 1));
  }
  if (result.bind && !result.remount && !result.data.empty()) {
    return base::MakeError(EINVAL, "parse mount options", object,
                           "option " + result.data.front().first + " means nothing to a bind mount");
  }
  return result;
}

}  // namespace gcs::engine
