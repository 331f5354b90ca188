// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::storage {

// How long a call may wait, and what ends the wait early.
struct Wait {
  int64_t deadline_ns = 0;  // CLOCK_MONOTONIC; when it passes, the call fails with ETIMEDOUT and is undone
  int cancel_fd =
      -1;  // readable (an eventfd): the call fails with ECANCELED and is undone; stays the caller's
};

// A disk by its place: channel 0 of a SCSI host.
struct ScsiAddress {
  uint32_t controller = 0;      // the N-th SCSI host by number; ignored if controller_guid is set
  std::string controller_guid;  // VMBus instance id of the host, lower or upper case, with or without braces
  uint32_t target = 0;
  uint32_t lun = 0;

  bool operator==(const ScsiAddress&) const = default;
};

// /dev/pmem<index>.
struct PmemAddress {
  uint32_t index = 0;

  bool operator==(const PmemAddress&) const = default;
};

// The virtio block device with this serial number (at most 20 bytes, VIRTIO_BLK_ID_BYTES).
struct SerialAddress {
  std::string serial;

  bool operator==(const SerialAddress&) const = default;
};

using DiskAddress = std::variant<ScsiAddress, PmemAddress, SerialAddress>;

// "scsi 0:0:3", "scsi {guid}:0:3", "pmem 1", "virtio serial x": for people and for Error::object.
std::string ToString(const DiskAddress& address);

struct Disk {
  std::string device;  // "/dev/sda"
  uint64_t size_bytes = 0;
  bool read_only = false;
  DiskAddress address;
  std::string serial;  // empty if the disk has none
};

// A disk or a partition of it that is ready to be opened.
struct BlockDevice {
  std::string path;  // "/dev/sda1"
  std::string disk;  // "sda", its name in sysfs
  std::string name;  // "sda1"
};

// Whether the kernel names a disk of the host so: not a partition, a loop device or a mapping.
bool IsDiskName(std::string_view name);

// The disks of the machine as sysfs shows them. Stateless; any thread.
class Disks {
 public:
  // The roots are parameters so that recorded trees can stand in for a machine.
  explicit Disks(std::string sysfs = "/sys", std::string dev = "/dev")
      : sysfs_(std::move(sysfs)), dev_(std::move(dev)) {}

  // The block device at `address`, `partition` 0 for the whole disk. ENODEV while it isn't there or its node
  // can't be opened yet (ENXIO), EINVAL for an address that can never match.
  [[nodiscard]] base::Result<BlockDevice> Find(const DiskAddress& address, uint32_t partition) const;
  // The same, but waits for it: subscribes to the kernel's uevents, then looks, then looks again after each
  // event of a block device. ETIMEDOUT with what was still missing.
  [[nodiscard]] base::Result<BlockDevice> WaitFor(const DiskAddress& address, uint32_t partition,
                                                  const Wait& wait) const;

  [[nodiscard]] base::Result<Disk> Describe(const BlockDevice& device, const DiskAddress& address) const;
  // SCSI disks, pmem and virtio disks, by device name.
  [[nodiscard]] base::Result<std::vector<Disk>> List() const;

  // Makes the kernel forget a SCSI disk: flushes it and writes 1 to its `delete` attribute. ENODEV if it is
  // absent, EBUSY if a file system or anything else holds it or a partition of it, EOPNOTSUPP for disks that
  // are no SCSI disks.
  [[nodiscard]] base::Result<> Remove(const DiskAddress& address) const;

 private:
  [[nodiscard]] base::Result<uint32_t> ScsiHost(const ScsiAddress& address) const;
  [[nodiscard]] base::Result<std::string> DiskName(const DiskAddress& address) const;
  [[nodiscard]] base::Result<std::string> ScsiDeviceDir(const ScsiAddress& address) const;
  [[nodiscard]] base::Result<std::string> PartitionName(const std::string& disk, uint32_t partition) const;
  [[nodiscard]] base::Result<> CheckNode(const BlockDevice& device) const;
  [[nodiscard]] base::Result<DiskAddress> AddressOf(const std::string& disk) const;

  const std::string sysfs_;
  const std::string dev_;
};

// "{DF6D0690-79E5-55B6-A5EC-C1E2F77F580A}" to lower case without braces; EINVAL if it is no GUID.
base::Result<std::string> NormalizeGuid(std::string_view guid);

}  // namespace gcs::storage
