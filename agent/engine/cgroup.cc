// SPDX-License-Identifier: Apache-2.0
#include "engine/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <sstream>

#include "base/clock.h"
#include "base/paths.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

namespace {

// Controllers that limits or counters need; those that the kernel lacks are simply not enabled.
constexpr std::string_view kControllers[] = {"cpuset", "cpu", "io", "memory", "hugetlb", "pids"};

std::set<std::string> Words(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

Result<> EnableControllers(const CgroupRoot& root, int dir, const std::string& name) {
  GCS_ASSIGN(const std::string enabled, base::ReadFileAt(dir, "cgroup.subtree_control"));
  const auto on = Words(enabled);
  if (std::ranges::all_of(root.controllers(), [&](const std::string& word) { return on.contains(word); }))
    return {};
  GCS_ASSIGN(const std::string available, base::ReadFileAt(dir, "cgroup.controllers"));
  const auto have = Words(available);
  std::string change;
  for (const std::string& word : root.controllers()) {
    if (have.contains(word) && !on.contains(word)) change += (change.empty() ? "+" : " +") + word;
  }
  if (change.empty()) return {};
  auto written = base::WriteFileAt(dir, "cgroup.subtree_control", change);
  if (!written) written.error().object = name + "/cgroup.subtree_control";
  return written;
}

std::string MaxOr(int64_t value) { return value < 0 ? "max" : std::to_string(value); }

}  // namespace

uint64_t CpuWeight(uint64_t shares) {
  if (shares == 0) return 0;
  if (shares <= 2) return 1;
  if (shares >= 262144) return 10000;
  // The curve that maps the v1 default 1024 to the v2 default 100, and both ends to both ends.
  const double l = std::log2(static_cast<double>(shares));
  return static_cast<uint64_t>(std::ceil(std::pow(10, (l * l + 125 * l) / 612.0 - 7.0 / 34.0)));
}

Result<CgroupRoot> CgroupRoot::Open(const std::string& mount_point) {
  GCS_ASSIGN(Fd fd, base::OpenFile(mount_point, O_RDONLY | O_DIRECTORY));
  struct statfs fs;
  if (fstatfs(fd.get(), &fs) != 0) return ErrnoError("fstatfs", mount_point);
  if (fs.f_type != CGROUP2_SUPER_MAGIC)
    return MakeError(EINVAL, "open cgroup root", mount_point, "is not cgroup2");
  GCS_ASSIGN(const std::string available, base::ReadFileAt(fd.get(), "cgroup.controllers"));
  const auto have = Words(available);
  std::vector<std::string> controllers;
  for (const std::string_view controller : kControllers) {
    if (have.contains(std::string(controller))) controllers.emplace_back(controller);
  }
  return CgroupRoot(std::move(fd), mount_point, std::move(controllers));
}

namespace {

// The value of `key` in a flat keyed file ("populated 0\nfrozen 0\n"); none if absent.
std::optional<uint64_t> KeyedValue(const std::string& text, std::string_view key) {
  std::istringstream in(text);
  std::string word;
  uint64_t value = 0;
  while (in >> word >> value) {
    if (word == key) return value;
  }
  return std::nullopt;
}

// Waits until `key` of cgroup.events is `wanted`; the kernel signals changes of that file with POLLPRI.
Result<> AwaitEvent(int dir, const std::string& path, std::string_view key, uint64_t wanted,
                    int64_t deadline_ns) {
  GCS_ASSIGN(const Fd events, base::OpenFileAt(dir, "cgroup.events", O_RDONLY));
  for (;;) {
    if (lseek(events.get(), 0, SEEK_SET) != 0) return ErrnoError("lseek", path + "/cgroup.events");
    GCS_ASSIGN(const std::string text, base::ReadFd(events.get(), path + "/cgroup.events", 4096));
    if (KeyedValue(text, key) == wanted) return {};
    const int64_t left = deadline_ns - base::MonotonicNs();
    if (left <= 0) {
      return MakeError(ETIMEDOUT, "wait for cgroup", path,
                       std::string(key) + " is not " + std::to_string(wanted));
    }
    pollfd poll_fd{events.get(), POLLPRI, 0};
    const int64_t left_ms = std::min<int64_t>(left / base::kNsPerMs + 1, 1000);
    if (poll(&poll_fd, 1, static_cast<int>(left_ms)) < 0 && errno != EINTR) return ErrnoError("poll", path);
  }
}

void CollectPids(int dir, int depth, std::vector<int>& pids) {
  if (const auto procs = base::ReadFileAt(dir, "cgroup.procs", 16 << 20)) {
    std::istringstream in(*procs);
    int pid = 0;
    while (in >> pid) pids.push_back(pid);
  }
  if (depth == 0) return;
  const int copy = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* entries = copy < 0 ? nullptr : fdopendir(copy);
  if (entries == nullptr) {
    if (copy >= 0) close(copy);
    return;
  }
  while (const dirent* entry = readdir(entries)) {
    if (entry->d_type != DT_DIR || entry->d_name[0] == '.') continue;
    const Fd child(openat(dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (child.valid()) CollectPids(child.get(), depth - 1, pids);
  }
  closedir(entries);
}

// rmdir of `dir`/`name` and of every cgroup that processes inside have made below it, innermost first.
int RemoveTree(int dir, const char* name, int depth) {
  if (unlinkat(dir, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
  if (errno != EBUSY || depth == 0) return errno;
  const Fd self(openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!self.valid()) return errno;
  const int copy = openat(self.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* entries = copy < 0 ? nullptr : fdopendir(copy);
  if (entries == nullptr) {
    if (copy >= 0) close(copy);
    return EBUSY;
  }
  while (const dirent* entry = readdir(entries)) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') RemoveTree(self.get(), entry->d_name, depth - 1);
  }
  closedir(entries);
  return unlinkat(dir, name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : errno;
}

constexpr int kMaxDepth = 64;

}  // namespace

Result<Cgroup> Cgroup::Create(const CgroupRoot& root, const std::string& path) {
  const std::string clean = CleanPath(path);
  if (clean == "/") return MakeError(EINVAL, "make cgroup", path, "is the root");
  Fd root_fd(fcntl(root.fd(), F_DUPFD_CLOEXEC, 3));
  Fd parent(fcntl(root.fd(), F_DUPFD_CLOEXEC, 3));
  if (!root_fd || !parent) return ErrnoError("dup", path);
  std::vector<std::string> made;
  const auto undo = [&](base::Error error) {
    for (auto it = made.rbegin(); it != made.rend(); ++it) unlinkat(root_fd.get(), it->c_str(), AT_REMOVEDIR);
    return std::unexpected(std::move(error));
  };
  for (size_t at = 1; at < clean.size();) {
    const size_t end = std::min(clean.find('/', at), clean.size());
    const std::string prefix = clean.substr(1, end - 1);
    const std::string name = clean.substr(at, end - at);
    if (auto enabled = EnableControllers(root, parent.get(), clean.substr(0, at - 1)); !enabled)
      return undo(enabled.error());
    const bool fresh = mkdirat(parent.get(), name.c_str(), 0755) == 0;
    if (fresh) {
      made.push_back(prefix);
    } else if (errno != EEXIST) {
      return undo(base::Error{"make cgroup", errno, "/" + prefix, {}});
    }
    auto next = base::OpenFileAt(parent.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!next) return undo(next.error());
    parent = std::move(*next);
    if (end == clean.size() && !fresh) {
      const auto events = base::ReadFileAt(parent.get(), "cgroup.events");
      if (!events) return undo(events.error());
      if (KeyedValue(*events, "populated") != 0 || KeyedValue(*events, "frozen") == 1) {
        return undo(base::Error{"make cgroup", EEXIST, clean, "exists and is in use"});
      }
    }
    at = end + 1;
  }
  return Cgroup(std::move(root_fd), std::move(parent), clean, std::move(made));
}

Result<> Cgroup::Apply(const Resources& r) {
  std::vector<std::pair<std::string, std::string>> writes;
  if (r.memory_limit && *r.memory_limit != 0) writes.emplace_back("memory.max", MaxOr(*r.memory_limit));
  if (r.memory_reservation && *r.memory_reservation != 0) {
    writes.emplace_back("memory.low", MaxOr(*r.memory_reservation));
  }
  if (r.memory_swap && *r.memory_swap != 0) {
    // The specification counts memory and swap together, the kernel swap alone.
    std::string swap = "max";
    if (*r.memory_swap > 0) {
      if (!r.memory_limit || *r.memory_limit <= 0) {
        return MakeError(EINVAL, "set limit", "linux.resources.memory.swap", "needs a memory limit");
      }
      if (*r.memory_swap < *r.memory_limit) {
        return MakeError(EINVAL, "set limit", "linux.resources.memory.swap", "is below the memory limit");
      }
      swap = std::to_string(*r.memory_swap - *r.memory_limit);
    }
    // A kernel without swap accounting has no such file; "no limit" is then what there is.
    if (swap != "max" || faccessat(fd_.get(), "memory.swap.max", W_OK, 0) == 0)
      writes.emplace_back("memory.swap.max", swap);
  }
  if (r.cpu_shares) writes.emplace_back("cpu.weight", std::to_string(CpuWeight(*r.cpu_shares)));
  if (r.cpu_quota || r.cpu_period) {
    const int64_t quota = r.cpu_quota.value_or(-1);
    writes.emplace_back("cpu.max", (quota <= 0 ? "max" : std::to_string(quota)) + " " +
                                       std::to_string(r.cpu_period.value_or(100'000)));
  }
  if (r.cpu_burst) writes.emplace_back("cpu.max.burst", std::to_string(*r.cpu_burst));
  if (!r.cpus.empty()) writes.emplace_back("cpuset.cpus", r.cpus);
  if (!r.mems.empty()) writes.emplace_back("cpuset.mems", r.mems);
  if (r.pids_limit) writes.emplace_back("pids.max", MaxOr(*r.pids_limit));
  for (const auto& [name, value] : r.unified) writes.emplace_back(name, value);
  for (const auto& [name, value] : writes) {
    auto written = base::WriteFileAt(fd_.get(), name, value);
    if (written) continue;
    base::Error error = written.error();
    error.object = path_ + "/" + name;
    if (error.err == ENOENT) {
      error = {"set limit", EOPNOTSUPP, error.object, "the controller is not available"};
    }
    return std::unexpected(std::move(error));
  }
  return {};
}

Result<> Cgroup::Freeze(bool frozen, int64_t deadline_ns) {
  GCS_TRY(base::WriteFileAt(fd_.get(), "cgroup.freeze", frozen ? "1" : "0"));
  auto done = AwaitEvent(fd_.get(), path_, "frozen", frozen ? 1 : 0, deadline_ns);
  if (!done && frozen) {
    if (auto undone = base::WriteFileAt(fd_.get(), "cgroup.freeze", "0"); !undone) return undone;
  }
  return done;
}

Result<> Cgroup::Kill() { return base::WriteFileAt(fd_.get(), "cgroup.kill", "1"); }

bool Cgroup::RemoveIfEmpty() {
  if (made_.empty() || unlinkat(root_.get(), made_.back().c_str(), AT_REMOVEDIR) != 0) return false;
  RemoveParents();
  return true;
}

Result<> Cgroup::Remove(int64_t deadline_ns) {
  GCS_TRY(AwaitEvent(fd_.get(), path_, "populated", 0, deadline_ns));
  if (made_.empty()) return {};
  const int err = RemoveTree(root_.get(), made_.back().c_str(), kMaxDepth);
  if (err != 0) return MakeError(err, "remove cgroup", "/" + made_.back());
  RemoveParents();
  return {};
}

void Cgroup::RemoveParents() {
  // Those that others share by now stay.
  for (made_.pop_back(); !made_.empty(); made_.pop_back())
    unlinkat(root_.get(), made_.back().c_str(), AT_REMOVEDIR);
}

Result<std::vector<int>> Cgroup::Pids() const {
  std::vector<int> pids;
  CollectPids(fd_.get(), kMaxDepth, pids);
  return pids;
}

}  // namespace gcs::engine
