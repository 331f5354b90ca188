// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/error.h"
#include "base/fd.h"
#include "base/loop.h"
#include "transport/endpoint.h"

namespace gcs::transport {

// Accepts connections on a loop and hands their descriptors (O_NONBLOCK, O_CLOEXEC) over. To be used on the
// loop's thread, but for `refused`.
//
// A listen that fails is logged and tried again (after 50 ms, doubling up to 2 s) until it succeeds: the
// vsock transport may appear a moment after the agent has started. A peer of a vsock listener that is not the
// host is closed at once, counted and logged, at most once a second.
class Listener {
 public:
  struct Callbacks {
    std::function<void(base::Fd)> on_connection;
    std::function<void()> on_listening;  // once; may be empty
  };

  Listener(base::Loop* loop, Endpoint endpoint, Callbacks callbacks);
  ~Listener();  // closes; a unix socket's file is removed
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  void Start();
  // Accepts no more; what was handed over lives on.
  void Stop();

  [[nodiscard]] bool listening() const { return socket_.valid(); }
  [[nodiscard]] const Endpoint& endpoint() const { return endpoint_; }
  // Connections refused because the peer was not the host. Any thread.
  [[nodiscard]] uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }

 private:
  base::Result<base::Fd> Listen() const;
  void TryListen();
  void OnReadable();
  void Refuse(const sockaddr_vm& peer);
  void PauseAccepting(int err);

  base::Loop* const loop_;
  const Endpoint endpoint_;
  const Callbacks callbacks_;
  base::Fd socket_;
  bool bound_ = false;  // the unix socket's file is ours
  base::Loop::TimerId timer_ = 0;
  int64_t retry_ns_;
  std::atomic<uint64_t> refused_ = 0;
  uint64_t refused_logged_ = 0;
  int64_t refused_log_ns_ = 0;
};

}  // namespace gcs::transport
