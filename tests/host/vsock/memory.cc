// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace gcs::host::vsock {

GuestMemory::~GuestMemory() {
  for (const Region& region : regions_) {
    if (region.map != nullptr) munmap(region.map, region.map_size);
  }
}

GuestMemory& GuestMemory::operator=(GuestMemory&& other) noexcept {
  std::swap(regions_, other.regions_);
  return *this;
}

base::Result<> GuestMemory::Map(uint64_t guest, uint64_t user, uint64_t size, uint64_t offset,
                                const base::Fd& fd) {
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  if (size == 0 || size > kMax || offset > kMax - size || guest + size < guest || user + size < user) {
    return base::MakeError(EINVAL, "map guest memory", {}, "region wraps around");
  }
  // From the start of the file, because the offset need not be a multiple of a huge page.
  const size_t map_size = offset + size;
  bool writable = true;
  void* map = mmap(nullptr, map_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (map == MAP_FAILED && errno == EACCES) {
    writable = false;
    map = mmap(nullptr, map_size, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  }
  if (map == MAP_FAILED) return base::ErrnoError("mmap", "guest memory");
  regions_.push_back({guest, user, size, static_cast<uint8_t*>(map) + offset, writable, map, map_size});
  return {};
}

void GuestMemory::Borrow(uint64_t guest, uint64_t user, uint64_t size, uint8_t* host) {
  regions_.push_back({guest, user, size, host, true, nullptr, 0});
}

uint8_t* GuestMemory::FromUser(uint64_t user, uint64_t size, bool writable) const {
  for (const Region& region : regions_) {
    if (user < region.user || user - region.user >= region.size) continue;
    const uint64_t at = user - region.user;
    if (size > region.size - at || (writable && !region.writable)) return nullptr;
    return region.host + at;
  }
  return nullptr;
}

bool GuestMemory::AppendGuest(uint64_t guest, uint64_t size, bool writable, std::vector<iovec>& out) const {
  while (size > 0) {
    const auto region = std::ranges::find_if(
        regions_, [guest](const Region& r) { return guest >= r.guest && guest - r.guest < r.size; });
    if (region == regions_.end() || (writable && !region->writable)) return false;
    const uint64_t at = guest - region->guest;
    const uint64_t part = std::min(size, region->size - at);
    out.push_back({.iov_base = region->host + at, .iov_len = part});
    size -= part;
    if (size > 0 && guest + part < guest) return false;
    guest += part;
  }
  return true;
}

}  // namespace gcs::host::vsock
