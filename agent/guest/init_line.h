// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/fd.h"
#include "base/init_control.h"

namespace gcs::guest {

// The agent's way to PID 1, which alone can end the machine. Any thread; calls may block for some seconds.
class InitLine {
 public:
  // Takes over the descriptor that GCS_INIT_FD names and removes the variable. Without it every call answers
  // EBUSY. EINVAL for a variable that names no SEQPACKET socket.
  static base::Result<std::unique_ptr<InitLine>> FromEnvironment();

  bool connected() const { return fd_.valid(); }

  // How often init had to start the agent again.
  base::Result<uint32_t> Restarts();

  // Asks init to end the machine: it stops all processes (SIGTERM, `grace_ms`, SIGKILL), syncs, unmounts.
  // Returns when init has accepted. EBUSY when the agent does not run under init: the state of the system
  // forbids it.
  base::Result<> PowerOff(uint32_t grace_ms);
  base::Result<> Reboot(uint32_t grace_ms);

 private:
  explicit InitLine(base::Fd fd) : fd_(std::move(fd)) {}
  base::Result<base::InitMessage> Call(base::InitOp op, uint64_t arg);

  const base::Fd fd_;
  std::mutex mutex_;  // one request at a time: replies carry no more than the op
};

}  // namespace gcs::guest
