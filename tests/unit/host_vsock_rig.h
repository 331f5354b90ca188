// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/log.h"
#include "host/vsock/device.h"
#include "host/vsock/fake_driver.h"
#include "host/vsock/unix_socket.h"

namespace gcs::host::vsock {

// A device on its thread and a driver in this one.
class Rig {
 public:
  static constexpr uint64_t kCid = 42;

  explicit Rig(const FakeDriver::Options& options = {}, bool start = true, const Mux::Options& mux = {},
               const HybridListener::Options& hybrid = {}) {
    std::array<char, 32> path = {"/tmp/gcs-vsock-unit.XXXXXX"};
    REQUIRE(mkdtemp(path.data()) != nullptr);
    dir = path.data();
    // Hostile guests are logged; the tests look at the counters instead.
    base::SetLogOutput(2, base::LogFormat::kText,
                       getenv("VERBOSE") != nullptr ? base::Level::kDebug : base::Level{4});
    auto started = DeviceThread::Start({.vhost_socket = dir + "/vhost",
                                        .uds_path = dir + "/vsock",
                                        .guest_cid = kCid,
                                        .mux = mux,
                                        .hybrid = hybrid});
    REQUIRE(started);
    device = std::move(*started);
    driver = std::make_unique<FakeDriver>(dir + "/vhost", options);
    driver->ConnectVmm();
    if (start) driver->Start();
  }
  ~Rig() {
    driver.reset();
    device.reset();
    std::filesystem::remove_all(dir);
  }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  [[nodiscard]] const Stats& stats() const { return device->stats(); }

  // A host program that has written its line; no answer is waited for.
  [[nodiscard]] base::Fd HostConnect(uint32_t port) const {
    return HostLine("CONNECT " + std::to_string(port) + "\n");
  }
  [[nodiscard]] base::Fd HostLine(std::string_view line) const {
    auto fd = ConnectUnix(dir + "/vsock");
    REQUIRE(fd);
    // May fail with EPIPE when the device has already refused; the reader sees that.
    [[maybe_unused]] const ssize_t n = send(fd->get(), line.data(), line.size(), MSG_NOSIGNAL);
    return std::move(*fd);
  }
  [[nodiscard]] base::Fd HostListen(uint32_t port) const {
    auto fd = ListenUnix(dir + "/vsock_" + std::to_string(port), 4096);
    REQUIRE(fd);
    return std::move(*fd);
  }

  FakeDriver::Received Receive(uint16_t op) const {
    auto got = driver->Receive(5000);
    REQUIRE_MESSAGE(got, "no packet, expected " << OpName(op));
    REQUIRE_MESSAGE(got->packet.op == op, "got " << OpName(got->packet.op) << ", expected " << OpName(op));
    CHECK(got->packet.src_cid == kHostCid);
    CHECK(got->packet.dst_cid == kCid);
    return *got;
  }

  std::string dir;
  std::unique_ptr<DeviceThread> device;
  std::unique_ptr<FakeDriver> driver;
};

// The guest's end of one stream.
struct GuestEnd {
  Rig* rig;
  uint32_t host_port = 0;
  uint32_t guest_port = 0;
  uint32_t buf_alloc = 256 << 10;
  uint32_t fwd_cnt = 0;
  uint32_t tx_cnt = 0;
  uint32_t peer_buf_alloc = 0;
  uint32_t peer_fwd_cnt = 0;

  [[nodiscard]] uint32_t Space() const { return peer_buf_alloc - (tx_cnt - peer_fwd_cnt); }
  void Learn(const Packet& packet) {
    peer_buf_alloc = packet.buf_alloc;
    peer_fwd_cnt = packet.fwd_cnt;
  }
  void Send(uint16_t op, std::string_view data = {}, uint32_t flags = 0) {
    tx_cnt += data.size();
    rig->driver->Send({.src_cid = Rig::kCid,
                       .dst_cid = kHostCid,
                       .src_port = guest_port,
                       .dst_port = host_port,
                       .len = static_cast<uint32_t>(data.size()),
                       .op = op,
                       .flags = flags,
                       .buf_alloc = buf_alloc,
                       .fwd_cnt = fwd_cnt},
                      data);
  }
  FakeDriver::Received Receive(uint16_t op) {
    auto got = rig->Receive(op);
    Learn(got.packet);
    CHECK(got.packet.src_port == host_port);
    CHECK(got.packet.dst_port == guest_port);
    return got;
  }
};

inline std::string ReadHost(int fd, size_t size, int timeout_ms = 5000) {
  std::string out;
  std::array<char, 65536> buffer;
  while (out.size() < size) {
    pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
    if (poll(&entry, 1, timeout_ms) != 1) {
      FAIL("the host's end got " << out.size() << " of " << size << " bytes");
    }
    const ssize_t n = recv(fd, buffer.data(), std::min(buffer.size(), size - out.size()), 0);
    if (n <= 0) break;
    out.append(buffer.data(), n);
  }
  return out;
}

// True: the device has closed (or reset) the host's end.
inline bool Closed(int fd, int timeout_ms = 5000) {
  pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
  char byte = 0;
  return poll(&entry, 1, timeout_ms) == 1 && recv(fd, &byte, 1, MSG_DONTWAIT) <= 0;
}

// A stream from the host to guest port `port`, answered by the guest.
inline std::pair<GuestEnd, base::Fd> OpenFromHost(Rig& rig, uint32_t port, uint32_t buf_alloc = 256 << 10) {
  base::Fd host = rig.HostConnect(port);
  const auto request = rig.Receive(VIRTIO_VSOCK_OP_REQUEST);
  CHECK(request.packet.dst_port == port);
  GuestEnd guest = {
      .rig = &rig, .host_port = request.packet.src_port, .guest_port = port, .buf_alloc = buf_alloc};
  guest.Learn(request.packet);
  guest.Send(VIRTIO_VSOCK_OP_RESPONSE);
  const std::string line = "OK " + std::to_string(guest.host_port) + "\n";
  CHECK(ReadHost(host.get(), line.size()) == line);
  return {guest, std::move(host)};
}

template <typename Condition>
bool Eventually(Condition condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    usleep(2000);
  }
  return false;
}

}  // namespace gcs::host::vsock
