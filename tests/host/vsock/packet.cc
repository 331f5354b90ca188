// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/packet.h"

#include <endian.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace gcs::host::vsock {

static_assert(sizeof(virtio_vsock_hdr) == kHeaderSize);

std::string_view OpName(uint16_t op) {
  constexpr std::array<std::string_view, 8> kNames = {
      "INVALID", "REQUEST", "RESPONSE", "RST", "SHUTDOWN", "RW", "CREDIT_UPDATE", "CREDIT_REQUEST"};
  return op < kNames.size() ? kNames[op] : "unknown";
}

bool DecodePacket(std::span<const iovec> from, Packet& packet) {
  virtio_vsock_hdr wire;
  auto* at = reinterpret_cast<uint8_t*>(&wire);
  size_t left = sizeof wire;
  for (const iovec& part : from) {
    const size_t n = std::min(left, part.iov_len);
    memcpy(at, part.iov_base, n);
    at += n;
    left -= n;
    if (left == 0) break;
  }
  if (left != 0) return false;
  packet = {.src_cid = le64toh(wire.src_cid),
            .dst_cid = le64toh(wire.dst_cid),
            .src_port = le32toh(wire.src_port),
            .dst_port = le32toh(wire.dst_port),
            .len = le32toh(wire.len),
            .type = le16toh(wire.type),
            .op = le16toh(wire.op),
            .flags = le32toh(wire.flags),
            .buf_alloc = le32toh(wire.buf_alloc),
            .fwd_cnt = le32toh(wire.fwd_cnt)};
  return true;
}

void EncodePacket(const Packet& packet, std::span<const iovec> to) {
  const virtio_vsock_hdr wire = {.src_cid = htole64(packet.src_cid),
                                 .dst_cid = htole64(packet.dst_cid),
                                 .src_port = htole32(packet.src_port),
                                 .dst_port = htole32(packet.dst_port),
                                 .len = htole32(packet.len),
                                 .type = htole16(packet.type),
                                 .op = htole16(packet.op),
                                 .flags = htole32(packet.flags),
                                 .buf_alloc = htole32(packet.buf_alloc),
                                 .fwd_cnt = htole32(packet.fwd_cnt)};
  const auto* at = reinterpret_cast<const uint8_t*>(&wire);
  size_t left = sizeof wire;
  for (const iovec& part : to) {
    const size_t n = std::min(left, part.iov_len);
    memcpy(part.iov_base, at, n);
    at += n;
    left -= n;
    if (left == 0) break;
  }
}

void AppendSlice(std::span<const iovec> from, size_t skip, size_t length, std::vector<iovec>& out) {
  for (const iovec& part : from) {
    if (length == 0) return;
    if (skip >= part.iov_len) {
      skip -= part.iov_len;
      continue;
    }
    const size_t n = std::min(length, part.iov_len - skip);
    out.push_back({.iov_base = static_cast<uint8_t*>(part.iov_base) + skip, .iov_len = n});
    length -= n;
    skip = 0;
  }
}

}  // namespace gcs::host::vsock
