// SPDX-License-Identifier: Apache-2.0
#include "stdio/linger.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

namespace gcs::stdio {

void Linger::Begin(int how) {
  if (begun_ || !socket_->open()) return;
  begun_ = true;
  // Fails when the peer has reset the connection already; then there is nothing to wait for, which Pump finds
  // out.
  shutdown(socket_->fd(), how);
  socket_->can_read = true;
  timer_ = host_->loop()->After(limit_ns_, [this] {
    timer_ = 0;
    Close();
  });
  reading_over_ = how == SHUT_RD;
  Pump();
}

void Linger::Pump() {
  if (!begun_ || !socket_->open() || !socket_->can_read) return;
  if (reading_over_) {
    // recv answers "end" because of our own shutdown; the peer's close shows as a hang-up, or not (vsock):
    // then the timer closes.
    pollfd state{.fd = socket_->fd(), .events = 0, .revents = 0};
    socket_->can_read = false;
    if (poll(&state, 1, 0) > 0) Close();
    return;
  }
  std::array<char, 4096> rest;
  for (int i = 0; i < 64; ++i) {
    const ssize_t n = recv(socket_->fd(), rest.data(), rest.size(), MSG_DONTWAIT);
    if (n > 0) continue;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      socket_->can_read = false;
      return;
    }
    Close();
    return;
  }
  host_->PumpSoon();
}

void Linger::Close() {
  if (timer_ != 0) host_->loop()->Cancel(timer_);
  timer_ = 0;
  socket_->Close();
}

}  // namespace gcs::stdio
