// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/loop.h"
#include "host/vsock/hybrid.h"
#include "host/vsock/mux.h"

namespace gcs::host::vsock {

struct DeviceOptions {
  std::string vhost_socket;  // the VMM connects here: -chardev socket,id=vsock,path=...
  std::string uds_path;      // host programs connect here; the guest dials <uds_path>_<port>
  uint64_t guest_cid = 3;
  Mux::Options mux;  // its guest_cid is set from the one above
  HybridListener::Options hybrid;
};

// A vhost-user vsock device for one VM at a time, on the caller's loop. Both sockets are removed at its end.
class Device {
 public:
  static base::Result<std::unique_ptr<Device>> Create(base::Loop* loop, const DeviceOptions& options);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  [[nodiscard]] const Stats& stats() const;  // readable from any thread

 private:
  struct Parts;
  explicit Device(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// The same on a thread of its own, for tests and the VM launcher.
class DeviceThread {
 public:
  static base::Result<std::unique_ptr<DeviceThread>> Start(const DeviceOptions& options);
  ~DeviceThread();
  DeviceThread(const DeviceThread&) = delete;
  DeviceThread& operator=(const DeviceThread&) = delete;

  [[nodiscard]] const Stats& stats() const { return device_->stats(); }
  // For work that belongs on a thread that lives as long as the device (see base::Loop::Post).
  [[nodiscard]] base::Loop& loop() { return *loop_; }

 private:
  DeviceThread() = default;
  std::unique_ptr<base::Loop> loop_;
  std::unique_ptr<Device> device_;
  std::thread thread_;
};

}  // namespace gcs::host::vsock
