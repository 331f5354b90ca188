// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/device.h"

#include <pthread.h>

#include <csignal>
#include <utility>

#include "host/vsock/vhost_user.h"

namespace gcs::host::vsock {

struct Device::Parts {
  Stats stats;
  std::unique_ptr<Mux> mux;
  std::unique_ptr<VhostUser> vhost;
  std::unique_ptr<HybridListener> hybrid;
};

base::Result<std::unique_ptr<Device>> Device::Create(base::Loop* loop, const DeviceOptions& options) {
  auto parts = std::make_unique<Parts>();
  Parts* const p = parts.get();
  Mux::Options mux = options.mux;
  mux.guest_cid = options.guest_cid;
  p->mux = std::make_unique<Mux>(
      loop, mux, [path = options.uds_path](uint32_t port) { return DialHostPort(path, port); },
      [p](QueueIndex index) { p->vhost->Signal(index); }, &p->stats);
  GCS_ASSIGN(p->hybrid, HybridListener::Listen(loop, options.uds_path, options.hybrid, p->mux.get()));
  GCS_ASSIGN(p->vhost, VhostUser::Listen(loop, options.vhost_socket, options.guest_cid, p->mux.get()));
  return std::unique_ptr<Device>(new Device(std::move(parts)));
}

Device::Device(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Device::~Device() {
  // The Mux holds pointers into the queues, which the vhost side owns.
  parts_->hybrid.reset();
  parts_->mux->Stop();
  parts_->vhost.reset();
}

const Stats& Device::stats() const { return parts_->stats; }

base::Result<std::unique_ptr<DeviceThread>> DeviceThread::Start(const DeviceOptions& options) {
  std::unique_ptr<DeviceThread> self(new DeviceThread);
  GCS_ASSIGN(self->loop_, base::Loop::Create());
  GCS_ASSIGN(self->device_, Device::Create(self->loop_.get(), options));
  self->thread_ = std::thread([loop = self->loop_.get()] {
    // Signals belong to the program's other threads.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    pthread_setname_np(pthread_self(), "vsock-device");
    loop->Run();
  });
  return self;
}

DeviceThread::~DeviceThread() {
  if (!thread_.joinable()) return;
  loop_->Stop();
  thread_.join();
  device_.reset();
}

}  // namespace gcs::host::vsock
