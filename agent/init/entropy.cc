// SPDX-License-Identifier: Apache-2.0
#include "init/entropy.h"

#include <fcntl.h>
#include <linux/random.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "base/clock.h"
#include "base/fd.h"
#include "base/paths.h"

namespace gcs::init {

namespace {

constexpr size_t kChunk = 512;
constexpr size_t kMostFromHost = 4096;
constexpr int64_t kHostDeadlineNs = 2 * base::kNsPerSec;

bool PoolIsReady() {
  unsigned char byte;
  return getrandom(&byte, sizeof byte, GRND_NONBLOCK) == sizeof byte;
}

base::Result<> Credit(const unsigned char* data, size_t size) {
  alignas(rand_pool_info) unsigned char buffer[sizeof(rand_pool_info) + kChunk];
  auto* info = reinterpret_cast<rand_pool_info*>(buffer);
  info->entropy_count = static_cast<int>(size * 8);
  info->buf_size = static_cast<int>(size);
  memcpy(buffer + sizeof(rand_pool_info), data, size);
  GCS_ASSIGN(const base::Fd random, base::OpenFile("/dev/urandom", O_WRONLY));
  if (ioctl(random.get(), RNDADDENTROPY, info) != 0) return base::ErrnoError("RNDADDENTROPY", "/dev/urandom");
  return {};
}

base::Result<> WaitFor(int fd, short events, int64_t deadline, const std::string& object) {
  const int64_t left = deadline - base::MonotonicNs();
  pollfd wait{.fd = fd, .events = events, .revents = 0};
  const int ready = poll(&wait, 1, left > 0 ? static_cast<int>(left / base::kNsPerMs) : 0);
  if (ready < 0) return base::ErrnoError("poll", object);
  if (ready == 0) return base::MakeError(ETIMEDOUT, "wait", object);
  return {};
}

}  // namespace

base::Result<size_t> SeedFromHardware() {
  if (PoolIsReady()) return 0;
  const base::Fd device(open("/dev/hwrng", O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!device) return 0;
  unsigned char bytes[64];
  const ssize_t n = read(device.get(), bytes, sizeof bytes);
  if (n <= 0) return 0;  // nothing ready, or no device behind the node
  GCS_TRY(Credit(bytes, static_cast<size_t>(n)));
  return static_cast<size_t>(n);
}

base::Result<size_t> SeedFromHost(uint32_t port) {
  const std::string object = "host vsock port " + std::to_string(port);
  const int64_t deadline = base::MonotonicNs() + kHostDeadlineNs;
  const base::Fd host(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!host) return base::ErrnoError("socket", "AF_VSOCK");
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_port = port;
  address.svm_cid = VMADDR_CID_HOST;
  if (connect(host.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EINPROGRESS) return base::ErrnoError("connect", object);
    GCS_TRY(WaitFor(host.get(), POLLOUT, deadline, object));
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(host.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0)
      return base::ErrnoError("getsockopt", object);
    if (error != 0) return base::MakeError(error, "connect", object);
  }
  size_t total = 0;
  while (total < kMostFromHost) {
    GCS_TRY(WaitFor(host.get(), POLLIN, deadline, object));
    unsigned char bytes[kChunk];
    const ssize_t n = read(host.get(), bytes, sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n < 0) return base::ErrnoError("read", object);
    if (n == 0) break;
    GCS_TRY(Credit(bytes, static_cast<size_t>(n)));
    total += static_cast<size_t>(n);
  }
  return total;
}

}  // namespace gcs::init
