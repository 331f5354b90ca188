// SPDX-License-Identifier: Apache-2.0
#include "transport/dialer.h"

#include <linux/time_types.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <climits>
#include <utility>

#include "base/clock.h"
#include "transport/endpoint.h"

namespace gcs::transport {

namespace {

// Waits until a connect in progress is decided.
base::Result<> FinishConnect(int fd, int64_t deadline_ns, int cancel_fd, const std::string& object) {
  for (;;) {
    const int64_t left = deadline_ns - base::MonotonicNs();
    if (left <= 0) return base::MakeError(ETIMEDOUT, "connect", object);
    std::array<pollfd, 2> wait{{{.fd = fd, .events = POLLOUT}, {.fd = cancel_fd, .events = POLLIN}}};
    const int64_t left_ms = left / base::kNsPerMs + 1;
    const int ready = poll(wait.data(), wait.size(), static_cast<int>(std::min<int64_t>(left_ms, INT_MAX)));
    if (ready < 0 && errno != EINTR) return base::ErrnoError("poll", object);
    if (ready <= 0) continue;
    if (wait[1].revents != 0) return base::MakeError(ECANCELED, "connect", object);
    int err = 0;
    socklen_t length = sizeof err;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &length) != 0)
      return base::ErrnoError("getsockopt SO_ERROR", object);
    if (err != 0) return base::MakeError(err, "connect", object);
    return {};
  }
}

class VsockDialerImpl : public Dialer {
 public:
  base::Result<base::Fd> Dial(uint32_t port, int64_t deadline_ns, int cancel_fd) override {
    const std::string object = "vsock:2:" + std::to_string(port);
    const int64_t left = deadline_ns - base::MonotonicNs();
    if (left <= 0) return base::MakeError(ETIMEDOUT, "connect", object);
    base::Fd fd(socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) return base::ErrnoError("socket", object);
    // The kernel gives up after 2 s by itself, with a non-blocking connect too (vsock_connect_timeout).
    __kernel_sock_timeval limit{.tv_sec = std::min<int64_t>(left / base::kNsPerSec + 1, 3600), .tv_usec = 0};
    if (setsockopt(fd.get(), AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW, &limit, sizeof limit) != 0) {
      return base::ErrnoError("setsockopt SO_VM_SOCKETS_CONNECT_TIMEOUT", object);
    }
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_HOST;
    address.svm_port = port;
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return fd;
    if (errno != EINPROGRESS) return base::ErrnoError("connect", object);
    GCS_TRY(FinishConnect(fd.get(), deadline_ns, cancel_fd, object));
    return fd;
  }
};

class UnixDialerImpl : public Dialer {
 public:
  explicit UnixDialerImpl(std::string prefix) : prefix_(std::move(prefix)) {}

  base::Result<base::Fd> Dial(uint32_t port, int64_t deadline_ns, int cancel_fd) override {
    const std::string path = prefix_ + "_" + std::to_string(port);
    GCS_ASSIGN(const sockaddr_un address, UnixAddress(path));
    base::Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) return base::ErrnoError("socket", path);
    for (;;) {
      if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
      // No file is what no listener is on vsock.
      if (errno == ENOENT) return base::MakeError(ECONNREFUSED, "connect", path, "no such socket");
      // A full backlog: unix sockets know no connect in progress.
      if (errno != EAGAIN && errno != EINTR) return base::ErrnoError("connect", path);
      if (base::MonotonicNs() >= deadline_ns) return base::MakeError(ETIMEDOUT, "connect", path);
      pollfd cancel{.fd = cancel_fd, .events = POLLIN, .revents = 0};
      if (poll(&cancel, 1, 1) > 0) return base::MakeError(ECANCELED, "connect", path);
    }
  }

 private:
  const std::string prefix_;
};

}  // namespace

std::unique_ptr<Dialer> VsockDialer() { return std::make_unique<VsockDialerImpl>(); }

std::unique_ptr<Dialer> UnixDialer(std::string prefix) {
  return std::make_unique<UnixDialerImpl>(std::move(prefix));
}

}  // namespace gcs::transport
