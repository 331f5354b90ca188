// SPDX-License-Identifier: Apache-2.0
#include "init/mountinfo.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace gcs::init {

namespace {

std::string_view TakeField(std::string_view& line) {
  const size_t end = line.find(' ');
  const std::string_view field = line.substr(0, end);
  line.remove_prefix(end == std::string_view::npos ? line.size() : end + 1);
  return field;
}

bool ParseNumber(std::string_view text, int& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// "\040" and its like; a backslash that begins no escape is kept.
std::string Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    int code = 0;
    if (text[i] == '\\' && text.size() - i >= 4) {
      const auto [end, error] = std::from_chars(text.data() + i + 1, text.data() + i + 4, code, 8);
      if (error == std::errc() && end == text.data() + i + 4) {
        out += static_cast<char>(code);
        i += 3;
        continue;
      }
    }
    out += text[i];
  }
  return out;
}

bool ParseLine(std::string_view line, MountEntry& entry) {
  if (!ParseNumber(TakeField(line), entry.id) || !ParseNumber(TakeField(line), entry.parent)) return false;
  TakeField(line);  // major:minor
  TakeField(line);  // root within the file system
  entry.target = Unescape(TakeField(line));
  if (!entry.target.starts_with('/')) return false;
  // Mount options and any number of optional fields, up to a single hyphen.
  while (!line.empty()) {
    if (TakeField(line) == "-") {
      entry.type = TakeField(line);
      return !entry.type.empty();
    }
  }
  return false;
}

constexpr std::array<std::string_view, 12> kKernelTypes = {"proc",   "sysfs",   "devtmpfs",   "devpts",
                                                           "cgroup", "cgroup2", "securityfs", "bpf",
                                                           "mqueue", "debugfs", "tracefs",    "nsfs"};

}  // namespace

std::vector<MountEntry> ParseMountInfo(std::string_view text) {
  std::vector<MountEntry> mounts;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    MountEntry entry;
    if (ParseLine(text.substr(0, end), entry)) mounts.push_back(std::move(entry));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return mounts;
}

std::vector<std::string> UnmountOrder(const std::vector<MountEntry>& mounts) {
  struct Item {
    size_t depth;
    const MountEntry* entry;
  };
  std::vector<Item> items;
  for (const MountEntry& entry : mounts) {
    if (entry.target == "/") continue;
    if (std::find(kKernelTypes.begin(), kKernelTypes.end(), entry.type) != kKernelTypes.end()) continue;
    size_t depth = 0;
    const MountEntry* at = &entry;
    while (at != nullptr && depth < mounts.size()) {
      const auto parent = std::find_if(mounts.begin(), mounts.end(), [&](const MountEntry& m) {
        return m.id == at->parent && m.id != at->id;
      });
      at = parent == mounts.end() ? nullptr : &*parent;
      ++depth;
    }
    items.push_back({depth, &entry});
  }
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return a.depth != b.depth ? a.depth > b.depth : a.entry->id > b.entry->id;
  });
  std::vector<std::string> order;
  order.reserve(items.size());
  for (const Item& item : items) order.push_back(item.entry->target);
  return order;
}

}  // namespace gcs::init
