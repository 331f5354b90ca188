// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::host::vsock {

// The guest's memory as the VMM shares it: at most 8 regions (vhost-user without CONFIGURE_MEM_SLOTS).
// Addresses come from the guest and are never trusted: every look-up checks the whole range.
class GuestMemory {
 public:
  GuestMemory() = default;
  ~GuestMemory();
  GuestMemory(GuestMemory&& other) noexcept : regions_(std::move(other.regions_)) { other.regions_.clear(); }
  GuestMemory& operator=(GuestMemory&& other) noexcept;
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  // Maps `size` bytes of `fd` from `offset` as guest-physical `guest` and VMM-virtual `user`. A descriptor
  // that is open for reading only (a read-only nvdimm) gives a region that no buffer for the device's writes
  // may touch.
  base::Result<> Map(uint64_t guest, uint64_t user, uint64_t size, uint64_t offset, const base::Fd& fd);
  // The same over memory that the caller keeps alive; for tests and fuzzing.
  void Borrow(uint64_t guest, uint64_t user, uint64_t size, uint8_t* host);

  // VMM-virtual range inside one region (the rings), or nullptr.
  [[nodiscard]] uint8_t* FromUser(uint64_t user, uint64_t size, bool writable) const;
  // Appends a guest-physical range (a buffer), which may run over adjoining regions. False: not all of it is
  // memory.
  [[nodiscard]] bool AppendGuest(uint64_t guest, uint64_t size, bool writable, std::vector<iovec>& out) const;

 private:
  struct Region {
    uint64_t guest;
    uint64_t user;
    uint64_t size;
    uint8_t* host;
    bool writable;
    void* map;  // nullptr if borrowed
    size_t map_size;
  };
  std::vector<Region> regions_;
};

}  // namespace gcs::host::vsock
