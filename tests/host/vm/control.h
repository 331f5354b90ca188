// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::host {

// A raw disk image behind the virtio-scsi controller. The guest sees it as host N, channel 0, target, lun.
struct Disk {
  std::string path;
  bool readonly = true;
  uint32_t lun = 0;     // 0 to 16383
  uint32_t target = 0;  // 0 to 255
  std::string serial;   // VPD page 0x80; may be empty
};

// What can be asked of a running VM by anyone who knows its run directory, in its launcher's process or
// another. Holds no connection: each call makes its own. Any thread.
class VmControl {
 public:
  // For a VM whose launcher was given (or printed) this run directory.
  explicit VmControl(std::string run_dir) : run_dir_(std::move(run_dir)) {}

  // A connection to `port` in the guest. ECONNREFUSED: nobody listens, or the guest's driver is not up.
  [[nodiscard]] base::Result<base::Fd> Connect(uint32_t port, int64_t timeout_ms = 10'000) const;
  // A listening unix socket (non-blocking, CLOEXEC) that the guest reaches as CID 2, `port`; replaces a stale
  // one. The caller removes ListenPath(port) when done.
  [[nodiscard]] base::Result<base::Fd> Listen(uint32_t port) const;
  [[nodiscard]] std::string ListenPath(uint32_t port) const;

  // Plugs a disk in. EEXIST: the address is taken. The guest hears of it a moment later.
  [[nodiscard]] base::Result<> AddDisk(const Disk& disk) const;
  // The same at the first free lun of target 0, which is returned in the disk.
  [[nodiscard]] base::Result<Disk> AddDiskAnywhere(Disk disk) const;
  // Pulls a disk out and waits until QEMU has let go of the file. ENOENT: no such disk.
  [[nodiscard]] base::Result<> RemoveDisk(uint32_t target, uint32_t lun, int64_t timeout_ms = 10'000) const;
  // What is plugged in, in no order; `serial` is not filled in.
  [[nodiscard]] base::Result<std::vector<Disk>> Disks() const;

  // Plugs in a DIMM (q35 with max_memory_mib). The guest onlines it by itself. A multiple of 128.
  [[nodiscard]] base::Result<> AddMemory(uint32_t mib) const;

  // Ends QEMU without asking the guest.
  [[nodiscard]] base::Result<> Quit() const;

  // One QMP command with its arguments; returns "return". The error of a refusal has QEMU's words in
  // `message`.
  [[nodiscard]] base::Result<nlohmann::json> Qmp(const std::string& command,
                                                 const nlohmann::json& arguments) const;

  [[nodiscard]] const std::string& run_dir() const { return run_dir_; }
  [[nodiscard]] std::string vsock_path() const { return run_dir_ + "/vsock"; }
  [[nodiscard]] std::string qmp_path() const { return run_dir_ + "/qmp"; }

 private:
  std::string run_dir_;
};

}  // namespace gcs::host
