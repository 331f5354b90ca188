// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "host/vm/control.h"

namespace gcs::host {

enum class Machine : uint8_t {
  kMicrovm,  // virtio-mmio, no ACPI, no PCI: boots fastest; ends by a guest's reboot, not by its power-off
  kQ35,      // PCI and ACPI: power-off, nvdimm, memory hot-plug
};
enum class Accel : uint8_t {
  kTcg,
  kKvm,
  kAuto,  // KVM if a probe boot with it succeeded once since the machine's own boot (see accel.h), else TCG
};

struct VmOptions {
  std::string kernel;  // vmlinux (ELF with the PVH note) or bzImage
  std::string initrd;  // may be empty
  uint32_t memory_mib = 512;
  uint32_t max_memory_mib = 0;  // q35: room for AddMemory and nvdimms; 0 means none can be added
  uint32_t cpus = 1;
  Machine machine = Machine::kMicrovm;
  Accel accel = Accel::kTcg;
  std::string
      command_line;   // appended to the launcher's own words (console=ttyS0 quiet reboot=t panic=-1 ...)
  bool quiet = true;  // false: the kernel's messages go to the console
  std::vector<Disk> disks;  // one virtio-scsi controller holds them all
  std::vector<std::string>
      nvdimms;              // q35: files that become /dev/pmem0..., read-only; sizes are multiples of 2 MiB
  std::string console_log;  // file of the serial console; empty: "console.log" in the run directory
  uint32_t cid = 3;         // the guest's vsock CID; private to this VM, so all VMs may use the same
  std::string
      run_dir;  // sockets live here; empty: a new one below /tmp, removed when the VM ends. At most 80 bytes.
  uint32_t ready_port =
      0;  // the guest dials this host port when it is up (gcs.ready-port=N); 0: Start does not wait
  int cancel_fd = -1;                 // readable: Start gives up waiting for the guest (ECANCELED)
  int64_t start_timeout_ms = 60'000;  // from QEMU's start to the ready call
  bool allow_reset = false;           // a guest's reboot boots again instead of ending QEMU
  std::string qemu = "qemu-system-x86_64";
  std::vector<std::string> extra_args;  // appended to QEMU's command line
};

struct VmExit {
  int code = 0;    // QEMU's exit status; 0 after a guest's own power-off or reboot
  int signal = 0;  // the signal that killed QEMU, or 0
};

// One virtual machine: a QEMU process and, on a thread of this process, its vsock device. Methods may be
// called from any thread, Stop and Wait from one at a time. QEMU is killed when this process dies.
class Vm {
 public:
  // Returns once the guest has dialled `ready_port`. The error of a QEMU that ended early or of a passed
  // deadline holds QEMU's messages and the tail of the console.
  static base::Result<std::unique_ptr<Vm>> Start(VmOptions options);
  ~Vm();  // kills QEMU if it still runs, removes the sockets and the run directory if Start made it
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  // A connection to `port` in the guest. ECONNREFUSED: nobody listens, or the guest's driver is not up.
  [[nodiscard]] base::Result<base::Fd> Connect(uint32_t port, int64_t timeout_ms = 10'000) const;
  // A listening unix socket (non-blocking, CLOEXEC) that the guest reaches as CID 2, `port`. Listen before
  // the guest dials.
  [[nodiscard]] base::Result<base::Fd> Listen(uint32_t port) const;

  // Disks, memory, raw QMP.
  [[nodiscard]] const VmControl& control() const;

  // Waits until QEMU has ended; ETIMEDOUT if it has not. May be called again after either.
  base::Result<VmExit> Wait(int64_t timeout_ms);
  // Waits `grace_ms` for the guest to end by itself (ask it by its API first), then kills QEMU. The exit
  // tells which.
  base::Result<VmExit> Stop(int64_t grace_ms);

  [[nodiscard]] pid_t pid() const;
  [[nodiscard]] const std::string& run_dir() const;
  [[nodiscard]] const std::string& vsock_path()
      const;  // the hybrid socket: CONNECT here, guest dials <path>_<port>
  [[nodiscard]] const std::string& console_path() const;
  [[nodiscard]] std::string ConsoleTail(size_t bytes = 4096) const;
  [[nodiscard]] std::string QemuMessages() const;  // QEMU's stderr so far
  [[nodiscard]] bool kvm() const;
  // CLOCK_MONOTONIC ns of QEMU's exec and of the guest's ready call (0 without ready_port).
  [[nodiscard]] int64_t started_ns() const;
  [[nodiscard]] int64_t ready_ns() const;

 private:
  struct State;
  explicit Vm(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace gcs::host
