// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <linux/virtio_vsock.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace gcs::host::vsock {

inline constexpr uint64_t kHostCid = 2;
inline constexpr size_t kHeaderSize = 44;

// A packet's header in host byte order (virtio 1.2, section 5.10.6).
struct Packet {
  uint64_t src_cid = 0;
  uint64_t dst_cid = 0;
  uint32_t src_port = 0;
  uint32_t dst_port = 0;
  uint32_t len = 0;
  uint16_t type = VIRTIO_VSOCK_TYPE_STREAM;
  uint16_t op = VIRTIO_VSOCK_OP_INVALID;
  uint32_t flags = 0;
  uint32_t buf_alloc = 0;
  uint32_t fwd_cnt = 0;
  bool operator==(const Packet&) const = default;
};

std::string_view OpName(uint16_t op);

// Reads the header from the front of a gather list; false: fewer than 44 bytes.
bool DecodePacket(std::span<const iovec> from, Packet& packet);
// Writes the header to the front of a scatter list of at least 44 bytes.
void EncodePacket(const Packet& packet, std::span<const iovec> to);

// Appends the parts of `from` that hold bytes [skip, skip + length).
void AppendSlice(std::span<const iovec> from, size_t skip, size_t length, std::vector<iovec>& out);

}  // namespace gcs::host::vsock
