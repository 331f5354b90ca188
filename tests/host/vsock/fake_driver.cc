// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/fake_driver.h"

#include <linux/virtio_config.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "host/vsock/unix_socket.h"

namespace gcs::host::vsock {

namespace {

// Two regions that adjoin in the guest's view only, so that a buffer may run over both.
constexpr uint64_t kGuestBase = 0x10'0000;
constexpr uint64_t kUserBase = 0x7f00'0000'0000;
constexpr uint64_t kUserGap = 0x1'0000'0000;
constexpr uint64_t kHalf = 16 << 20;
constexpr uint64_t kRingArea = 1 << 20;  // per queue
constexpr uint64_t kScratch = 2 << 20;   // 1 MiB
constexpr uint64_t kIndirect = 3 << 20;  // tables, 256 bytes for each head of each queue
constexpr uint64_t kTxSlots = 4 << 20;
constexpr uint64_t kTxSlot = 80 << 10;
constexpr size_t kTxSlotCount = 64;
constexpr uint64_t kRxBuffers = kHalf - 100'001;  // on both sides of the border and across it
constexpr int kTimeoutMs = 10'000;

// avail_event sits behind the used ring.
uint16_t& AvailEvent(vring_used* used, uint32_t queue_size) {
  return *reinterpret_cast<uint16_t*>(reinterpret_cast<uint8_t*>(used) + 4 +
                                      (queue_size * sizeof(vring_used_elem)));
}

[[noreturn]] void Fail(const std::string& what) { throw std::runtime_error("fake driver: " + what); }

}  // namespace

FakeDriver::FakeDriver(std::string vhost_socket, const Options& options)
    : path_(std::move(vhost_socket)), options_(options), random_(options.seed) {
  memfd_.Reset(memfd_create("guest", MFD_CLOEXEC));
  if (!memfd_ || ftruncate(memfd_.get(), 2 * kHalf) != 0) Fail("memfd");
  void* map = mmap(nullptr, 2 * kHalf, PROT_READ | PROT_WRITE, MAP_SHARED, memfd_.get(), 0);
  if (map == MAP_FAILED) Fail("mmap");
  memory_ = static_cast<uint8_t*>(map);
}

FakeDriver::~FakeDriver() { munmap(memory_, 2 * kHalf); }

uint64_t FakeDriver::guest_address(uint64_t offset) const { return kGuestBase + offset; }
size_t FakeDriver::memory_size() const { return 2 * kHalf; }
uint64_t FakeDriver::scratch_offset() const { return kScratch; }

void FakeDriver::Request(uint32_t request, const void* payload, size_t size, const std::vector<int>& fds,
                         bool ack) {
  std::vector<uint8_t> out(12 + size);
  const uint32_t flags = 1 | (ack ? 8 : 0);
  const auto length = static_cast<uint32_t>(size);
  memcpy(out.data(), &request, 4);
  memcpy(out.data() + 4, &flags, 4);
  memcpy(out.data() + 8, &length, 4);
  if (size > 0) memcpy(out.data() + 12, payload, size);
  iovec iov = {.iov_base = out.data(), .iov_len = out.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(8 * sizeof(int))> control = {};
  msghdr message = {};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  if (sendmsg(socket_.get(), &message, MSG_NOSIGNAL) != static_cast<ssize_t>(out.size()))
    Fail("vhost-user send");
  if (!ack) return;
  const std::vector<uint8_t> reply = Reply(request);
  if (reply.size() != 8 || std::ranges::any_of(reply, [](uint8_t b) { return b != 0; })) {
    Fail("vhost-user request " + std::to_string(request) + " refused");
  }
}

std::vector<uint8_t> FakeDriver::Reply(uint32_t request) {
  const auto read_all = [this](uint8_t* at, size_t size) {
    while (size > 0) {
      pollfd entry = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
      if (poll(&entry, 1, kTimeoutMs) != 1) Fail("no vhost-user reply");
      const ssize_t n = recv(socket_.get(), at, size, 0);
      if (n <= 0) Fail("vhost-user connection ended");
      at += n;
      size -= n;
    }
  };
  std::array<uint8_t, 12> header;
  read_all(header.data(), header.size());
  uint32_t words[3];
  memcpy(words, header.data(), sizeof words);
  if (words[0] != request || (words[1] & 7) != 5) Fail("unexpected vhost-user reply");
  std::vector<uint8_t> payload(words[2]);
  read_all(payload.data(), payload.size());
  return payload;
}

void FakeDriver::ConnectVmm() {
  auto connected = ConnectUnix(path_);
  if (!connected) Fail(connected.error().ToString());
  socket_ = std::move(*connected);
  Request(1, nullptr, 0, {}, false);
  uint64_t features = 0;
  memcpy(&features, Reply(1).data(), 8);
  Request(15, nullptr, 0, {}, false);
  uint64_t protocol = 0;
  memcpy(&protocol, Reply(15).data(), 8);
  if ((features & (1ULL << VIRTIO_F_VERSION_1)) == 0 || (protocol & (1U << 3)) == 0) Fail("features missing");
  protocol &= (1U << 0) | (1U << 3) | (1U << 9);
  Request(16, &protocol, 8, {}, false);
  Request(3, nullptr, 0, {}, true);
}

uint64_t FakeDriver::ReadCid() {
  struct {
    uint32_t offset = 0;
    uint32_t size = 8;
    uint32_t flags = 0;
    uint8_t data[8] = {};
  } config;
  Request(24, &config, sizeof config, {}, false);
  const auto reply = Reply(24);
  if (reply.size() != sizeof config) Fail("configuration refused");
  uint64_t cid = 0;
  memcpy(&cid, reply.data() + 12, 8);
  return cid;
}

void FakeDriver::Start() {
  uint64_t features = (1ULL << VIRTIO_F_VERSION_1) | (1ULL << 30);
  if (options_.event_idx) features |= 1ULL << VIRTIO_RING_F_EVENT_IDX;
  if (options_.indirect) features |= 1ULL << VIRTIO_RING_F_INDIRECT_DESC;
  Request(2, &features, 8, {}, true);
  const uint64_t table[] = {2,     kGuestBase,           kHalf, kUserBase, 0, kGuestBase + kHalf,
                            kHalf, kUserBase + kUserGap, kHalf};
  Request(5, table, sizeof table, {memfd_.get(), memfd_.get()}, true);

  memset(memory_, 0, 2 * kRingArea);
  tx_slots_.clear();
  for (size_t i = 0; i < kTxSlotCount; ++i) tx_slots_.push_back(kTxSlots + (i * kTxSlot));
  const uint32_t n = options_.queue_size;
  for (uint32_t q = 0; q < 2; ++q) {
    Ring& ring = rings_[q];
    ring = Ring{};
    const uint64_t at = q * kRingArea;
    const uint64_t avail = at + (n * 16ULL);
    const uint64_t used = (avail + 6 + (n * 2) + 3) / 4 * 4;
    ring.desc = reinterpret_cast<vring_desc*>(memory_ + at);
    ring.avail = reinterpret_cast<vring_avail*>(memory_ + avail);
    ring.used = reinterpret_cast<vring_used*>(memory_ + used);
    ring.next_avail = ring.last_used = ring.kicked = options_.base;
    ring.avail->idx = ring.used->idx = options_.base;
    ring.avail->ring[n] = options_.base;  // used_event: signal the first
    AvailEvent(ring.used, n) = options_.base;
    ring.kick.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ring.call.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ring.chains.resize(n);
    ring.buffers.resize(n);
    for (uint32_t i = n; i > 0; --i) ring.free.push_back(i - 1);

    const uint32_t num[] = {q, n};
    Request(8, num, sizeof num, {}, true);
    const uint32_t base[] = {q, options_.base};
    Request(10, base, sizeof base, {}, true);
    const struct {
      uint32_t index, flags;
      uint64_t desc, used, avail, log;
    } addr = {q, 0, kUserBase + at, kUserBase + used, kUserBase + avail, 0};
    Request(9, &addr, sizeof addr, {}, true);
    const uint64_t index = q;
    Request(13, &index, 8, {ring.call.get()}, true);
    Request(12, &index, 8, {ring.kick.get()}, true);
  }
  for (uint32_t q = 0; q < 2; ++q) {
    const uint32_t enable[] = {q, 1};
    Request(18, enable, sizeof enable, {}, true);
  }
  PostRx(options_.rx_buffers == 0 ? n : options_.rx_buffers);
}

void FakeDriver::Stop() {
  for (uint32_t q = 0; q < 2; ++q) {
    const uint32_t state[] = {q, 0};
    Request(11, state, sizeof state, {}, false);
    if (Reply(11).size() != 8) Fail("vring base refused");
  }
}

void FakeDriver::DisconnectVmm() { socket_.Reset(); }

bool FakeDriver::Offer(int queue, uint64_t offset, uint32_t size, bool writable) {
  Ring& ring = rings_[queue];
  std::vector<uint32_t> pieces;
  uint32_t left = size;
  if (options_.random_layout) {
    for (uint32_t i = random_() % 6; i > 0 && left > 1; --i) {
      // Small ones cut the header, large ones the data.
      const uint32_t piece = 1 + (random_() % ((random_() % 2) != 0 ? std::min(left - 1, 40U) : left - 1));
      pieces.push_back(piece);
      left -= piece;
    }
  }
  pieces.push_back(left);
  const bool indirect = options_.indirect && pieces.size() > 1;
  while (!indirect && pieces.size() > 1 && pieces.size() > ring.free.size()) {
    pieces[pieces.size() - 2] += pieces.back();
    pieces.pop_back();
  }
  const size_t wanted = indirect ? 1 : pieces.size();
  if (ring.free.size() < wanted) return false;
  std::vector<uint16_t> used(ring.free.end() - static_cast<ptrdiff_t>(wanted), ring.free.end());
  ring.free.resize(ring.free.size() - wanted);
  const uint16_t head = used[0];
  const uint64_t table = kIndirect + (((queue * uint64_t{options_.queue_size}) + head) * 128);
  auto* to = indirect ? reinterpret_cast<vring_desc*>(memory_ + table) : ring.desc;
  uint64_t at = offset;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const bool last = i + 1 == pieces.size();
    const auto next = static_cast<uint16_t>(last ? 0 : (indirect ? i + 1 : used[i + 1]));
    to[indirect ? i : used[i]] = {
        .addr = guest_address(at),
        .len = pieces[i],
        .flags = static_cast<uint16_t>((writable ? VRING_DESC_F_WRITE : 0) | (last ? 0 : VRING_DESC_F_NEXT)),
        .next = next};
    at += pieces[i];
  }
  if (indirect) {
    ring.desc[head] = {.addr = guest_address(table),
                       .len = static_cast<uint32_t>(pieces.size() * sizeof(vring_desc)),
                       .flags = VRING_DESC_F_INDIRECT,
                       .next = 0};
  }
  ring.chains[head] = std::move(used);
  ring.buffers[head] = {offset, size};
  ring.avail->ring[ring.next_avail % options_.queue_size] = head;
  ++ring.next_avail;
  return true;
}

void FakeDriver::Publish(int queue) {
  Ring& ring = rings_[queue];
  std::atomic_ref(ring.avail->idx).store(ring.next_avail, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  bool kick = false;
  if (options_.event_idx) {
    const uint16_t event = std::atomic_ref(AvailEvent(ring.used, options_.queue_size)).load();
    kick = vring_need_event(event, ring.next_avail, ring.kicked) != 0;
  } else {
    kick = (std::atomic_ref(ring.used->flags).load() & VRING_USED_F_NO_NOTIFY) == 0;
  }
  ring.kicked = ring.next_avail;
  if (kick) Kick(queue);
}

void FakeDriver::Kick(int queue) {
  const uint64_t one = 1;
  if (write(rings_[queue].kick.get(), &one, sizeof one) != sizeof one) Fail("kick");
}

void FakeDriver::PushAvail(int queue, uint16_t head) {
  Ring& ring = rings_[queue];
  ring.avail->ring[ring.next_avail % options_.queue_size] = head;
  ++ring.next_avail;
  std::atomic_ref(ring.avail->idx).store(ring.next_avail, std::memory_order_release);
  Kick(queue);
}

bool FakeDriver::WaitUsed(int queue, int timeout_ms) {
  Ring& ring = rings_[queue];
  for (;;) {
    if (std::atomic_ref(ring.used->idx).load(std::memory_order_acquire) != ring.last_used) return true;
    // Asks for a signal with the next used buffer, then looks once more.
    std::atomic_ref(ring.avail->ring[options_.queue_size]).store(ring.last_used);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (std::atomic_ref(ring.used->idx).load(std::memory_order_acquire) != ring.last_used) return true;
    pollfd entry = {.fd = ring.call.get(), .events = POLLIN, .revents = 0};
    if (poll(&entry, 1, timeout_ms) != 1) {
      return std::atomic_ref(ring.used->idx).load(std::memory_order_acquire) != ring.last_used;
    }
    uint64_t count = 0;
    if (read(ring.call.get(), &count, sizeof count) == sizeof count) interrupts_ += count;
  }
}

void FakeDriver::ReclaimTx() {
  Ring& ring = rings_[1];
  while (ring.last_used != std::atomic_ref(ring.used->idx).load(std::memory_order_acquire)) {
    const auto head = static_cast<uint16_t>(ring.used->ring[ring.last_used % options_.queue_size].id);
    ++ring.last_used;
    ring.free.insert(ring.free.end(), ring.chains[head].begin(), ring.chains[head].end());
    tx_slots_.push_back(ring.buffers[head].first);
  }
}

void FakeDriver::Send(const Packet& packet, std::string_view data) {
  if (data.size() > kTxSlot - kHeaderSize - 64) Fail("packet too large");
  ReclaimTx();
  while (tx_slots_.empty() || rings_[1].free.size() < 8) {
    if (!WaitUsed(1, kTimeoutMs)) Fail("device takes no packets");
    ReclaimTx();
  }
  const uint64_t slot = tx_slots_.back();
  tx_slots_.pop_back();
  const iovec to = {.iov_base = memory_ + slot, .iov_len = kHeaderSize};
  EncodePacket(packet, {&to, 1});
  if (!data.empty()) memcpy(memory_ + slot + kHeaderSize, data.data(), data.size());
  if (!Offer(1, slot, kHeaderSize + data.size(), false)) Fail("no tx descriptors");
  Publish(1);
}

void FakeDriver::PostRx(uint32_t count) {
  Ring& ring = rings_[0];
  // A buffer's place follows from its number; with several pieces per buffer the ring holds fewer.
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t offset =
        kRxBuffers + (static_cast<uint64_t>(ring.next_avail % options_.queue_size) * options_.rx_buffer);
    if (!Offer(0, offset, options_.rx_buffer, true)) break;
  }
  Publish(0);
}

std::optional<FakeDriver::Received> FakeDriver::Receive(int timeout_ms) {
  if (!WaitUsed(0, timeout_ms)) return std::nullopt;
  Ring& ring = rings_[0];
  const vring_used_elem element = ring.used->ring[ring.last_used % options_.queue_size];
  ++ring.last_used;
  const auto head = static_cast<uint16_t>(element.id);
  const auto [offset, size] = ring.buffers[head];
  if (element.len < kHeaderSize || element.len > size) Fail("used length " + std::to_string(element.len));
  Received out;
  const iovec from = {.iov_base = memory_ + offset, .iov_len = element.len};
  DecodePacket({&from, 1}, out.packet);
  out.data.assign(reinterpret_cast<char*>(memory_) + offset + kHeaderSize, element.len - kHeaderSize);
  if (out.data.size() != out.packet.len) Fail("length in the header differs from the buffer's");
  ring.free.insert(ring.free.end(), ring.chains[head].begin(), ring.chains[head].end());
  if (Offer(0, offset, size, true)) Publish(0);
  return out;
}

}  // namespace gcs::host::vsock
