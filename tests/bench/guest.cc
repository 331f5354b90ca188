// SPDX-License-Identifier: Apache-2.0
// The other end of raw vsock connections, run in a container that may use vsock: what the agent's way is
// compared with. Ports:
//   50007  echo
//   50009  reads a count (8 bytes) and that many bytes, then sends one byte
//   50019  reads a count (8 bytes), then sends that many bytes
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

std::vector<char> buffer(256 << 10);

bool WriteAll(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t n = write(fd, data, size);
    if (n <= 0) return false;
    data += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

void Echo(int fd) {
  ssize_t n = 0;
  while ((n = read(fd, buffer.data(), buffer.size())) > 0) {
    if (!WriteAll(fd, buffer.data(), static_cast<size_t>(n))) return;
  }
}

void Sink(int fd) {
  uint64_t left = 0;
  if (read(fd, &left, sizeof left) != sizeof left) return;
  while (left > 0) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n <= 0) return;
    left -= static_cast<uint64_t>(n);
  }
  const char done = 1;
  WriteAll(fd, &done, 1);
}

void Source(int fd) {
  uint64_t left = 0;
  if (read(fd, &left, sizeof left) != sizeof left) return;
  while (left > 0) {
    const size_t n = left < buffer.size() ? left : buffer.size();
    if (!WriteAll(fd, buffer.data(), n)) return;
    left -= n;
  }
}

int Listen(uint32_t port) {
  const int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_vm address = {};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(fd, 8) != 0) {
    perror("bench_guest: listen");
    return -1;
  }
  return fd;
}

}  // namespace

int main() {
  struct Service {
    uint32_t port;
    void (*serve)(int);
  };
  constexpr std::array<Service, 3> kServices = {{{50007, Echo}, {50009, Sink}, {50019, Source}}};
  std::array<pollfd, 3> fds = {};
  for (size_t i = 0; i < fds.size(); ++i) {
    fds[i] = {.fd = Listen(kServices[i].port), .events = POLLIN, .revents = 0};
    if (fds[i].fd < 0) return 1;
  }
  // One connection at a time: nothing else runs while something is measured.
  while (poll(fds.data(), fds.size(), -1) > 0) {
    for (size_t i = 0; i < fds.size(); ++i) {
      if ((fds[i].revents & POLLIN) == 0) continue;
      const int fd = accept4(fds[i].fd, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      kServices[i].serve(fd);
      close(fd);
    }
  }
  return 1;
}
