// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "host/client/client.h"
#include "host/vm/vm.h"

namespace gcs::gcsctl {

// Where gcsctl keeps what belongs to VMs: $GCSCTL_STATE, else $XDG_STATE_HOME/gcsctl, else
// ~/.local/state/gcsctl.
std::string StateRoot();

// A VM of gcsctl's as its state file (<state>/<name>/vm.json) tells. It belongs to a supervisor, a process of
// this program that holds the launcher's Vm and an flock on <state>/<name>/alive while the VM runs; everybody
// else reaches the VM through the run directory.
struct Machine {
  std::string name;
  std::string dir;      // <state>/<name>
  std::string run_dir;  // of the launcher
  std::string image_dir;
  std::string machine;  // "microvm", "q35"
  std::string accel;
  pid_t supervisor = 0;
  pid_t qemu = 0;
  uint32_t memory_mib = 0;
  int64_t boot_ns = 0;        // from QEMU's start to the agent's call
  int64_t started_at_ns = 0;  // wall clock

  [[nodiscard]] host::VmControl control() const { return host::VmControl(run_dir); }
  [[nodiscard]] host::Client::Connector connector() const;
};

struct StartOptions {
  std::string name = "default";
  std::string image_dir;  // result of scripts/build-image
  uint32_t memory_mib = 512;
  uint32_t cpus = 1;
  host::Machine machine = host::Machine::kMicrovm;
  host::Accel accel = host::Accel::kAuto;
  std::string append;     // to the kernel's command line
  bool one_shot = false;  // ends with this process
  int64_t timeout_ms = 60'000;
};

// A VM on its way up.
class Starting {
 public:
  // Forks the supervisor: the caller must still be single-threaded. EEXIST: a VM of this name runs.
  static base::Result<Starting> Begin(const StartOptions& options);
  // The VM once its agent has called.
  base::Result<Machine> Finish();
  // Ends it instead, and forgets its directory. Waits, for as long as a boot takes.
  void Abandon();

 private:
  Starting(base::Fd result, pid_t supervisor, StartOptions options)
      : result_(std::move(result)), supervisor_(supervisor), options_(std::move(options)) {}
  base::Fd result_;
  pid_t supervisor_;
  StartOptions options_;
};

// Nothing: no VM of this name runs.
base::Result<std::optional<Machine>> FindMachine(const std::string& name);
// The default, or an error that says how to start it.
base::Result<Machine> RequireMachine(const std::string& name);
// Waits until the supervisor has let go. ETIMEDOUT.
base::Result<> WaitGone(const Machine& machine, int64_t timeout_ms);

// Forgets an ended VM, its logs too.
void RemoveMachineDir(const Machine& machine);

}  // namespace gcs::gcsctl
