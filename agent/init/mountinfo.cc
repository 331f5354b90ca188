// SPDX-License-Identifier: Apache-2.0
#include "init/mountinfo.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace gcs::init {

namespace {

constexpr std::array<std::string_view, 12> kKernelTypes = {"proc",   "sysfs",   "devtmpfs",   "devpts",
                                                           "cgroup", "cgroup2", "securityfs", "bpf",
                                                           "mqueue", "debugfs", "tracefs",    "nsfs"};

}  // namespace

std::vector<std::string> UnmountOrder(const std::vector<base::MountInfo>& mounts) {
  struct Item {
    size_t depth;
    const base::MountInfo* entry;
  };
  std::vector<Item> items;
  for (const base::MountInfo& entry : mounts) {
    if (entry.target == "/") continue;
    if (std::find(kKernelTypes.begin(), kKernelTypes.end(), entry.type) != kKernelTypes.end()) continue;
    size_t depth = 0;
    const base::MountInfo* at = &entry;
    while (at != nullptr && depth < mounts.size()) {
      const auto parent = std::find_if(mounts.begin(), mounts.end(), [&](const base::MountInfo& m) {
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
