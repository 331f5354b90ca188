// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/init_control.h"

namespace gcs::guest {

// The agent's way to PID 1, which alone can end the machine and holds descriptors across lives of the agent.
// Any thread; calls but Drop may block for some seconds.
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

  // Stores copies of 1 to kMaxStoreFds descriptors under the keys from `first` on, in the place of what is
  // there. ENOSPC when the store is full. After ETIMEDOUT they may or may not be stored.
  base::Result<> Put(uint64_t first, std::span<const int> fds, int pid = 0);
  // How init has seen the process of such a Put end; nothing if it hasn't.
  base::Result<std::optional<base::InitExit>> ExitOf(uint64_t first);
  // Has init close what it holds under `count` keys from `first` on. Never waits: what init cannot take now
  // is logged and asked for again before the next packet.
  void Drop(uint64_t first, uint64_t count);
  // All that is stored, in the order of the keys; init goes on holding it.
  base::Result<std::vector<std::pair<uint64_t, base::Fd>>> TakeAll();

 private:
  explicit InitLine(base::Fd fd);
  base::Result<base::InitPacket> Call(base::InitOp op, uint64_t arg, std::span<const int> fds = {},
                                      uint64_t arg2 = 0);
  void SendDrops();  // with drops_mutex_ held

  const base::Fd fd_;
  std::mutex mutex_;  // one request at a time
  uint32_t last_id_ = 0;
  std::mutex drops_mutex_;
  std::vector<std::pair<uint64_t, uint64_t>> drops_;  // not sent yet
  bool drops_late_ = false;                           // said in the log
};

}  // namespace gcs::guest
