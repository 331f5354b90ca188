// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/loop.h"
#include "host/vsock/memory.h"
#include "host/vsock/mux.h"
#include "host/vsock/virtqueue.h"

namespace gcs::host::vsock {

// The back end's side of the vhost-user protocol (QEMU docs/interop/vhost-user.rst) for a device with two
// queues: takes one VMM at a time, starts the Mux when the driver has set up both queues, stops it when
// either stops or the VMM goes, and then waits for the next VMM. The VMM is trusted, the guest behind its
// messages is not.
class VhostUser {
 public:
  // Listens on `path` (replacing a stale socket). `mux` outlives this.
  static base::Result<std::unique_ptr<VhostUser>> Listen(base::Loop* loop, const std::string& path,
                                                         uint64_t guest_cid, Mux* mux);
  ~VhostUser();
  VhostUser(const VhostUser&) = delete;
  VhostUser& operator=(const VhostUser&) = delete;

  // For the Mux: raises the driver's interrupt.
  void Signal(QueueIndex index);

 private:
  struct Queue {
    Virtqueue ring;
    Virtqueue::Config config;
    uint16_t base = 0;
    bool enabled = false;
    bool addressed = false;
    base::Fd kick;
    base::Fd call;
  };
  struct Message {
    uint32_t request = 0;
    uint32_t flags = 0;
    std::vector<uint8_t> payload;
    std::vector<base::Fd> fds;
  };

  VhostUser(base::Loop* loop, std::string path, uint64_t guest_cid, Mux* mux, base::Fd listener);
  base::Result<> WatchListener();
  void OnAccept();
  void OnReadable();
  base::Result<bool> Receive();  // true: message_ is complete
  void Disconnect(std::string_view why);
  base::Result<> Handle(Message& message);
  base::Result<> Reply(const Message& to, std::span<const uint8_t> payload);
  base::Result<> ReplyU64(const Message& to, uint64_t value);
  base::Result<> SetMemTable(Message& message);
  base::Result<> SetVringAddr(const Message& message);
  base::Result<> SetVringFd(Message& message);
  base::Result<> GetConfig(const Message& message);
  base::Result<Queue*> QueueOf(const Message& message);
  void StartQueue(Queue& queue);
  void StopQueue(Queue& queue);

  base::Loop* const loop_;
  const std::string path_;
  const uint64_t guest_cid_;
  Mux* const mux_;
  base::Fd listener_;
  base::Fd client_;
  size_t received_ = 0;  // bytes of the header and then of the payload
  std::array<uint8_t, 12> header_ = {};
  Message message_;
  uint64_t features_ = 0;
  uint64_t protocol_features_ = 0;
  GuestMemory memory_;
  std::array<Queue, 2> queues_;
};

}  // namespace gcs::host::vsock
