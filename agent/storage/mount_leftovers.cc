// SPDX-License-Identifier: Apache-2.0
// What an agent that did not end by itself has left mounted.
#include <sys/mount.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "storage/job.h"
#include "storage/mount_api.h"
#include "storage/mount_dirs.h"
#include "storage/storage.h"
#include "storage/storage_entry.h"

namespace gcs::storage {

using base::Result;

namespace {

constexpr int64_t kOneMountNs = 2 * base::kNsPerSec;

// Innermost first: by the depth in the tree of mounts, as neither ids nor paths tell it (a mount that was
// made detached is older than what it is on, and one may lie over another).
void SortInnermostFirst(std::vector<base::MountInfo>& mounts, const std::map<uint64_t, uint64_t>& parents) {
  std::map<uint64_t, size_t> depths;
  for (const base::MountInfo& mount : mounts) {
    size_t depth = 0;
    for (auto it = parents.find(mount.id); it != parents.end() && depth <= parents.size(); ++depth)
      it = parents.find(it->second);
    depths[mount.id] = depth;
  }
  std::ranges::stable_sort(mounts, std::greater(),
                           [&](const base::MountInfo& mount) { return depths[mount.id]; });
}

}  // namespace

Result<size_t> Storage::ReleaseLeftovers(const Wait& wait) {
  GCS_ASSIGN(std::vector<base::MountInfo> mounts, ReadMounts());
  std::map<uint64_t, uint64_t> parents;
  for (const base::MountInfo& mount : mounts) parents[mount.id] = mount.parent;
  std::set<std::string> ours;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, entry] : entries_) ours.insert(entry->info.path);
  }
  std::erase_if(mounts, [&](const base::MountInfo& mount) {
    if (ours.contains(mount.target)) return true;
    if (std::ranges::any_of(options_.reserved,
                            [&](const std::string& path) { return IsAtOrBelow(mount.target, path); }))
      return true;
    return std::ranges::none_of(options_.target_roots, [&](const std::string& root) {
      return mount.target.size() > root.size() && IsAtOrBelow(mount.target, root);
    });
  });
  SortInnermostFirst(mounts, parents);
  size_t gone = 0;
  Result<> first;
  for (const base::MountInfo& mount : mounts) {
    const Wait one{.deadline_ns = std::min(wait.deadline_ns, base::MonotonicNs() + kOneMountNs),
                   .cancel_fd = wait.cancel_fd};
    GCS_ASSIGN(const auto job, Job::Prepare(one, mount.target));
    // The path is free at once; it is the end of the file system that may wait for a silent server.
    auto result = RunJob(pool_, job, one, mount.target, [target = mount.target](Job&) -> Result<> {
      if (umount2(target.c_str(), UMOUNT_NOFOLLOW) == 0) return {};
      if (errno == EBUSY && umount2(target.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) == 0) return {};
      return base::ErrnoError("umount2", target);
    });
    dirs_->Adopt(mount.target);
    dirs_->Remove(mount.target);
    if (result) ++gone;
    if (!result && first) first = std::move(result);
  }
  if (!first) return std::unexpected(first.error());
  return gone;
}

}  // namespace gcs::storage
