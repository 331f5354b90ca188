// SPDX-License-Identifier: Apache-2.0
#include "engine/cgroup_open.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <set>

#include "base/clock.h"
#include "base/paths.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

namespace {

// Controllers that limits or counters need; those that the kernel lacks are simply not enabled.
constexpr std::string_view kControllers[] = {"cpuset",  "cpu",  "io",   "memory",
                                             "hugetlb", "pids", "rdma", "misc"};

// The cgroup2 file system, and the controllers that containers are to have, as far as the kernel has them.
struct Tree {
  Fd fd;
  std::vector<std::string> controllers;
};

Result<> EnableControllers(const Tree& tree, int dir, const std::string& name) {
  GCS_ASSIGN(const std::string enabled, base::ReadFileAt(dir, "cgroup.subtree_control"));
  const auto on = Words(enabled);
  if (std::ranges::all_of(tree.controllers, [&](const std::string& word) { return on.contains(word); }))
    return {};
  GCS_ASSIGN(const std::string available, base::ReadFileAt(dir, "cgroup.controllers"));
  const auto have = Words(available);
  std::string change;
  for (const std::string& word : tree.controllers) {
    if (have.contains(word) && !on.contains(word)) change += (change.empty() ? "+" : " +") + word;
  }
  if (change.empty()) return {};
  auto written = base::WriteFileAt(dir, "cgroup.subtree_control", change);
  if (!written) written.error().object = name + "/cgroup.subtree_control";
  return written;
}

// The value of `key` in a flat keyed file ("populated 0\nfrozen 0\n"); none if absent.
std::optional<uint64_t> KeyedValue(const std::string& text, std::string_view key) {
  const KeyedValues values = ParseKeyed(text);
  const auto it = values.find(key);
  return it == values.end() ? std::nullopt : std::optional<uint64_t>(it->second);
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

class CgroupV2 final : public Cgroup {
 public:
  CgroupV2(std::shared_ptr<const Tree> tree, Fd fd, std::string path, std::vector<std::string> made)
      : Cgroup(std::move(path)), tree_(std::move(tree)), fd_(std::move(fd)), made_(std::move(made)) {}
  void Adopt() { devices_.Adopt(); }

  [[nodiscard]] int fd() const override { return fd_.get(); }
  [[nodiscard]] Place PlaceOf(size_t) const override { return {fd_.get(), {}}; }
  Result<> Apply(const Resources& resources) override { return Write(resources, false); }
  Result<> Update(const Resources& resources) override;
  Result<> SetDevices(const std::vector<DeviceRule>& rules) override {
    return devices_.Set(fd_.get(), path_, rules);
  }
  Result<> Enter(int pid) override {
    return base::WriteFileAt(fd_.get(), "cgroup.procs", std::to_string(pid));
  }
  Result<> Freeze(bool frozen, int64_t deadline_ns) override;
  [[nodiscard]] bool Frozen() const override {
    return Get(ReadKeyed(fd_.get(), "cgroup.events"), "frozen") == 1;
  }
  Result<> Kill() override {
    return removed_ ? Result<>() : base::WriteFileAt(fd_.get(), "cgroup.kill", "1");
  }
  bool RemoveIfEmpty() override;
  Result<> Remove(int64_t deadline_ns) override;
  [[nodiscard]] Result<CgroupStats> Stats() const override { return StatsV2(fd_.get()); }
  [[nodiscard]] uint64_t OomKills() const override {
    return Get(ReadKeyed(fd_.get(), "memory.events"), "oom_kill");
  }
  [[nodiscard]] Result<std::vector<int>> Pids() const override {
    std::vector<int> pids;
    GCS_TRY(CollectPids(fd_.get(), kMaxCgroupDepth, pids));
    return pids;
  }

 private:
  Result<> Write(const Resources& resources, bool restore);
  Result<> RemoveParents();

  const std::shared_ptr<const Tree> tree_;
  Fd fd_;
  std::vector<std::string> made_;      // outermost first
  std::atomic<bool> removed_ = false;  // it is gone, but not yet all of its parents in made_
  DeviceFilter devices_;
};

// `clean` from the root on: every directory of it that is missing is made, every one but the last has the
// controllers.
Result<std::unique_ptr<Cgroup>> CreateV2(const std::shared_ptr<const Tree>& tree, const std::string& clean) {
  Fd parent(fcntl(tree->fd.get(), F_DUPFD_CLOEXEC, 3));
  if (!parent) return ErrnoError("dup", clean);
  std::vector<std::string> made;
  const auto undo = [&](base::Error error) {
    for (auto it = made.rbegin(); it != made.rend(); ++it)
      unlinkat(tree->fd.get(), it->c_str(), AT_REMOVEDIR);
    return std::unexpected(std::move(error));
  };
  for (size_t at = 1; at < clean.size();) {
    const size_t end = std::min(clean.find('/', at), clean.size());
    const std::string prefix = clean.substr(1, end - 1);
    const std::string name = clean.substr(at, end - at);
    if (auto enabled = EnableControllers(*tree, parent.get(), clean.substr(0, at - 1)); !enabled)
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
    if (end != clean.size() && fresh) MarkMade(parent.get());
    if (end == clean.size() && !fresh) {
      const auto events = base::ReadFileAt(parent.get(), "cgroup.events");
      if (!events) return undo(events.error());
      if (KeyedValue(*events, "populated") != 0 || KeyedValue(*events, "frozen") == 1) {
        return undo(base::Error{"make cgroup", EEXIST, clean, "exists and is in use"});
      }
    }
    at = end + 1;
  }
  return std::make_unique<CgroupV2>(tree, std::move(parent), clean, std::move(made));
}

Result<> CgroupV2::Write(const Resources& resources, bool restore) {
  GCS_ASSIGN(std::vector<CgroupSetting> settings, SettingsV2(resources));
  std::vector<CgroupWrite> writes;
  for (CgroupSetting& setting : settings) writes.push_back({fd_.get(), "", path_, std::move(setting)});
  return WriteSettings(std::move(writes), restore);
}

Result<> CgroupV2::Update(const Resources& resources) {
  if (resources.memory_check_before_update && resources.memory_limit.value_or(0) > 0) {
    const uint64_t used = ReadNumber(fd_.get(), "memory.current");
    if (used > static_cast<uint64_t>(*resources.memory_limit)) {
      return MakeError(EBUSY, "set limit", path_ + "/memory.max", std::to_string(used) + " bytes are in use");
    }
  }
  return Write(resources, true);
}

Result<> CgroupV2::Freeze(bool frozen, int64_t deadline_ns) {
  GCS_TRY(base::WriteFileAt(fd_.get(), "cgroup.freeze", frozen ? "1" : "0"));
  auto done = AwaitEvent(fd_.get(), path_, "frozen", frozen ? 1 : 0, deadline_ns);
  if (!done && frozen) {
    if (auto undone = base::WriteFileAt(fd_.get(), "cgroup.freeze", "0"); !undone) return undone;
  }
  return done;
}

bool CgroupV2::RemoveIfEmpty() {
  if (removed_) return RemoveParents().has_value();
  if (made_.empty() || unlinkat(tree_->fd.get(), made_.back().c_str(), AT_REMOVEDIR) != 0) return false;
  return RemoveParents().has_value();
}

Result<> CgroupV2::Remove(int64_t deadline_ns) {
  if (removed_) return RemoveParents();
  GCS_TRY(AwaitEvent(fd_.get(), path_, "populated", 0, deadline_ns));
  if (made_.empty()) return {};
  const int err = RemoveTree(tree_->fd.get(), made_.back().c_str(), kMaxCgroupDepth);
  if (err != 0) return MakeError(err, "remove cgroup", "/" + made_.back());
  return RemoveParents();
}

Result<> CgroupV2::RemoveParents() {
  if (!removed_) made_.pop_back();
  removed_ = true;
  for (; !made_.empty(); made_.pop_back()) {
    if (unlinkat(tree_->fd.get(), made_.back().c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) continue;
    // Those that others share by now stay.
    if (errno == EBUSY) break;
    return ErrnoError("remove cgroup", "/" + made_.back());
  }
  return {};
}

class RootV2 final : public CgroupRoot {
 public:
  explicit RootV2(Tree tree) : tree_(std::make_shared<const Tree>(std::move(tree))) {}
  Result<std::unique_ptr<Cgroup>> Create(const std::string& path) override;
  Result<std::unique_ptr<Cgroup>> Find(const std::string& path) override {
    const std::string clean = CleanPath(path);
    if (clean == "/") return MakeError(EINVAL, "find cgroup", path, "is the root");
    GCS_ASSIGN(Fd fd, base::OpenFileAt(tree_->fd.get(), clean.substr(1), O_RDONLY | O_DIRECTORY));
    std::vector<std::string> made = MarkedParents(tree_->fd.get(), clean.substr(1));
    made.push_back(clean.substr(1));
    auto found = std::make_unique<CgroupV2>(tree_, std::move(fd), clean, std::move(made));
    found->Adopt();
    return found;
  }

 private:
  // Where the last container was made; the next one's place is mostly beside it.
  struct Parent {
    std::string path;
    Fd fd;
    Fd control;  // cgroup.subtree_control
  };
  Result<std::unique_ptr<Cgroup>> CreateBeside(const Parent& parent, const std::string& clean);

  const std::shared_ptr<const Tree> tree_;
  std::mutex mutex_;
  std::shared_ptr<const Parent> last_;
};

Result<std::unique_ptr<Cgroup>> RootV2::Create(const std::string& path) {
  const std::string clean = CleanPath(path);
  if (clean == "/") return MakeError(EINVAL, "make cgroup", path, "is the root");
  const std::string above = clean.substr(0, clean.rfind('/'));
  std::shared_ptr<const Parent> last;
  {
    const std::lock_guard lock(mutex_);
    last = last_;
  }
  if (last != nullptr && last->path == above) {
    if (auto made = CreateBeside(*last, clean); made) return made;
    // It may be gone, or somebody else's, or not empty: found out, and told, the long way.
  }
  GCS_ASSIGN(std::unique_ptr<Cgroup> made, CreateV2(tree_, clean));
  auto parent = std::make_shared<Parent>(Parent{.path = above, .fd = {}, .control = {}});
  auto fd = base::OpenFileAt(made->fd(), "..", O_RDONLY | O_DIRECTORY);
  if (!fd) return made;
  parent->fd = std::move(*fd);
  auto control = base::OpenFileAt(parent->fd.get(), "cgroup.subtree_control", O_RDONLY);
  if (!control) return made;
  parent->control = std::move(*control);
  const std::lock_guard lock(mutex_);
  last_ = std::move(parent);
  return made;
}

Result<std::unique_ptr<Cgroup>> RootV2::CreateBeside(const Parent& parent, const std::string& clean) {
  char text[512];
  const ssize_t length = pread(parent.control.get(), text, sizeof text, 0);
  if (length < 0) return ErrnoError("read", parent.path + "/cgroup.subtree_control");
  const auto on = Words(std::string(text, static_cast<size_t>(length)));
  if (!std::ranges::all_of(tree_->controllers, [&](const std::string& word) { return on.contains(word); }))
    return MakeError(ENOENT, "enable controllers", parent.path);
  const std::string name = clean.substr(parent.path.size() + 1);
  if (mkdirat(parent.fd.get(), name.c_str(), 0755) != 0) return ErrnoError("make cgroup", clean);
  auto fd = base::OpenFileAt(parent.fd.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!fd) {
    unlinkat(parent.fd.get(), name.c_str(), AT_REMOVEDIR);
    return std::unexpected(fd.error());
  }
  return std::make_unique<CgroupV2>(tree_, std::move(*fd), clean, std::vector<std::string>{clean.substr(1)});
}

}  // namespace

Result<std::unique_ptr<CgroupRoot>> OpenCgroupV2(Fd fd) {
  GCS_ASSIGN(const std::string available, base::ReadFileAt(fd.get(), "cgroup.controllers"));
  const auto have = Words(available);
  std::vector<std::string> controllers;
  for (const std::string_view controller : kControllers) {
    if (have.contains(std::string(controller))) controllers.emplace_back(controller);
  }
  return std::make_unique<RootV2>(Tree{std::move(fd), std::move(controllers)});
}

}  // namespace gcs::engine
