// SPDX-License-Identifier: Apache-2.0
#include "host/client/container.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/clock.h"
#include "base/paths.h"
#include "host/client/link.h"

namespace gcs::host {

namespace {

constexpr char kLayerPrefix[] = "layer-";
constexpr char kScratchPrefix[] = "scratch-";
// A hot-plugged disk under TCG is there within some 100 ms.
constexpr int64_t kDiskTimeoutMs = 30'000;
// mkfs of a large disk, under TCG on a loaded machine.
constexpr int64_t kFormatTimeoutMs = 120'000;

std::unexpected<CallError> Local(base::Error error) { return std::unexpected(ToCallError(std::move(error))); }

v1::DiskAddress AddressOf(const Disk& disk) {
  v1::DiskAddress address;
  address.mutable_scsi()->set_target(disk.target);
  address.mutable_scsi()->set_lun(disk.lun);
  return address;
}

// As ConvertLayers names them.
bool IsLayer(const std::string& path) {
  return path.find("/layers/") != std::string::npos && path.ends_with(".ext4");
}

}  // namespace

std::string LayerMountId(const std::string& path) {
  const std::string name = std::filesystem::path(path).filename().string();
  std::string id = kLayerPrefix;
  for (const char c : name.substr(0, 32)) id += isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
  return id;
}

GuestStorage::GuestStorage(Client& client, const VmControl& vm, std::string state_dir)
    : client_(client), vm_(vm), state_dir_(std::move(state_dir)) {}

bool GuestStorage::IsScratch(const std::string& path) const {
  return path.starts_with(state_dir_ + "/" + kScratchPrefix);
}

CallResult<base::Fd> GuestStorage::Lock() {
  const std::string path = state_dir_ + "/storage.lock";
  auto fd = base::OpenFile(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (!fd) return Local(std::move(fd).error());
  while (flock(fd->get(), LOCK_EX) != 0) {
    if (errno != EINTR) return Local({"flock", errno, path, {}});
  }
  return std::move(*fd);
}

CallResult<> GuestStorage::EnsureLayers(const std::vector<std::string>& layers, std::vector<std::string>& ids,
                                        Root& root) {
  GCS_ASSIGN(const v1::ListMountsResponse mounts, client_.Call(v1::ListMountsRequest()));
  std::set<std::string> present;
  for (const v1::Mount& mount : mounts.mounts()) present.insert(mount.mount_id());
  for (const std::string& layer : layers) {
    const std::string id = LayerMountId(layer);
    ids.push_back(id);
    if (present.contains(id)) continue;
    const int64_t begin = base::MonotonicNs();
    const auto disk = vm_.AddDiskAnywhere({.path = layer, .readonly = true});
    if (!disk) return Local(disk.error());
    const int64_t plugged = base::MonotonicNs();
    v1::MountDiskRequest request;
    request.set_mount_id(id);
    *request.mutable_disk() = AddressOf(*disk);
    request.set_read_only(true);
    GCS_TRY(client_.Call(request, {.timeout_ms = kDiskTimeoutMs}));
    root.attach_ns += plugged - begin;
    root.mount_ns += base::MonotonicNs() - plugged;
  }
  return {};
}

CallResult<std::string> GuestStorage::PlugScratch(const std::string& container_id, uint64_t bytes) {
  std::string id = kScratchPrefix + container_id;
  if (bytes == 0) {
    v1::MountTmpfsRequest request;
    request.set_mount_id(id);
    request.set_mode(0755);
    GCS_TRY(client_.Call(request));
    return id;
  }
  const std::string file = state_dir_ + "/" + id + ".img";
  {
    const auto made = base::OpenFile(file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (!made) return Local(made.error());
    if (ftruncate(made->get(), static_cast<off_t>(bytes)) != 0) return Local({"ftruncate", errno, file, {}});
  }
  const auto disk = vm_.AddDiskAnywhere({.path = file, .readonly = false});
  if (!disk) {
    unlink(file.c_str());
    return Local(disk.error());
  }
  v1::MountDiskRequest request;
  request.set_mount_id(id);
  *request.mutable_disk() = AddressOf(*disk);
  request.set_format_if_empty(true);
  GCS_TRY(client_.Call(request, {.timeout_ms = kFormatTimeoutMs}));
  return id;
}

CallResult<GuestStorage::Root> GuestStorage::MountRoot(const std::string& container_id,
                                                       const std::vector<std::string>& layers,
                                                       uint64_t scratch_bytes) {
  // Held until the overlay is there: from then on the layers are in use and nobody's Sweep takes them.
  GCS_ASSIGN(const base::Fd lock, Lock());
  Root root;
  std::vector<std::string> ids;
  GCS_TRY(EnsureLayers(layers, ids, root));
  int64_t begin = base::MonotonicNs();
  GCS_ASSIGN(const std::string scratch, PlugScratch(container_id, scratch_bytes));
  root.mount_ids.push_back(scratch);
  root.scratch_ns = base::MonotonicNs() - begin;
  begin = base::MonotonicNs();
  v1::MountOverlayRequest request;
  request.set_mount_id("root-" + container_id);
  for (auto id = ids.rbegin(); id != ids.rend(); ++id) request.add_layers(*id);
  request.set_scratch(scratch);
  const auto mounted = client_.Call(request);
  if (!mounted) {
    v1::UnmountRequest unmount;
    unmount.set_mount_id(scratch);
    // The failure to report is the overlay's.
    [[maybe_unused]] const auto undone = client_.Call(unmount);
    return std::unexpected(mounted.error());
  }
  root.path = mounted->path();
  root.mount_ids.push_back(request.mount_id());
  root.overlay_ns = base::MonotonicNs() - begin;
  return root;
}

CallResult<> GuestStorage::Sweep() {
  GCS_ASSIGN(const base::Fd lock, Lock());
  GCS_ASSIGN(const v1::ListMountsResponse mounts, client_.Call(v1::ListMountsRequest()));
  std::set<std::string> used;
  for (const v1::Mount& mount : mounts.mounts()) used.insert(mount.uses().begin(), mount.uses().end());
  std::set<std::string> mounted_devices;
  for (const v1::Mount& mount : mounts.mounts()) {
    const bool ours =
        mount.mount_id().starts_with(kLayerPrefix) || mount.mount_id().starts_with(kScratchPrefix);
    if (ours && !used.contains(mount.mount_id()) && mount.owner().empty()) {
      v1::UnmountRequest request;
      request.set_mount_id(mount.mount_id());
      const auto unmounted = client_.Call(request);
      if (unmounted || unmounted.error().err == ENOENT) continue;
      if (unmounted.error().err != EBUSY) return std::unexpected(unmounted.error());
    }
    mounted_devices.insert(mount.source());
  }
  GCS_ASSIGN(const v1::ListDisksResponse disks, client_.Call(v1::ListDisksRequest()));
  const auto plugged = vm_.Disks();
  if (!plugged) return Local(plugged.error());
  for (const v1::Disk& disk : disks.disks()) {
    if (!disk.address().has_scsi() || mounted_devices.contains(disk.device())) continue;
    const auto host = std::ranges::find_if(*plugged, [&](const Disk& other) {
      return other.target == disk.address().scsi().target() && other.lun == disk.address().scsi().lun();
    });
    // Disks that others have plugged in are theirs.
    if (host == plugged->end() || !(IsScratch(host->path) || IsLayer(host->path))) continue;
    v1::RemoveDiskRequest request;
    *request.mutable_disk() = disk.address();
    GCS_TRY(client_.Call(request));
    const auto removed = vm_.RemoveDisk(host->target, host->lun);
    if (!removed) return Local(removed.error());
    if (IsScratch(host->path)) unlink(host->path.c_str());
  }
  return {};
}

}  // namespace gcs::host
