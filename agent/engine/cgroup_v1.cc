// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/paths.h"
#include "engine/cgroup_open.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

namespace {

// Whether new cpusets below one have its processors and memory nodes to begin with.
constexpr char kInherit[] = "cgroup.clone_children";

// The container's directory in one hierarchy. One that was found is held by its descriptor; one that was made
// is nobody else's, and its path will do.
struct Directory {
  const CgroupHierarchy* hierarchy;
  int root;          // the mount
  std::string path;  // from there
  Fd fd;
  std::vector<std::string> made;  // below the mount, outermost first

  [[nodiscard]] Cgroup::Place Place() const {
    return fd.valid() ? Cgroup::Place{fd.get(), {}} : Cgroup::Place{root, path};
  }
  [[nodiscard]] int Dir() const { return fd.valid() ? fd.get() : root; }
  // From there.
  [[nodiscard]] std::string File(std::string_view name) const {
    return fd.valid() ? std::string(name) : path + "/" + std::string(name);
  }
  [[nodiscard]] Result<std::string> Read(std::string_view name, size_t limit = 1 << 20) const {
    return base::ReadFileAt(Dir(), File(name), limit);
  }
  [[nodiscard]] Result<> Write(std::string_view name, std::string_view value) const {
    return base::WriteFileAt(Dir(), File(name), value);
  }
  [[nodiscard]] uint64_t Number(std::string_view name) const { return ReadNumber(Dir(), File(name).c_str()); }
  [[nodiscard]] KeyedValues Keyed(std::string_view name) const {
    return ReadKeyed(Dir(), File(name).c_str());
  }
};

bool Has(const CgroupHierarchy& hierarchy, std::string_view controller) {
  return std::ranges::find(hierarchy.controllers, controller) != hierarchy.controllers.end();
}

// Waits in growing steps: v1 tells of no change.
class Pause {
 public:
  explicit Pause(int64_t deadline_ns) : deadline_ns_(deadline_ns) {}
  // False: the deadline has passed.
  bool Next() {
    const int64_t left = deadline_ns_ - base::MonotonicNs();
    if (left <= 0) return false;
    std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(step_ns_, left)));
    step_ns_ = std::min<int64_t>(step_ns_ * 2, 20 * base::kNsPerMs);
    return true;
  }

 private:
  const int64_t deadline_ns_;
  int64_t step_ns_ = 100'000;
};

std::string RuleText(const DeviceRule& rule, char type) {
  const auto number = [](const std::optional<uint32_t>& value) {
    return value ? std::to_string(*value) : "*";
  };
  std::string text{type};
  text += " " + number(rule.major) + ":" + number(rule.minor) + " ";
  if (rule.read) text += 'r';
  if (rule.write) text += 'w';
  if (rule.mknod) text += 'm';
  return text;
}

// A new cpuset lets nobody in until it has processors and memory nodes: those of its parent.
Result<> InheritCpuset(int parent, int fd) {
  for (const char* file : {"cpuset.cpus", "cpuset.mems"}) {
    GCS_ASSIGN(const std::string own, base::ReadFileAt(fd, file));
    if (own.find_first_not_of(" \n") != std::string::npos) continue;
    GCS_ASSIGN(const std::string value, base::ReadFileAt(parent, file));
    GCS_TRY(base::WriteFileAt(fd, file, value));
  }
  return {};
}

class CgroupV1 final : public Cgroup {
 public:
  CgroupV1(std::string path, std::vector<Directory> directories)
      : Cgroup(std::move(path)), directories_(std::move(directories)) {}
  // It has been made by another process: to be removed as if by this one.
  void Adopt() {
    devices_.Adopt();
    for (Directory& directory : directories_) {
      directory.made = MarkedParents(directory.root, path_.substr(1));
      directory.made.push_back(path_.substr(1));
    }
  }

  [[nodiscard]] int fd() const override { return -1; }
  [[nodiscard]] Place PlaceOf(size_t index) const override { return directories_[index].Place(); }
  Result<> Apply(const Resources& resources) override { return Write(resources, false); }
  Result<> Update(const Resources& resources) override {
    if (resources.memory_check_before_update && resources.memory_limit.value_or(0) > 0) {
      const Directory* memory = Find("memory");
      const uint64_t used = memory == nullptr ? 0 : memory->Number("memory.usage_in_bytes");
      if (used > static_cast<uint64_t>(*resources.memory_limit)) {
        return MakeError(EBUSY, "set limit", path_ + "/memory.limit_in_bytes",
                         std::to_string(used) + " bytes are in use");
      }
    }
    return Write(resources, true);
  }
  Result<> SetDevices(const std::vector<DeviceRule>& rules) override;
  Result<> Enter(int pid) override {
    for (const Directory& directory : directories_) {
      auto entered = directory.Write("cgroup.procs", std::to_string(pid));
      if (entered) continue;
      entered.error().object = Where(directory) + "/cgroup.procs";
      return entered;
    }
    return {};
  }
  Result<> Freeze(bool frozen, int64_t deadline_ns) override;
  [[nodiscard]] bool Frozen() const override {
    const Directory* freezer = Find("freezer");
    return freezer != nullptr && State(*freezer) == "FROZEN";
  }
  Result<> Kill() override;
  bool RemoveIfEmpty() override {
    if (removed_) return RemoveParents().has_value();
    for (Directory& directory : directories_) {
      if (directory.made.empty()) continue;
      if (unlinkat(directory.root, directory.made.back().c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
        return false;
      }
    }
    return RemoveParents().has_value();
  }
  Result<> Remove(int64_t deadline_ns) override;
  [[nodiscard]] Result<CgroupStats> Stats() const override;
  [[nodiscard]] uint64_t OomKills() const override {
    const Directory* memory = Find("memory");
    return memory == nullptr ? 0 : Get(memory->Keyed("memory.oom_control"), "oom_kill");
  }
  [[nodiscard]] Result<std::vector<int>> Pids() const override {
    std::vector<int> pids;
    const auto dir =
        base::OpenFileAt(directories_[0].Dir(), directories_[0].File("."), O_RDONLY | O_DIRECTORY);
    if (!dir && dir.error().err != ENOENT) return std::unexpected(dir.error());
    if (dir) GCS_TRY(CollectPids(dir->get(), kMaxCgroupDepth, pids));
    return pids;
  }

 private:
  [[nodiscard]] const Directory* Find(std::string_view controller) const {
    const auto it = std::ranges::find_if(directories_, [&](const Directory& d) {
      return !d.hierarchy->unified && Has(*d.hierarchy, controller);
    });
    return it == directories_.end() ? nullptr : &*it;
  }
  [[nodiscard]] const Directory* Unified() const {
    const auto it =
        std::ranges::find_if(directories_, [](const Directory& d) { return d.hierarchy->unified; });
    return it == directories_.end() ? nullptr : &*it;
  }
  [[nodiscard]] std::string Where(const Directory& directory) const {
    return directory.hierarchy->name + path_;
  }
  static std::string State(const Directory& freezer) {
    std::string state = freezer.Read("freezer.state").value_or("");
    while (!state.empty() && state.back() == '\n') state.pop_back();
    return state;
  }
  Result<> Write(const Resources& resources, bool restore);
  // Once the cgroup itself is gone everywhere.
  Result<> RemoveParents() {
    for (Directory& directory : directories_) {
      if (!removed_ && !directory.made.empty()) directory.made.pop_back();
    }
    removed_ = true;
    for (Directory& directory : directories_) {
      for (; !directory.made.empty(); directory.made.pop_back()) {
        if (unlinkat(directory.root, directory.made.back().c_str(), AT_REMOVEDIR) == 0) continue;
        if (errno == ENOENT) continue;
        // Those that others share by now stay.
        if (errno == EBUSY) {
          directory.made.clear();
          break;
        }
        return ErrnoError("remove cgroup", directory.hierarchy->name + "/" + directory.made.back());
      }
    }
    return {};
  }

  std::vector<Directory> directories_;
  std::atomic<bool> removed_ = false;  // it is gone, but not yet all that was made above it
  DeviceFilter devices_;               // without a devices hierarchy
};

Result<> CgroupV1::Write(const Resources& resources, bool restore) {
  const Directory* unified = Unified();
  Resources v1 = resources;
  Resources v2 = resources;
  if (unified != nullptr) v1.unified.clear();
  v2.cpu_realtime_period.reset();
  v2.cpu_realtime_runtime.reset();
  v2.network_class_id.reset();
  v2.network_priorities.clear();
  std::vector<CgroupWrite> writes;
  GCS_ASSIGN(std::vector<CgroupSetting> settings, SettingsV1(v1));
  for (CgroupSetting& setting : settings) {
    const Directory* directory = Find(setting.controller);
    const std::string_view controller =
        setting.controller == "blkio" ? "io" : std::string_view(setting.controller);
    if (directory != nullptr) {
      writes.push_back({directory->Dir(), directory->File(""), Where(*directory), std::move(setting)});
    } else if (!setting.optional && (unified == nullptr || !Has(*unified->hierarchy, controller))) {
      return MakeError(EOPNOTSUPP, "set limit", setting.choices[0].file, "the controller is not available");
    }
  }
  if (unified != nullptr) {
    GCS_ASSIGN(std::vector<CgroupSetting> rest, SettingsV2(v2));
    for (CgroupSetting& setting : rest) {
      const std::string& file = setting.choices[0].file;
      const bool named =
          std::ranges::any_of(v2.unified, [&](const auto& entry) { return entry.first == file; });
      if (!named && !Has(*unified->hierarchy, setting.controller)) continue;
      writes.push_back({unified->Dir(), unified->File(""), Where(*unified), std::move(setting)});
    }
  }
  return WriteSettings(std::move(writes), restore);
}

Result<> CgroupV1::SetDevices(const std::vector<DeviceRule>& rules) {
  const Directory* devices = Find("devices");
  if (devices == nullptr) {
    if (const Directory* unified = Unified()) {
      GCS_ASSIGN(const Fd dir, base::OpenFileAt(unified->Dir(), unified->File("."), O_RDONLY | O_DIRECTORY));
      return devices_.Set(dir.get(), path_, rules);
    }
    return MakeError(EOPNOTSUPP, "set device filter", path_, "no devices controller");
  }
  // Each rule is a write of its own, but not an open.
  GCS_ASSIGN(const Fd allow_file, base::OpenFileAt(devices->Dir(), devices->File("devices.allow"), O_WRONLY));
  GCS_ASSIGN(const Fd deny_file, base::OpenFileAt(devices->Dir(), devices->File("devices.deny"), O_WRONLY));
  const auto write = [&](bool allow, const std::string& text) -> Result<> {
    ssize_t written = 0;
    do {
      written = ::write(allow ? allow_file.get() : deny_file.get(), text.data(), text.size());
    } while (written < 0 && errno == EINTR);
    if (written >= 0) return {};
    return ErrnoError("write", Where(*devices) + ": " + text);
  };
  const auto all = [](const DeviceRule& rule) {
    return rule.type == 'a' && !rule.major && !rule.minor && rule.read && rule.write && rule.mknod;
  };
  // Denied, whatever the rules begin with.
  if (rules.empty() || rules.front().allow || !all(rules.front())) GCS_TRY(write(false, "a"));
  const auto apply = [&](const std::vector<DeviceRule>& list) -> Result<> {
    for (const DeviceRule& rule : list) {
      if (all(rule)) {
        GCS_TRY(write(rule.allow, "a"));
        continue;
      }
      for (const char type : rule.type == 'a' ? std::string_view("bc") : std::string_view(&rule.type, 1)) {
        GCS_TRY(write(rule.allow, RuleText(rule, type)));
      }
    }
    return {};
  };
  GCS_TRY(apply(rules));
  return apply(DefaultDeviceRules());
}

Result<> CgroupV1::Freeze(bool frozen, int64_t deadline_ns) {
  const Directory* freezer = Find("freezer");
  if (freezer == nullptr) return MakeError(EOPNOTSUPP, "freeze", path_, "no freezer controller");
  const char* wanted = frozen ? "FROZEN" : "THAWED";
  Pause pause(deadline_ns);
  for (;;) {
    // Once more each time: a process that forked meanwhile may have got away.
    GCS_TRY(freezer->Write("freezer.state", wanted));
    if (State(*freezer) == wanted) return {};
    if (pause.Next()) continue;
    if (frozen) GCS_TRY(freezer->Write("freezer.state", "THAWED"));
    return MakeError(ETIMEDOUT, "freeze", path_, std::string("is not ") + wanted);
  }
}

Result<> CgroupV1::Kill() {
  constexpr int64_t kFreezeNs = base::kNsPerSec;
  if (removed_) return {};
  const bool freezer = Find("freezer") != nullptr;
  if (const Directory* unified = Unified()) {
    GCS_TRY(unified->Write("cgroup.kill", "1"));
    // Unlike cgroup2's, this freezer holds even who is killed.
    return freezer ? Freeze(false, base::MonotonicNs() + kFreezeNs) : Result<>();
  }
  // Frozen processes keep their numbers and fork no others. One that can't be frozen now is met again by
  // Remove.
  const bool frozen = freezer && Freeze(true, base::MonotonicNs() + kFreezeNs).has_value();
  const auto pids = Pids();
  for (const int pid : pids.value_or(std::vector<int>())) {
    const Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (!pidfd.valid()) continue;
    if (!frozen) {
      // Still in here now that the pidfd holds it: not somebody else's with a reused number.
      const auto again = Pids();
      if (!again || std::ranges::find(*again, pid) == again->end()) continue;
    }
    syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
  }
  // Whatever else fails: frozen, not even the killed end.
  if (freezer) GCS_TRY(Freeze(false, base::MonotonicNs() + kFreezeNs));
  if (!pids) return std::unexpected(pids.error());
  return {};
}

Result<> CgroupV1::Remove(int64_t deadline_ns) {
  if (removed_) return RemoveParents();
  Pause pause(deadline_ns);
  for (;;) {
    int err = 0;
    for (Directory& directory : directories_) {
      if (directory.made.empty()) continue;
      const int rc = RemoveTree(directory.root, directory.made.back().c_str(), kMaxCgroupDepth);
      if (rc != 0 && err == 0) err = rc;
    }
    if (err == 0) break;
    if (err != EBUSY) return MakeError(err, "remove cgroup", path_);
    if (!pause.Next()) return MakeError(ETIMEDOUT, "remove cgroup", path_, "processes are left in it");
    // Whoever was forked while the others were killed. The freezer's directory may be gone already: a dying
    // process leaves the hierarchies one after the other.
    if (Unified() != nullptr) continue;
    if (auto killed = Kill(); !killed && killed.error().err != ENOENT) return killed;
  }
  return RemoveParents();
}

std::vector<IoStats> ReadIo(const Directory& block) {
  std::vector<IoStats> all;
  const auto text = [&](const char* file) { return block.Read(file).value_or(""); };
  ParseBlkio(text("blkio.throttle.io_service_bytes_recursive"), &IoStats::read_bytes, &IoStats::write_bytes,
             all);
  ParseBlkio(text("blkio.throttle.io_serviced_recursive"), &IoStats::read_ops, &IoStats::write_ops, all);
  return all;
}

Result<CgroupStats> CgroupV1::Stats() const {
  constexpr uint64_t kNsPerUs = 1000;
  constexpr uint64_t kUnlimited = uint64_t{1} << 62;  // about what the kernel shows for no limit
  GCS_TRY(directories_[0].Read("cgroup.procs", 16 << 20));
  CgroupStats stats;
  if (const Directory* cpu = Find("cpuacct")) {
    stats.cpu_usage_us = cpu->Number("cpuacct.usage") / kNsPerUs;
    stats.cpu_user_us = cpu->Number("cpuacct.usage_user") / kNsPerUs;
    stats.cpu_system_us = cpu->Number("cpuacct.usage_sys") / kNsPerUs;
  }
  if (const Directory* cpu = Find("cpu")) {
    const KeyedValues values = cpu->Keyed("cpu.stat");
    stats.cpu_periods = Get(values, "nr_periods");
    stats.cpu_throttled_periods = Get(values, "nr_throttled");
    stats.cpu_throttled_us = Get(values, "throttled_time") / kNsPerUs;
  }
  if (const Directory* memory = Find("memory")) {
    stats.memory_usage = memory->Number("memory.usage_in_bytes");
    stats.memory_peak = memory->Number("memory.max_usage_in_bytes");
    stats.memory_limit = memory->Number("memory.limit_in_bytes");
    if (stats.memory_limit >= kUnlimited) stats.memory_limit = 0;
    const uint64_t with_swap = memory->Number("memory.memsw.usage_in_bytes");
    stats.memory_swap = with_swap > stats.memory_usage ? with_swap - stats.memory_usage : 0;
    stats.memory_kernel = memory->Number("memory.kmem.usage_in_bytes");
    const KeyedValues values = memory->Keyed("memory.stat");
    stats.memory_anon = Get(values, "total_rss");
    stats.memory_file = Get(values, "total_cache");
    stats.memory_inactive_file = Get(values, "total_inactive_file");
    stats.memory_oom_kill = OomKills();
    stats.memory_max_hits = memory->Number("memory.failcnt");
  }
  if (const Directory* pids = Find("pids")) {
    stats.pids_current = pids->Number("pids.current");
    stats.pids_limit = pids->Number("pids.max");
  }
  if (const Directory* block = Find("blkio")) stats.io = ReadIo(*block);
  return stats;
}

// Makes `clean` in one hierarchy. What has been made is in `made`, also on failure.
Result<> MakeDirectory(const CgroupHierarchy& hierarchy, int root, const std::string& clean,
                       std::vector<std::string>& made) {
  Fd parent(fcntl(root, F_DUPFD_CLOEXEC, 3));
  if (!parent) return ErrnoError("dup", hierarchy.name);
  const bool cpuset = !hierarchy.unified && Has(hierarchy, "cpuset");
  for (size_t at = 1; at < clean.size();) {
    const size_t end = std::min(clean.find('/', at), clean.size());
    const std::string prefix = clean.substr(1, end - 1);
    const std::string name = clean.substr(at, end - at);
    if (hierarchy.unified) {
      // What the parent can't give, its other processes keep it from giving: then it is not to be had here.
      for (const std::string& controller : hierarchy.controllers) {
        [[maybe_unused]] const auto enabled =
            base::WriteFileAt(parent.get(), "cgroup.subtree_control", "+" + controller);
      }
    }
    const bool fresh = mkdirat(parent.get(), name.c_str(), 0755) == 0;
    if (fresh) {
      made.push_back(prefix);
    } else if (errno != EEXIST) {
      return ErrnoError("make cgroup", hierarchy.name + "/" + prefix);
    }
    GCS_ASSIGN(Fd next, base::OpenFileAt(parent.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    if (cpuset) GCS_TRY(InheritCpuset(parent.get(), next.get()));
    if (end != clean.size() && fresh) {
      MarkMade(next.get());
      // What is made below gets its processors and memory nodes from the kernel.
      if (cpuset) GCS_TRY(base::WriteFileAt(next.get(), kInherit, "1"));
    }
    if (end == clean.size() && !fresh) {
      GCS_ASSIGN(const std::string inside, base::ReadFileAt(next.get(), "cgroup.procs", 16 << 20));
      if (!inside.empty()) {
        return MakeError(EEXIST, "make cgroup", hierarchy.name + clean, "exists and is in use");
      }
    }
    parent = std::move(next);
    at = end + 1;
  }
  return {};
}

class RootV1 final : public CgroupRoot {
 public:
  RootV1(std::vector<CgroupHierarchy> hierarchies, std::vector<Fd> mounts) : mounts_(std::move(mounts)) {
    hierarchies_ = std::move(hierarchies);
  }

  Result<std::unique_ptr<Cgroup>> Create(const std::string& path) override {
    const std::string clean = CleanPath(path);
    if (clean == "/") return MakeError(EINVAL, "make cgroup", path, "is the root");
    const std::string above = clean.substr(0, clean.rfind('/'));
    std::shared_ptr<const Parent> last;
    {
      const std::lock_guard lock(mutex_);
      last = last_;
    }
    if (last != nullptr && last->path == above) {
      if (auto made = CreateBeside(*last, clean); made != nullptr) return made;
    }
    GCS_ASSIGN(std::unique_ptr<CgroupV1> made, Make(clean, [&](Directory& directory) {
                 return MakeDirectory(*directory.hierarchy, directory.root, clean, directory.made);
               }));
    Remember(above);
    return made;
  }
  Result<std::unique_ptr<Cgroup>> Find(const std::string& path) override {
    const std::string clean = CleanPath(path);
    if (clean == "/") return MakeError(EINVAL, "find cgroup", path, "is the root");
    // Nothing is `made` until all is found: it would be removed if the rest is just being made by another
    // process.
    GCS_ASSIGN(std::unique_ptr<CgroupV1> found, Make(clean, [](Directory& directory) -> Result<> {
                 GCS_ASSIGN(directory.fd,
                            base::OpenFileAt(directory.root, directory.path, O_RDONLY | O_DIRECTORY));
                 return {};
               }));
    found->Adopt();
    return found;
  }

 private:
  // Where the last container was made; the next one's place is mostly beside it.
  struct Parent {
    std::string path;
    std::vector<Fd> fds;  // by hierarchy
  };

  // One directory in each hierarchy; what the failed one and those before have made is removed.
  template <typename MakeOne>
  Result<std::unique_ptr<CgroupV1>> Make(const std::string& clean, MakeOne make_one) {
    std::vector<Directory> directories;
    for (size_t i = 0; i < hierarchies_.size(); ++i) {
      directories.push_back({.hierarchy = &hierarchies_[i],
                             .root = mounts_[i].get(),
                             .path = clean.substr(1),
                             .fd = {},
                             .made = {}});
      auto made = make_one(directories.back());
      if (made) continue;
      // Undo, innermost first.
      for (Directory& done : directories) {
        for (auto it = done.made.rbegin(); it != done.made.rend(); ++it) {
          unlinkat(done.root, it->c_str(), AT_REMOVEDIR);
        }
      }
      return std::unexpected(made.error());
    }
    return std::make_unique<CgroupV1>(clean, std::move(directories));
  }

  // Null: not so easily, for whatever reason; it is found out, and told, the long way.
  std::unique_ptr<Cgroup> CreateBeside(const Parent& parent, const std::string& clean) {
    const std::string name = clean.substr(parent.path.size() + 1);
    size_t at = 0;
    auto made = Make(clean, [&](Directory& directory) -> Result<> {
      if (mkdirat(parent.fds[at++].get(), name.c_str(), 0755) != 0) return ErrnoError("make cgroup", clean);
      directory.made.push_back(directory.path);
      return {};
    });
    return made ? std::move(*made) : nullptr;
  }

  void Remember(const std::string& above) {
    auto parent = std::make_shared<Parent>(Parent{.path = above, .fds = {}});
    for (size_t i = 0; i < hierarchies_.size(); ++i) {
      const CgroupHierarchy& hierarchy = hierarchies_[i];
      // There is more to it: controllers to be enabled, or processors to be handed down.
      if (hierarchy.unified) return;
      auto fd =
          base::OpenFileAt(mounts_[i].get(), above.empty() ? "." : above.substr(1), O_RDONLY | O_DIRECTORY);
      if (!fd) return;
      if (Has(hierarchy, "cpuset") && base::ReadFileAt(fd->get(), kInherit).value_or("") != "1\n") return;
      parent->fds.push_back(std::move(*fd));
    }
    const std::lock_guard lock(mutex_);
    last_ = std::move(parent);
  }

  std::vector<Fd> mounts_;
  std::mutex mutex_;
  std::shared_ptr<const Parent> last_;
};

}  // namespace

Result<std::unique_ptr<CgroupRoot>> OpenCgroupV1(std::vector<CgroupHierarchy> hierarchies) {
  std::vector<Fd> mounts;
  for (CgroupHierarchy& hierarchy : hierarchies) {
    GCS_ASSIGN(Fd fd, base::OpenFile(hierarchy.mount_point, O_RDONLY | O_DIRECTORY));
    if (hierarchy.unified) {
      GCS_ASSIGN(const std::string available, base::ReadFileAt(fd.get(), "cgroup.controllers"));
      for (const std::string& word : Words(available)) hierarchy.controllers.push_back(word);
    }
    mounts.push_back(std::move(fd));
  }
  return std::make_unique<RootV1>(std::move(hierarchies), std::move(mounts));
}

}  // namespace gcs::engine
