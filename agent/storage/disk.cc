// SPDX-License-Identifier: Apache-2.0
#include "storage/disk.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <memory>
#include <optional>

#include "base/clock.h"
#include "base/paths.h"
#include "storage/uevent.h"

namespace gcs::storage {

namespace {

using base::ErrnoError;
using base::MakeError;
using base::Result;

constexpr uint64_t kSectorSize = 512;  // unit of sysfs's `size`, whatever the disk's own
constexpr size_t kGuidLength = 36;
constexpr size_t kVirtioSerialLength = 20;
// A node that sysfs already shows may answer ENXIO for a moment without an event that tells its end.
constexpr int kNodeRetryMs = 10;

std::optional<uint64_t> ParseNumber(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// N of "<prefix>N".
std::optional<uint64_t> NumberedName(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  return ParseNumber(name.substr(prefix.size()));
}

std::string Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1));
}

Result<std::string> ReadAttribute(const std::string& path) {
  GCS_ASSIGN(const std::string text, base::ReadFile(path, 4096));
  return Trimmed(text);
}

Result<uint64_t> ReadNumber(const std::string& path) {
  GCS_ASSIGN(const std::string text, ReadAttribute(path));
  const auto value = ParseNumber(text);
  if (!value) return MakeError(EPROTO, "read", path, "no number: " + text);
  return *value;
}

// The numbers of the SCSI hosts, ascending: the kernel gives them out in order of appearance.
Result<std::vector<uint64_t>> HostsIn(const std::string& dir) {
  auto names = base::ListDir(dir);
  if (!names) {
    if (names.error().err == ENOENT) return std::vector<uint64_t>{};
    return std::unexpected(names.error());
  }
  std::vector<uint64_t> hosts;
  for (const auto& name : *names) {
    if (const auto number = NumberedName(name, "host")) hosts.push_back(*number);
  }
  std::ranges::sort(hosts);
  return hosts;
}

// "what was looked for isn't there (yet)": the error that WaitFor waits on.
std::unexpected<base::Error> Absent(const DiskAddress& address, std::string_view missing) {
  return MakeError(ENODEV, "find disk", ToString(address), missing);
}

bool IsRetriable(int err) { return err == ENODEV || err == ENXIO; }

// The four numbers of "2:0:0:5".
std::optional<std::array<uint32_t, 4>> ParseHctl(std::string_view name) {
  std::array<uint32_t, 4> parts{};
  for (size_t i = 0; i < parts.size(); ++i) {
    const size_t colon = i + 1 < parts.size() ? name.find(':') : name.size();
    if (colon == std::string_view::npos) return std::nullopt;
    const auto value = ParseNumber(name.substr(0, colon));
    if (!value || *value > UINT32_MAX) return std::nullopt;
    parts[i] = static_cast<uint32_t>(*value);
    name.remove_prefix(std::min(colon + 1, name.size()));
  }
  return parts;
}

}  // namespace

std::string ToString(const DiskAddress& address) {
  if (const auto* scsi = std::get_if<ScsiAddress>(&address)) {
    const std::string controller =
        scsi->controller_guid.empty() ? std::to_string(scsi->controller) : "{" + scsi->controller_guid + "}";
    return "scsi " + controller + ":" + std::to_string(scsi->target) + ":" + std::to_string(scsi->lun);
  }
  if (const auto* pmem = std::get_if<PmemAddress>(&address)) return "pmem " + std::to_string(pmem->index);
  return "virtio serial " + std::get<SerialAddress>(address).serial;
}

Result<std::string> NormalizeGuid(std::string_view guid) {
  std::string_view inner = guid;
  if (inner.starts_with('{') && inner.ends_with('}')) inner = inner.substr(1, inner.size() - 2);
  std::string lower;
  bool valid = inner.size() == kGuidLength;
  for (size_t i = 0; valid && i < inner.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    const unsigned char c = static_cast<unsigned char>(inner[i]);
    valid = dash ? c == '-' : isxdigit(c) != 0;
    lower += static_cast<char>(tolower(c));
  }
  if (!valid) return MakeError(EINVAL, "parse GUID", guid);
  return lower;
}

Result<uint32_t> Disks::ScsiHost(const ScsiAddress& address) const {
  if (!address.controller_guid.empty()) {
    GCS_ASSIGN(const std::string guid, NormalizeGuid(address.controller_guid));
    GCS_ASSIGN(const auto hosts, HostsIn(sysfs_ + "/bus/vmbus/devices/" + guid));
    if (hosts.empty()) return Absent(address, "no SCSI host of this VMBus device");
    return static_cast<uint32_t>(hosts.front());
  }
  GCS_ASSIGN(const auto hosts, HostsIn(sysfs_ + "/class/scsi_host"));
  if (address.controller >= hosts.size()) {
    return Absent(address, "the guest has " + std::to_string(hosts.size()) + " SCSI hosts");
  }
  return static_cast<uint32_t>(hosts[address.controller]);
}

Result<std::string> Disks::ScsiDeviceDir(const ScsiAddress& address) const {
  GCS_ASSIGN(const uint32_t host, ScsiHost(address));
  return sysfs_ + "/bus/scsi/devices/" + std::to_string(host) + ":0:" + std::to_string(address.target) + ":" +
         std::to_string(address.lun);
}

Result<std::string> Disks::DiskName(const DiskAddress& address) const {
  if (const auto* scsi = std::get_if<ScsiAddress>(&address)) {
    GCS_ASSIGN(const std::string dir, ScsiDeviceDir(*scsi));
    const auto names = base::ListDir(dir + "/block");
    if (!names && names.error().err != ENOENT) return std::unexpected(names.error());
    if (!names || names->empty()) return Absent(address, "no " + dir + "/block");
    return names->front();
  }
  if (const auto* pmem = std::get_if<PmemAddress>(&address)) {
    std::string name = "pmem" + std::to_string(pmem->index);
    if (access((sysfs_ + "/class/block/" + name).c_str(), F_OK) != 0) return Absent(address, "no " + name);
    return name;
  }
  const auto& serial = std::get<SerialAddress>(address).serial;
  if (serial.empty() || serial.size() > kVirtioSerialLength) {
    return MakeError(EINVAL, "find disk", ToString(address), "a virtio serial has 1 to 20 bytes");
  }
  GCS_ASSIGN(const auto names, base::ListDir(sysfs_ + "/class/block"));
  for (const auto& name : names) {
    if (!name.starts_with("vd")) continue;
    const auto found = ReadAttribute(sysfs_ + "/class/block/" + name + "/serial");
    if (found && *found == serial) return name;
  }
  return Absent(address, "no virtio disk with this serial");
}

Result<std::string> Disks::PartitionName(const std::string& disk, uint32_t partition) const {
  if (partition == 0) return disk;
  const std::string dir = sysfs_ + "/class/block/" + disk;
  GCS_ASSIGN(const auto names, base::ListDir(dir));
  for (const auto& name : names) {
    if (!name.starts_with(disk)) continue;
    const auto number = ReadNumber(dir + "/" + name + "/partition");
    if (number && *number == partition) return name;
  }
  return MakeError(ENODEV, "find partition", disk, "no partition " + std::to_string(partition));
}

Result<> Disks::CheckNode(const BlockDevice& device) const {
  // The kernel links a new disk into /sys/class/block a moment after its directory has appeared.
  const std::string attribute = sysfs_ + "/class/block/" + device.name + "/dev";
  const auto number = ReadAttribute(attribute);
  if (!number) {
    if (number.error().err == ENOENT || number.error().err == ENODEV)
      return MakeError(ENXIO, "read", attribute, "the disk isn't ready");
    return std::unexpected(number.error());
  }
  const auto opened = base::OpenFile(device.path, O_RDONLY | O_NONBLOCK);
  if (!opened) {
    const int err = opened.error().err;
    if (err == ENOENT || err == ENXIO)
      return MakeError(ENXIO, "open", device.path, "the device node isn't ready");
    return std::unexpected(opened.error());
  }
  const base::Fd& fd = *opened;
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoError("fstat", device.path);
  const std::string found = std::to_string(major(st.st_rdev)) + ":" + std::to_string(minor(st.st_rdev));
  if (!S_ISBLK(st.st_mode)) return MakeError(ENOTBLK, "open", device.path);
  // A node of a disk that is gone may still carry the name for a moment.
  if (found != *number)
    return MakeError(ENXIO, "open", device.path, "node is " + found + ", sysfs says " + *number);
  return {};
}

Result<BlockDevice> Disks::Find(const DiskAddress& address, uint32_t partition) const {
  BlockDevice device;
  GCS_ASSIGN(device.disk, DiskName(address));
  GCS_ASSIGN(device.name, PartitionName(device.disk, partition));
  device.path = dev_ + "/" + device.name;
  GCS_TRY(CheckNode(device));
  return device;
}

Result<BlockDevice> Disks::WaitFor(const DiskAddress& address, uint32_t partition, const Wait& wait) const {
  // Most disks are there already; the subscription costs a socket only if this one isn't.
  auto device = Find(address, partition);
  if (device || !IsRetriable(device.error().err)) return device;

  GCS_ASSIGN(UeventSocket events, UeventSocket::Open());
  for (;;) {
    device = Find(address, partition);
    if (device || !IsRetriable(device.error().err)) return device;
    for (bool look = false; !look;) {
      const int64_t left_ns = wait.deadline_ns - base::MonotonicNs();
      if (left_ns <= 0) {
        return MakeError(ETIMEDOUT, "wait for disk", ToString(address), device.error().ToString());
      }
      int timeout_ms = static_cast<int>(std::min<int64_t>(left_ns / base::kNsPerMs + 1, INT_MAX));
      const bool node_only = device.error().err == ENXIO;
      if (node_only) timeout_ms = std::min(timeout_ms, kNodeRetryMs);
      std::array<pollfd, 2> fds{
          {{.fd = events.fd(), .events = POLLIN}, {.fd = wait.cancel_fd, .events = POLLIN}}};
      const int ready = poll(fds.data(), fds.size(), timeout_ms);
      if (ready < 0 && errno != EINTR) return ErrnoError("poll", "uevents");
      if (ready > 0 && fds[1].revents != 0) return MakeError(ECANCELED, "wait for disk", ToString(address));
      if (ready > 0) {
        GCS_ASSIGN(look, events.DrainForBlock());
      }
      look = look || node_only;
    }
  }
}

Result<DiskAddress> Disks::AddressOf(const std::string& disk) const {
  if (const auto index = NumberedName(disk, "pmem")) return PmemAddress{static_cast<uint32_t>(*index)};
  if (disk.starts_with("vd")) {
    const auto serial = ReadAttribute(sysfs_ + "/class/block/" + disk + "/serial");
    return SerialAddress{serial ? *serial : std::string()};
  }
  const std::string link = sysfs_ + "/class/block/" + disk + "/device";
  std::array<char, PATH_MAX> target;
  const ssize_t n = readlink(link.c_str(), target.data(), target.size());
  if (n < 0) return ErrnoError("readlink", link);
  std::string_view name(target.data(), static_cast<size_t>(n));
  name.remove_prefix(name.rfind('/') == std::string_view::npos ? 0 : name.rfind('/') + 1);
  const auto hctl = ParseHctl(name);
  if (!hctl) return MakeError(EPROTO, "readlink", link, "no SCSI address: " + std::string(name));
  ScsiAddress address{.target = (*hctl)[2], .lun = (*hctl)[3]};
  GCS_ASSIGN(const auto hosts, HostsIn(sysfs_ + "/class/scsi_host"));
  address.controller = static_cast<uint32_t>(std::ranges::find(hosts, (*hctl)[0]) - hosts.begin());
  const std::string vmbus = sysfs_ + "/bus/vmbus/devices";
  if (const auto guids = base::ListDir(vmbus)) {
    for (const auto& guid : *guids) {
      if (access((vmbus + "/" + guid + "/host" + std::to_string((*hctl)[0])).c_str(), F_OK) == 0) {
        address.controller_guid = guid;
      }
    }
  }
  return address;
}

Result<Disk> Disks::Describe(const BlockDevice& device, const DiskAddress& address) const {
  const std::string dir = sysfs_ + "/class/block/" + device.name;
  Disk disk{.device = device.path, .address = address};
  GCS_ASSIGN(const uint64_t sectors, ReadNumber(dir + "/size"));
  disk.size_bytes = sectors * kSectorSize;
  GCS_ASSIGN(const uint64_t read_only, ReadNumber(dir + "/ro"));
  disk.read_only = read_only != 0;
  // virtio has `serial`; SCSI disks have vital product data page 0x80: 4 bytes of head, then the serial.
  const std::string disk_dir = sysfs_ + "/class/block/" + device.disk;
  if (const auto serial = ReadAttribute(disk_dir + "/serial")) {
    disk.serial = *serial;
  } else if (const auto page = base::ReadFile(disk_dir + "/device/vpd_pg80", 4096);
             page && page->size() > 4) {
    disk.serial = Trimmed(std::string_view(*page).substr(4));
  }
  return disk;
}

bool IsDiskName(std::string_view name) {
  return name.starts_with("sd") || name.starts_with("vd") || NumberedName(name, "pmem").has_value();
}

Result<std::vector<Disk>> Disks::List() const {
  GCS_ASSIGN(const auto names, base::ListDir(sysfs_ + "/class/block"));
  std::vector<Disk> disks;
  for (const auto& name : names) {
    const std::string dir = sysfs_ + "/class/block/" + name;
    if (!IsDiskName(name) || access((dir + "/partition").c_str(), F_OK) == 0) continue;
    const BlockDevice device{.path = dev_ + "/" + name, .disk = name, .name = name};
    const auto address = AddressOf(name);
    auto disk = address ? Describe(device, *address) : std::unexpected(address.error());
    if (!disk) {
      // It went away while we read: the list is of those that are left.
      if (access(dir.c_str(), F_OK) != 0) continue;
      return std::unexpected(disk.error());
    }
    disks.push_back(std::move(*disk));
  }
  return disks;
}

Result<> Disks::Remove(const DiskAddress& address) const {
  const auto* scsi = std::get_if<ScsiAddress>(&address);
  if (scsi == nullptr) {
    return MakeError(EOPNOTSUPP, "remove disk", ToString(address), "only SCSI disks can be taken away");
  }
  GCS_ASSIGN(const std::string dir, ScsiDeviceDir(*scsi));
  if (access(dir.c_str(), F_OK) != 0) return Absent(address, "no " + dir);
  // An exclusive open fails while the disk or a partition of it is mounted in whatever mount namespace, or
  // held by the device mapper; holding it keeps others from mounting meanwhile. A device without a block
  // driver has nothing to hold.
  base::Fd hold;
  if (const auto name = DiskName(address)) {
    const std::string path = dev_ + "/" + *name;
    auto opened = base::OpenFile(path, O_RDONLY | O_EXCL | O_NONBLOCK);
    const int err = opened ? 0 : opened.error().err;
    if (err == EBUSY) return MakeError(EBUSY, "remove disk", ToString(address), path + " is in use");
    if (err != 0 && err != ENXIO && err != ENOENT && err != ENODEV && err != ENOMEDIUM) {
      return std::unexpected(opened.error());
    }
    if (opened) hold = std::move(*opened);
    if (hold && fsync(hold.get()) != 0) return ErrnoError("fsync", path);
  }
  return base::WriteFile(dir + "/delete", "1");
}

}  // namespace gcs::storage
