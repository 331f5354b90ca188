// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::transport {

// Connects to a numbered port of the host. Any thread.
class Dialer {
 public:
  virtual ~Dialer() = default;

  // A connected stream socket (O_NONBLOCK, O_CLOEXEC). Blocks until it is connected or `deadline_ns`
  // (CLOCK_MONOTONIC) has passed or `cancel_fd` (an eventfd; -1: none) is readable. Errors: ECONNREFUSED or
  // ECONNRESET when nobody listens there, ETIMEDOUT, ECANCELED, what connect(2) says else.
  virtual base::Result<base::Fd> Dial(uint32_t port, int64_t deadline_ns, int cancel_fd) = 0;
  base::Result<base::Fd> Dial(uint32_t port, int64_t deadline_ns) { return Dial(port, deadline_ns, -1); }
};

// To vsock ports of CID 2, the host.
std::unique_ptr<Dialer> VsockDialer();
// To unix sockets "<prefix>_<port>", the guest's side of the hybrid vsock convention, for tests on a machine
// without a VM.
std::unique_ptr<Dialer> UnixDialer(std::string prefix);

}  // namespace gcs::transport
