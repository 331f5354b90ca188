// SPDX-License-Identifier: Apache-2.0
// The whole guest-facing side of the vsock device over arbitrary guest memory: rings, descriptors and packets
// are the input's bytes. A host port is served by a socketpair, so that streams open and carry data.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/log.h"
#include "host/vsock/mux.h"

namespace {

using namespace gcs;
using namespace gcs::host::vsock;

constexpr uint64_t kUser = 0x10000;
constexpr uint64_t kGuest = 0x1000;
constexpr size_t kMemory = 16384;
constexpr uint32_t kNum = 8;
constexpr uint64_t kRingSize = 512;  // of one queue's three parts

struct Control {
  uint8_t flags;  // 1 event index, 2 indirect, 4 the rings' addresses are in the input, too
  uint8_t rounds;
  uint16_t base;
  uint64_t addresses[6];
};

class Host {
 public:
  base::Result<base::Fd> Dial(uint32_t port) {
    if (port % 4 == 0) return base::MakeError(ECONNREFUSED, "dial");
    if (port % 4 == 1) return base::MakeError(EAGAIN, "dial");
    std::array<int, 2> ends;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) != 0) {
      return base::ErrnoError("socketpair");
    }
    base::Fd host(ends[1]);
    [[maybe_unused]] const ssize_t n = write(host.get(), "from the host", 13);
    if (port % 4 == 2) ends_.push_back(std::move(host));  // else: closed at once
    return base::Fd(ends[0]);
  }

 private:
  std::vector<base::Fd> ends_;
};

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  base::SetLogOutput(2, base::LogFormat::kText, base::Level{4});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Control control;
  if (size < sizeof control) return 0;
  memcpy(&control, data, sizeof control);
  data += sizeof control;
  size -= sizeof control;
  alignas(16) static std::array<uint8_t, kMemory> aligned;
  aligned.fill(0);
  memcpy(aligned.data(), data, std::min(size, kMemory));

  GuestMemory memory;
  memory.Borrow(kGuest, kUser, kMemory / 2, aligned.data());
  memory.Borrow(kGuest + (kMemory / 2), kUser + (1 << 20), kMemory / 2, aligned.data() + (kMemory / 2));
  std::array<Virtqueue, 2> queues;
  for (size_t q = 0; q < queues.size(); ++q) {
    const uint64_t at = kUser + (q * kRingSize);
    Virtqueue::Config config = {.num = kNum,
                                .desc = at,
                                .avail = at + (kNum * 16),
                                .used = at + (kNum * 16) + 64,
                                .event_idx = (control.flags & 1) != 0,
                                .indirect = (control.flags & 2) != 0};
    if ((control.flags & 4) != 0) {
      config.desc = control.addresses[q * 3];
      config.avail = control.addresses[(q * 3) + 1];
      config.used = control.addresses[(q * 3) + 2];
    }
    if (!queues[q].Start(&memory, config, control.base)) return 0;
  }
  auto loop = base::Loop::Create();
  if (!loop) return 0;
  Host host;
  Stats stats;
  {
    Mux mux(
        loop->get(), {.guest_cid = 3, .max_connections = 8, .buf_alloc = 4096},
        [&host](uint32_t port) { return host.Dial(port); }, [](QueueIndex) {}, &stats);
    mux.Start(queues.data(), &queues[1]);
    for (int i = 0; i < 4 + (control.rounds % 8) && mux.running(); ++i) {
      (*loop)->RunOnce(0);
      mux.OnKick();
      if (i == 2) {
        std::array<int, 2> ends;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) == 0) {
          mux.ConnectGuest(base::Fd(ends[0]), control.rounds);
          close(ends[1]);
        }
      }
    }
    mux.Stop();
  }
  if (stats.connections != 0) abort();
  return 0;
}
