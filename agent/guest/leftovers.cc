// SPDX-License-Identifier: Apache-2.0
#include "guest/leftovers.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/fd.h"
#include "base/paths.h"

namespace gcs::guest {

namespace {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

constexpr int kDeepest = 64;  // of the cgroups that a container made below its own

struct Leftover {
  int parent;
  std::string path;  // below the root, for comparison
  std::string name;
  Fd dir;
};

// Directories are opened by descriptor: a container chooses the names and the depth below its cgroup.
Result<std::vector<Leftover>> Children(int dir, const std::string& path) {
  GCS_ASSIGN(const std::vector<std::string> names, base::ListDir("/proc/self/fd/" + std::to_string(dir)));
  std::vector<Leftover> children;
  for (const std::string& name : names) {
    auto child = base::OpenFileAt(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (child) children.push_back({dir, path + "/" + name, name, std::move(*child)});
  }
  return children;
}

// Waits until no process is left inside; the kernel signals changes of cgroup.events with POLLPRI.
Result<> AwaitEmpty(const Leftover& cgroup, int64_t deadline_ns) {
  GCS_ASSIGN(const Fd events, base::OpenFileAt(cgroup.dir.get(), "cgroup.events", O_RDONLY));
  for (;;) {
    if (lseek(events.get(), 0, SEEK_SET) != 0) return ErrnoError("lseek", cgroup.name);
    GCS_ASSIGN(const std::string text, base::ReadFd(events.get(), cgroup.name, 4096));
    if (text.find("populated 0") != std::string::npos) return {};
    const int64_t left_ms = (deadline_ns - base::MonotonicNs()) / base::kNsPerMs;
    if (left_ms <= 0) return MakeError(ETIMEDOUT, "end what is left", cgroup.name);
    pollfd changed{.fd = events.get(), .events = POLLPRI, .revents = 0};
    if (poll(&changed, 1, static_cast<int>(std::min<int64_t>(left_ms, 1000))) < 0 && errno != EINTR)
      return ErrnoError("poll", cgroup.name);
  }
}

Result<> RemoveTree(const Leftover& cgroup, int depth) {
  if (depth < kDeepest) {
    GCS_ASSIGN(const std::vector<Leftover> children, Children(cgroup.dir.get(), cgroup.path));
    for (const Leftover& child : children) GCS_TRY(RemoveTree(child, depth + 1));
  }
  if (unlinkat(cgroup.parent, cgroup.name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT)
    return ErrnoError("remove cgroup", cgroup.name);
  return {};
}

}  // namespace

Result<size_t> RemoveLeftovers(const LeftoverCgroups& cgroups, int64_t deadline_ns) {
  GCS_ASSIGN(const Fd root, base::OpenFile(cgroups.mount, O_RDONLY | O_DIRECTORY));
  GCS_ASSIGN(std::vector<Leftover> left, Children(root.get(), ""));
  std::erase_if(left, [&](const Leftover& one) {
    return std::ranges::find(cgroups.kept, one.name) != cgroups.kept.end();
  });
  // linux.cgroupsPath may lead out of the usual parent.
  std::vector<Leftover> parents;
  for (const std::string& name : cgroups.parents) {
    const auto it = std::ranges::find(left, name, &Leftover::name);
    if (it == left.end()) continue;
    parents.push_back(std::move(*it));
    left.erase(it);
    GCS_ASSIGN(std::vector<Leftover> below, Children(parents.back().dir.get(), parents.back().path));
    std::ranges::move(below, std::back_inserter(left));
  }
  std::erase_if(left, [&](const Leftover& one) {
    return std::ranges::any_of(cgroups.living, [&](const std::string& living) {
      return living == one.path || living.starts_with(one.path + "/");
    });
  });
  // All first, so that they end at the same time.
  Result<> first;
  const auto note = [&](const Result<>& result) {
    if (!result && first) first = result;
    return result.has_value();
  };
  for (const Leftover& one : left) note(base::WriteFileAt(one.dir.get(), "cgroup.kill", "1"));
  size_t removed = 0;
  for (const Leftover& one : left) {
    if (note(AwaitEmpty(one, deadline_ns)) && note(RemoveTree(one, 0))) ++removed;
  }
  if (!first) return std::unexpected(first.error());
  return removed;
}

}  // namespace gcs::guest
