// SPDX-License-Identifier: Apache-2.0
#include "storage/storage.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <ranges>
#include <set>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/paths.h"
#include "storage/ext4.h"
#include "storage/job.h"
#include "storage/mount_api.h"
#include "storage/mount_build.h"
#include "storage/mount_dirs.h"
#include "storage/storage_entry.h"

namespace gcs::storage {

using base::Fd;
using base::MakeError;
using base::Result;

namespace {

constexpr size_t kMostLayers = 500;  // OVL_MAX_STACK
constexpr size_t kLongestId = 255;   // it names a directory
constexpr uint32_t kDefaultMsize = 128 * 1024;
constexpr uint32_t kSmallestMsize = 4096;    // p9_client_create refuses less
constexpr uint32_t kLargestMsize = 1 << 20;  // MAX_SOCK_BUF of trans=fd
constexpr uint32_t kModeBits = 07777;

Result<> CheckId(const std::string& id) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '+' || c == '-' || c == '.';
  };
  if (id.empty() || id.size() > kLongestId || id.front() == '.' || !std::ranges::all_of(id, allowed)) {
    return MakeError(EINVAL, "check mount_id", id, "a mount id is [A-Za-z0-9_+-][A-Za-z0-9_+.-]{0,254}");
  }
  return {};
}

class Stopwatch {
 public:
  explicit Stopwatch(std::vector<Timing>* timings) : timings_(timings), begin_(base::MonotonicNs()) {}
  void Lap(std::string step) {
    const int64_t now = base::MonotonicNs();
    timings_->push_back({std::move(step), now - begin_});
    begin_ = now;
  }

 private:
  std::vector<Timing>* const timings_;
  int64_t begin_;
};

bool Contains(const auto& range, const auto& value) {
  return std::ranges::find(range, value) != std::ranges::end(range);
}

}  // namespace

std::string_view MountKindName(MountKind kind) {
  switch (kind) {
    case MountKind::kDisk:
      return "disk";
    case MountKind::kOverlay:
      return "overlay";
    case MountKind::kShare:
      return "share";
    case MountKind::kTmpfs:
      return "tmpfs";
  }
  return "?";
}

// A mount to be made: what is known before, and how to make it.
struct Storage::Plan {
  std::shared_ptr<Entry> entry = std::make_shared<Entry>();
  std::vector<std::string> layers;
  std::vector<std::string> layer_paths;  // filled by Admit
  bool restored_scratch = false;         // likewise
  // On the caller's thread after admission: what waits by itself.
  std::function<Result<>(Plan&, const Wait&)> prepare;
  // On a worker; the detached mount.
  std::function<Result<Fd>(Plan&)> build;
  // Ends a build that hangs; any thread.
  std::function<void()> abort;
  MadeDirs made;  // what `build` made outside the detached mount
  Mounted answer;
};

Storage::Storage(StorageOptions options)
    : options_(std::move(options)),
      disks_(options_.sysfs, options_.dev),
      dirs_(std::make_unique<MountDirs>(options_.target_roots, options_.reserved)),
      pool_(options_.max_workers) {}

Storage::~Storage() = default;

Result<std::shared_ptr<Storage::Entry>> Storage::FindMounted(const std::string& mount_id) {
  const auto it = entries_.find(mount_id);
  if (it == entries_.end()) return MakeError(ENOENT, "find mount", mount_id);
  if (it->second->state != Entry::State::kMounted)
    return MakeError(EBUSY, "find mount", mount_id, "it is being worked on");
  return it->second;
}

// A target may lie in a disk or a tmpfs of ours, which then can't go before it. Overlays and shares hold what
// containers and the host put there, and a share may hang.
Result<> Storage::AdmitTarget(MountInfo& info) {
  constexpr std::string_view kStep = "check target";
  std::shared_ptr<Entry> holder;
  for (const auto& [id, other] : entries_) {
    if (IsAtOrBelow(other->info.path, info.path)) {
      return MakeError(EBUSY, kStep, info.path, "mount \"" + id + "\" is there or below");
    }
    if (IsAtOrBelow(info.path, other->info.path) &&
        (!holder || other->info.path.size() > holder->info.path.size())) {
      holder = other;
    }
  }
  if (!holder) return {};
  if (holder->info.kind != MountKind::kDisk && holder->info.kind != MountKind::kTmpfs) {
    return MakeError(EINVAL, kStep, info.path, "it lies inside mount \"" + holder->info.mount_id + "\"");
  }
  GCS_TRY(FindMounted(holder->info.mount_id));
  if (!Contains(info.uses, holder->info.mount_id)) info.uses.push_back(holder->info.mount_id);
  return {};
}

Result<> Storage::AdmitOverlay(Plan& plan) {
  Entry& entry = *plan.entry;
  for (const auto& layer : plan.layers) {
    GCS_ASSIGN(const auto found, FindMounted(layer));
    plan.layer_paths.push_back(found->info.path);
    if (!Contains(entry.info.uses, layer)) entry.info.uses.push_back(layer);
  }
  if (entry.scratch.empty()) return {};
  GCS_ASSIGN(const auto scratch, FindMounted(entry.scratch));
  const MountKind kind = scratch->info.kind;
  if (kind != MountKind::kDisk && kind != MountKind::kTmpfs) {
    return MakeError(EINVAL, "check scratch", entry.scratch, "a scratch is a disk or a tmpfs");
  }
  if (scratch->info.read_only)
    return MakeError(EROFS, "check scratch", entry.scratch, "it is mounted read-only");
  if (Contains(plan.layers, entry.scratch))
    return MakeError(EINVAL, "check scratch", entry.scratch, "it is a layer too");
  entry.scratch_path = scratch->info.path;
  plan.restored_scratch = scratch->restored;
  for (const auto& [id, other] : entries_) {
    if (other->scratch != entry.scratch) continue;
    // The kernel only warns of an upper directory with two users, and leaves both undefined.
    if (IsAtOrBelow(other->scratch_dir, entry.scratch_dir) ||
        IsAtOrBelow(entry.scratch_dir, other->scratch_dir)) {
      return MakeError(EBUSY, "check scratch_dir", entry.scratch_dir, "mount \"" + id + "\" uses it");
    }
  }
  if (!Contains(entry.info.uses, entry.scratch)) entry.info.uses.push_back(entry.scratch);
  return {};
}

Result<> Storage::Admit(Plan& plan) {
  MountInfo& info = plan.entry->info;
  const auto it = entries_.find(info.mount_id);
  if (it != entries_.end()) {
    if (it->second->state == Entry::State::kMounted)
      return MakeError(EEXIST, "check mount_id", info.mount_id);
    return MakeError(EBUSY, "check mount_id", info.mount_id, "it is being worked on");
  }
  if (info.kind == MountKind::kOverlay) GCS_TRY(AdmitOverlay(plan));
  GCS_TRY(AdmitTarget(info));
  plan.entry->sequence = next_sequence_++;
  entries_.emplace(info.mount_id, plan.entry);
  return {};
}

void Storage::Forget(const std::string& mount_id) {
  if (options_.forget) options_.forget(mount_id);
  const std::lock_guard lock(mutex_);
  entries_.erase(mount_id);
}

Result<Mounted> Storage::Mount(const std::shared_ptr<Plan>& plan, const Wait& wait) {
  MountInfo& info = plan->entry->info;
  GCS_TRY(CheckId(info.mount_id));
  if (info.path.empty()) info.path = options_.default_dir + "/" + info.mount_id;
  GCS_TRY(dirs_->Check(info.path));
  GCS_ASSIGN(const auto job, Job::Prepare(wait, info.mount_id));
  {
    const std::lock_guard lock(mutex_);
    GCS_TRY(Admit(*plan));
  }
  const std::string mount_id = info.mount_id;
  if (plan->prepare) {
    if (auto prepared = plan->prepare(*plan, wait); !prepared) {
      Forget(mount_id);
      return std::unexpected(prepared.error());
    }
  }
  // The worker may outlive this call, so the plan is shared with it.
  const auto mount = [this, plan](Job& running) -> Result<> {
    const std::string& path = plan->entry->info.path;
    Stopwatch watch(&plan->answer.timings);
    GCS_ASSIGN(const Fd detached, plan->build(*plan));
    watch.Lap("mount");
    GCS_ASSIGN(plan->entry->kernel_id, MountIdOf(detached.get(), path));
    if (!running.Commit()) return MakeError(ECANCELED, "mount", path);
    GCS_ASSIGN(const Fd directory, dirs_->Make(path));
    auto attached = Attach(detached.get(), directory.get(), path);
    watch.Lap("attach");
    if (attached) {
      auto kept = Keep(*plan->entry);
      if (kept) return kept;
      if (auto gone = UnmountAt(path, plan->entry->kernel_id); !gone)
        base::LogError("mount that can't be kept", gone.error());
      attached = std::move(kept);
    }
    dirs_->Remove(path);
    return attached;
  };
  const auto work = [this, plan, mount](Job& running) -> Result<> {
    auto result = mount(running);
    if (result) {
      plan->made.Keep();
    } else {
      plan->made.RemoveAll();
    }
    const std::lock_guard lock(mutex_);
    if (result) {
      plan->entry->state = Entry::State::kMounted;
    } else {
      entries_.erase(plan->entry->info.mount_id);
    }
    return result;
  };
  GCS_TRY(RunJob(pool_, job, wait, mount_id, work, plan->abort));
  plan->answer.path = plan->entry->info.path;
  return std::move(plan->answer);
}

Result<Mounted> Storage::MountDisk(const DiskMount& request, const Wait& wait) {
  const std::string fs_type = request.fs_type.empty() ? "ext4" : request.fs_type;
  if (!Contains(std::array{"ext4", "xfs", "erofs", "squashfs"}, fs_type)) {
    return MakeError(EINVAL, "check fs_type", fs_type, "ext4, xfs, erofs or squashfs");
  }
  GCS_ASSIGN(const MountOptions options, ParseMountOptions(request.options, request.read_only));
  if (request.format_if_empty && (options.read_only || fs_type != "ext4")) {
    return MakeError(EINVAL, "check format_if_empty", request.mount_id,
                     "only a writable ext4 disk can be formatted");
  }
  const auto plan = std::make_shared<Plan>();
  plan->entry->info = {.mount_id = request.mount_id,
                       .kind = MountKind::kDisk,
                       .path = request.target,
                       .fs_type = fs_type,
                       .read_only = options.read_only || fs_type == "erofs" || fs_type == "squashfs"};
  plan->prepare = [this, disk = request.disk, partition = request.partition](Plan& p,
                                                                             const Wait& w) -> Result<> {
    Stopwatch watch(&p.answer.timings);
    GCS_ASSIGN(const BlockDevice device, disks_.WaitFor(disk, partition, w));
    watch.Lap("wait");
    p.answer.device = device.path;
    const std::lock_guard lock(mutex_);
    p.entry->info.source = device.path;
    return {};
  };
  plan->build = [fs_type, options, format = request.format_if_empty](Plan& p) -> Result<Fd> {
    const std::string& device = p.answer.device;
    if (format) {
      Stopwatch watch(&p.answer.timings);
      GCS_ASSIGN(const DiskContent content, ProbeContent(device));
      if (content == DiskContent::kOther) {
        return MakeError(ENOTEMPTY, "format", device, "the disk holds data that is no ext4 file system");
      }
      if (content == DiskContent::kEmpty) {
        GCS_TRY(FormatExt4(device, {}));
        p.answer.formatted = true;
        watch.Lap("format");
      }
    }
    auto mount = BuildDisk({.device = device, .fs_type = fs_type, .scratch = format, .options = options});
    if (!mount && mount.error().err == EINVAL && mount.error().message.empty() && fs_type == "ext4") {
      // ext4 tells this to the kernel's log only.
      const auto content = ProbeContent(device);
      if (content && *content != DiskContent::kExt4)
        mount.error().message = "the disk carries no ext4 file system";
    }
    return mount;
  };
  return Mount(plan, wait);
}

Result<Mounted> Storage::MountOverlay(const OverlayMount& request, const Wait& wait) {
  if (request.layers.empty() || request.layers.size() > kMostLayers) {
    return MakeError(EINVAL, "check layers", request.mount_id, "an overlay has 1 to 500 layers");
  }
  if (std::set(request.layers.begin(), request.layers.end()).size() != request.layers.size()) {
    return MakeError(EINVAL, "check layers", request.mount_id, "a layer is named twice");
  }
  if (request.scratch.empty() && (!request.scratch_dir.empty() || request.discard)) {
    return MakeError(EINVAL, "check scratch_dir", request.scratch_dir, "there is no scratch");
  }
  const auto plan = std::make_shared<Plan>();
  plan->layers = request.layers;
  plan->entry->info = {.mount_id = request.mount_id,
                       .kind = MountKind::kOverlay,
                       .path = request.target,
                       .source = "overlay",
                       .fs_type = "overlay",
                       .read_only = request.scratch.empty()};
  if (!request.scratch.empty()) {
    plan->entry->scratch = request.scratch;
    plan->entry->scratch_dir = request.scratch_dir.empty() ? request.mount_id : request.scratch_dir;
    plan->entry->discard = request.discard;
    GCS_TRY(SplitRelative(plan->entry->scratch_dir, "check scratch_dir"));
  }
  plan->build = [](Plan& p) -> Result<Fd> {
    const Entry& entry = *p.entry;
    const OverlayBuild build{.lower = p.layer_paths, .object = entry.info.path};
    if (entry.scratch.empty()) return BuildReadOnlyOverlay(build);
    GCS_ASSIGN(const Fd scratch, base::OpenFile(entry.scratch_path, O_PATH | O_DIRECTORY | O_NOFOLLOW));
    const OverlayUpper upper{
        .scratch = scratch.get(), .scratch_path = entry.scratch_path, .dir = entry.scratch_dir};
    // An agent that crashed in the middle of this call may have left its mark there, that of a mount which
    // was never used. The scratch has been mounted ever since, so nothing that was written to it is lost.
    if (p.restored_scratch) {
      if (auto cleaned = CleanOverlayUpper(upper, false); !cleaned && cleaned.error().err != ENOENT)
        return std::unexpected(cleaned.error());
    }
    return BuildOverlay(build, upper, p.made);
  };
  return Mount(plan, wait);
}

Result<Mounted> Storage::MountShare(const ShareMount& request, Fd connection, const Wait& wait) {
  if (request.engine == ShareEngine::kCompletion) {
    return MakeError(EOPNOTSUPP, "check engine", request.mount_id, "this agent has no completion engine");
  }
  if (!request.allowed_names.empty()) {
    return MakeError(EOPNOTSUPP, "check allowed_names", request.mount_id, "not built");
  }
  const uint32_t msize = request.msize == 0 ? kDefaultMsize : request.msize;
  if (msize < kSmallestMsize || msize > kLargestMsize) {
    return MakeError(EINVAL, "check msize", std::to_string(msize), "4096 to 1048576");
  }
  // v9fs takes its options as one line with commas between them.
  for (const auto& name : {request.share_name, request.user_name}) {
    if (name.find_first_of(std::string_view(",\0", 2)) != std::string::npos) {
      return MakeError(EINVAL, "check share_name", name, "v9fs can't be told a name with a comma");
    }
  }
  if (!connection) return MakeError(EBADF, "check connection", request.mount_id);
  const auto plan = std::make_shared<Plan>();
  const std::string source = "vsock:" + std::to_string(request.port) + " " + request.share_name;
  plan->entry->info = {.mount_id = request.mount_id,
                       .kind = MountKind::kShare,
                       .path = request.target,
                       .source = source,
                       .fs_type = "9p",
                       .read_only = request.read_only};
  // The kernel has its own reference. Ours is for the day when the server is silent.
  const auto socket = std::make_shared<Fd>(std::move(connection));
  plan->entry->connection = socket;
  plan->build = [socket, source, msize, share_name = request.share_name, read_only = request.read_only,
                 user = request.user_name.empty() ? "root" : request.user_name](Plan&) {
    return BuildShare({.connection = socket->get(),
                       .share_name = share_name,
                       .user_name = user,
                       .msize = msize,
                       .read_only = read_only,
                       .object = source});
  };
  plan->abort = [socket] { shutdown(socket->get(), SHUT_RDWR); };
  return Mount(plan, wait);
}

Result<Mounted> Storage::MountTmpfs(const TmpfsMount& request, const Wait& wait) {
  if ((request.mode & ~kModeBits) != 0) return MakeError(EINVAL, "check mode", std::to_string(request.mode));
  const auto plan = std::make_shared<Plan>();
  plan->entry->info = {.mount_id = request.mount_id,
                       .kind = MountKind::kTmpfs,
                       .path = request.target,
                       .source = "tmpfs",
                       .fs_type = "tmpfs"};
  plan->build = [size = request.size_bytes, mode = request.mode](Plan& p) {
    return BuildTmpfs(size, mode, p.entry->info.mount_id);
  };
  return Mount(plan, wait);
}

Result<> Storage::DoUnmount(const std::string& mount_id, const std::string& as_owner, const Wait& wait) {
  static constexpr std::string_view kStep = "unmount";
  GCS_ASSIGN(const auto job, Job::Prepare(wait, mount_id));
  std::shared_ptr<Entry> entry;
  {
    const std::lock_guard lock(mutex_);
    GCS_ASSIGN(entry, FindMounted(mount_id));
    for (const auto& [id, other] : entries_) {
      if (Contains(other->info.uses, mount_id))
        return MakeError(EBUSY, kStep, id, "this mount uses \"" + mount_id + "\"");
    }
    if (!entry->users.empty()) {
      return MakeError(EBUSY, kStep, *entry->users.begin(), "this container uses \"" + mount_id + "\"");
    }
    if (!entry->info.owner.empty() && entry->info.owner != as_owner) {
      return MakeError(EBUSY, kStep, entry->info.owner, "this container owns \"" + mount_id + "\"");
    }
    entry->state = Entry::State::kUnmounting;
  }
  const auto work = [this, entry](Job& running) -> Result<> {
    auto result = running.Begin() ? UnmountAt(entry->info.path, entry->kernel_id)
                                  : MakeError(ECANCELED, kStep, entry->info.mount_id);
    if (!result) {
      const std::lock_guard lock(mutex_);
      entry->state = Entry::State::kMounted;
      return result;
    }
    if (!entry->scratch.empty()) {
      const auto scratch = base::OpenFile(entry->scratch_path, O_PATH | O_DIRECTORY | O_NOFOLLOW);
      auto cleaned = scratch ? CleanOverlayUpper({.scratch = scratch->get(),
                                                  .scratch_path = entry->scratch_path,
                                                  .dir = entry->scratch_dir},
                                                 entry->discard)
                             : std::unexpected(scratch.error());
      // The mount itself is gone: what is left of its upper directory is not worth a failed call.
      if (!cleaned)
        base::LogError("overlay's upper directory not cleaned", cleaned.error(),
                       {{"mount", entry->info.mount_id}});
    }
    dirs_->Remove(entry->info.path);
    Forget(entry->info.mount_id);
    return {};
  };
  if (entry->connection == nullptr) return RunJob(pool_, job, wait, mount_id, work);
  return RunJob(pool_, job, wait, mount_id, work, [entry, job] {
    if (job->begun()) shutdown(entry->connection->get(), SHUT_RDWR);
  });
}

Result<> Storage::Unmount(const std::string& mount_id, const Wait& wait) {
  return DoUnmount(mount_id, {}, wait);
}

std::vector<MountInfo> Storage::List() const {
  std::vector<std::shared_ptr<Entry>> mounted;
  std::vector<MountInfo> infos;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, entry] : entries_) {
    if (entry->state != Entry::State::kMounting) mounted.push_back(entry);
  }
  std::ranges::sort(mounted, {}, &Entry::sequence);
  for (const auto& entry : mounted) {
    infos.push_back(entry->info);
    infos.back().users.assign(entry->users.begin(), entry->users.end());
  }
  return infos;
}

Result<MountInfo> Storage::FindByPath(const std::string& path) const {
  std::optional<MountInfo> best;
  for (auto& info : List()) {
    if (IsAtOrBelow(path, info.path) && (!best || info.path.size() > best->path.size()))
      best = std::move(info);
  }
  if (!best) return MakeError(ENOENT, "find mount", path);
  return std::move(*best);
}

Result<Disk> Storage::WaitDisk(const DiskAddress& address, const Wait& wait) {
  GCS_ASSIGN(const BlockDevice device, disks_.WaitFor(address, 0, wait));
  return disks_.Describe(device, address);
}

Result<> Storage::RemoveDisk(const DiskAddress& address, const Wait& wait) {
  if (const auto device = disks_.Find(address, 0)) {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, entry] : entries_) {
      if (entry->info.kind != MountKind::kDisk || entry->info.source.empty()) continue;
      // "/dev/sda1" lies on "/dev/sda"; "/dev/sdaa" doesn't.
      const std::string_view rest = std::string_view(entry->info.source)
                                        .substr(std::min(entry->info.source.size(), device->path.size()));
      if (entry->info.source.starts_with(device->path) &&
          (rest.empty() || !(rest[0] >= 'a' && rest[0] <= 'z'))) {
        return MakeError(EBUSY, "remove disk", id, "this mount is on " + device->path);
      }
    }
  }
  const std::string object = ToString(address);
  GCS_ASSIGN(const auto job, Job::Prepare(wait, object));
  return RunJob(pool_, job, wait, object, [this, address](Job&) { return disks_.Remove(address); });
}

Result<std::vector<Disk>> Storage::ListDisks() const { return disks_.List(); }

Result<> Storage::Use(const std::string& mount_id, const std::string& container_id) {
  if (container_id.empty()) return MakeError(EINVAL, "use mount", mount_id, "no container");
  const std::lock_guard lock(mutex_);
  GCS_ASSIGN(const auto entry, FindMounted(mount_id));
  entry->users.insert(container_id);
  return {};
}

void Storage::Unuse(const std::string& container_id) {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, entry] : entries_) entry->users.erase(container_id);
}

Result<> Storage::SetOwner(const std::string& mount_id, const std::string& container_id) {
  const std::lock_guard lock(mutex_);
  GCS_ASSIGN(const auto entry, FindMounted(mount_id));
  std::string& owner = entry->info.owner;
  if (!owner.empty() && owner != container_id) {
    return MakeError(EBUSY, "own mount", owner, "this container owns \"" + mount_id + "\"");
  }
  owner = container_id;
  return {};
}

void Storage::Disown(const std::string& container_id) {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, entry] : entries_) {
    entry->users.erase(container_id);
    if (entry->info.owner == container_id) entry->info.owner.clear();
  }
}

Result<> Storage::ReleaseOwned(const std::string& container_id, const Wait& wait) {
  Unuse(container_id);
  std::vector<std::string> owned;
  for (const auto& info : List() | std::views::reverse) {
    if (info.owner == container_id) owned.push_back(info.mount_id);
  }
  Result<> first;
  for (const auto& mount_id : owned) {
    auto result = DoUnmount(mount_id, container_id, wait);
    if (result || result.error().err == ENOENT) continue;
    if (first) first = std::move(result);
    const std::lock_guard lock(mutex_);
    if (const auto it = entries_.find(mount_id); it != entries_.end()) it->second->info.owner.clear();
  }
  return first;
}

}  // namespace gcs::storage
