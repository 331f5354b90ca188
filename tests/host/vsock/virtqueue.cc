// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/virtqueue.h"

#include <atomic>
#include <bit>
#include <cstring>
#include <string>

namespace gcs::host::vsock {

// The rings are little-endian; so is every machine that this host side runs on.
static_assert(std::endian::native == std::endian::little);

namespace {

constexpr uint32_t kMaxQueueSize = 32768;
// More than any driver of a packet device chains; what the kernel takes in one readv (UIO_MAXIOV).
constexpr uint32_t kMaxChain = 1024;

uint16_t Load(const uint16_t& word) {
  return std::atomic_ref(const_cast<uint16_t&>(word)).load(std::memory_order_relaxed);
}
uint16_t LoadAcquire(const uint16_t& word) {
  return std::atomic_ref(const_cast<uint16_t&>(word)).load(std::memory_order_acquire);
}
void Store(uint16_t& word, uint16_t value) { std::atomic_ref(word).store(value, std::memory_order_relaxed); }

// A private copy: the guest may change the original at any moment.
vring_desc LoadDesc(const vring_desc* desc) {
  vring_desc copy;
  memcpy(&copy, desc, sizeof copy);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return copy;
}

std::unexpected<base::Error> Hostile(std::string_view what, uint64_t value) {
  return base::MakeError(EPROTO, "virtqueue", std::to_string(value), what);
}

}  // namespace

base::Result<> Virtqueue::Start(const GuestMemory* memory, const Config& config, uint16_t base) {
  if (config.num == 0 || config.num > kMaxQueueSize || !std::has_single_bit(config.num)) {
    return base::MakeError(EINVAL, "start virtqueue", std::to_string(config.num), "size is no power of two");
  }
  memory_ = memory;
  config_ = config;
  GCS_TRY(Remap());
  next_avail_ = seen_avail_ = base;
  // The used index lives in the ring itself; after a stop and restart of the same ring both go on from there.
  next_used_ = published_used_ = Load(used_->idx);
  return {};
}

base::Result<> Virtqueue::Remap() {
  const uint64_t num = config_.num;
  // Each ring ends with the 16 bits of the event index, which is there with or without EVENT_IDX.
  auto* desc = memory_->FromUser(config_.desc, num * sizeof(vring_desc), false);
  auto* avail = memory_->FromUser(config_.avail, 6 + (num * 2), false);
  auto* used = memory_->FromUser(config_.used, 6 + (num * sizeof(vring_used_elem)), true);
  const auto misaligned = [](const void* at, uintptr_t to) { return std::bit_cast<uintptr_t>(at) % to != 0; };
  desc_ = nullptr;
  if (desc == nullptr || misaligned(desc, 16))
    return Hostile("descriptor table outside memory", config_.desc);
  if (avail == nullptr || misaligned(avail, 2))
    return Hostile("available ring outside memory", config_.avail);
  if (used == nullptr || misaligned(used, 4)) return Hostile("used ring outside memory", config_.used);
  desc_ = reinterpret_cast<const vring_desc*>(desc);
  avail_ = reinterpret_cast<vring_avail*>(avail);
  used_ = reinterpret_cast<vring_used*>(used);
  return {};
}

uint16_t Virtqueue::Stop() {
  desc_ = nullptr;
  avail_ = nullptr;
  used_ = nullptr;
  return next_avail_;
}

base::Result<uint16_t> Virtqueue::Available() {
  if (next_avail_ == seen_avail_) {
    seen_avail_ = LoadAcquire(avail_->idx);
    const auto count = static_cast<uint16_t>(seen_avail_ - next_avail_);
    if (count > config_.num) return Hostile("available index jumped", count);
  }
  return static_cast<uint16_t>(seen_avail_ - next_avail_);
}

base::Result<> Virtqueue::Append(const vring_desc& desc, Chain& chain) const {
  const bool writable = (desc.flags & VRING_DESC_F_WRITE) != 0;
  if (!writable && !chain.writable.empty()) return Hostile("readable buffer after a writable one", desc.addr);
  auto& out = writable ? chain.writable : chain.readable;
  if (!memory_->AppendGuest(desc.addr, desc.len, writable, out)) {
    return Hostile("buffer outside memory, length " + std::to_string(desc.len), desc.addr);
  }
  (writable ? chain.writable_bytes : chain.readable_bytes) += desc.len;
  return {};
}

base::Result<> Virtqueue::Walk(vring_desc desc, const vring_desc* table, uint32_t table_size, Chain& chain) {
  for (uint32_t steps = 1;; ++steps) {
    if ((desc.flags & VRING_DESC_F_INDIRECT) != 0)
      return Hostile("indirect descriptor in a chain", desc.addr);
    GCS_TRY(Append(desc, chain));
    if ((desc.flags & VRING_DESC_F_NEXT) == 0) return {};
    if (desc.next >= table_size) return Hostile("next descriptor out of range", desc.next);
    if (steps >= table_size || steps >= kMaxChain) return Hostile("descriptor chain has a loop", desc.next);
    desc = LoadDesc(table + desc.next);
  }
}

base::Result<bool> Virtqueue::Pop(Chain& chain) {
  GCS_ASSIGN(const uint16_t available, Available());
  if (available == 0) return false;
  const uint16_t head = Load(avail_->ring[next_avail_ & (config_.num - 1)]);
  if (head >= config_.num) return Hostile("available ring names no descriptor", head);
  chain.head = head;
  chain.readable.clear();
  chain.writable.clear();
  chain.readable_bytes = chain.writable_bytes = 0;

  const vring_desc first = LoadDesc(desc_ + head);
  if ((first.flags & VRING_DESC_F_INDIRECT) == 0) {
    GCS_TRY(Walk(first, desc_, config_.num, chain));
  } else {
    if (!config_.indirect) return Hostile("indirect descriptor was not negotiated", first.addr);
    const uint32_t count = first.len / sizeof(vring_desc);
    if (first.len % sizeof(vring_desc) != 0 || count == 0 || count > kMaxChain) {
      return Hostile("indirect table of a bad size", first.len);
    }
    indirect_.clear();
    if (!memory_->AppendGuest(first.addr, first.len, false, indirect_)) {
      return Hostile("indirect table outside memory", first.addr);
    }
    // Copied at once: it may be unaligned or run over two regions.
    table_.resize(count);
    auto* to = reinterpret_cast<uint8_t*>(table_.data());
    for (const iovec& part : indirect_) {
      memcpy(to, part.iov_base, part.iov_len);
      to += part.iov_len;
    }
    GCS_TRY(Walk(table_[0], table_.data(), count, chain));
  }
  ++next_avail_;
  return true;
}

void Virtqueue::Push(uint16_t head, uint32_t written) {
  used_->ring[next_used_ & (config_.num - 1)] = {.id = head, .len = written};
  ++next_used_;
}

bool Virtqueue::Publish() {
  if (next_used_ == published_used_) return false;
  const uint16_t old = published_used_;
  published_used_ = next_used_;
  std::atomic_ref(used_->idx).store(next_used_, std::memory_order_release);
  // Our index must be out before we look at what the driver wants, else both sides could wait.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (config_.event_idx) return vring_need_event(Load(avail_->ring[config_.num]), next_used_, old) != 0;
  return (Load(avail_->flags) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
}

base::Result<bool> Virtqueue::EnableKick() {
  if (config_.event_idx) {
    // avail_event sits behind the used ring.
    auto* event = reinterpret_cast<uint16_t*>(reinterpret_cast<uint8_t*>(used_) + 4 +
                                              (config_.num * sizeof(vring_used_elem)));
    Store(*event, next_avail_);
  } else {
    Store(used_->flags, 0);
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);
  GCS_ASSIGN(const uint16_t available, Available());
  return available != 0;
}

void Virtqueue::DisableKick() {
  // With EVENT_IDX the event index simply stays behind.
  if (!config_.event_idx) Store(used_->flags, VRING_USED_F_NO_NOTIFY);
}

}  // namespace gcs::host::vsock
