// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/signalfd.h>

#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "init/cgroups.h"
#include "init/command_line.h"
#include "init/service.h"
#include "init/store.h"
#include "init/table.h"

namespace gcs::init {

// The life of PID 1 after the set-up: one thread, one poll(2), nothing in it that waits for anybody.
class Supervisor {
 public:
  // Both stay the caller's and must live as long.
  Supervisor(const Table& table, const BootConfig& config, const Cgroups& cgroups);

  base::Result<> Open();
  [[noreturn]] void Run();

 private:
  void StartDue();
  [[nodiscard]] int PollTimeoutMs() const;
  void Reap();
  void TakeSignals();
  // Does what the next packet asks. False when there is none: the line is at its end, or has nothing now.
  bool TakePacket(Service& service, int line);
  void TakeControl(Service& service);
  void TakeLeft(Service& service, int line);
  [[noreturn]] void End(EndAction action, int64_t grace_ns);

  const Table& table_;
  const BootConfig& config_;
  std::vector<Service> services_;  // the agent is the first
  Store store_;
  base::Fd signals_;
  bool more_to_reap_ = false;
  bool ending_ = false;  // nothing is started any more
};

}  // namespace gcs::init
