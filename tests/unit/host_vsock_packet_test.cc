// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>
#include <string>
#include <vector>

#include "host/vsock/connection.h"
#include "host/vsock/hybrid.h"
#include "host/vsock/memory.h"
#include "host/vsock/packet.h"

namespace gcs::host::vsock {

TEST_CASE("a packet header survives any cut of its buffer") {
  const Packet packet = {.src_cid = 0x1122334455667788,
                         .dst_cid = 2,
                         .src_port = 0xAABBCCDD,
                         .dst_port = 7,
                         .len = 9,
                         .type = 1,
                         .op = VIRTIO_VSOCK_OP_RW,
                         .flags = 3,
                         .buf_alloc = 0xFFFFFFFF,
                         .fwd_cnt = 5};
  for (size_t cut = 0; cut <= kHeaderSize; ++cut) {
    std::array<uint8_t, 60> bytes;
    bytes.fill(0xEE);
    const iovec parts[] = {
        {bytes.data(), cut}, {bytes.data() + cut, 0}, {bytes.data() + cut, bytes.size() - cut}};
    EncodePacket(packet, parts);
    CHECK(bytes[44] == 0xEE);
    CHECK(bytes[0] == 0x88);  // little-endian
    CHECK(bytes[24] == 9);
    CHECK(bytes[30] == VIRTIO_VSOCK_OP_RW);
    Packet back;
    REQUIRE(DecodePacket(parts, back));
    CHECK(back == packet);
    Packet none;
    const iovec too_short[] = {{bytes.data(), 20}, {bytes.data(), 23}};
    CHECK(!DecodePacket(too_short, none));
  }
}

TEST_CASE("a slice of a gather list holds exactly the bytes asked for") {
  std::array<char, 10> bytes = {'0', '1', '2', '3', '4', '5', '6', '7', '8', '9'};
  const iovec parts[] = {{bytes.data(), 3}, {bytes.data() + 3, 1}, {bytes.data() + 4, 6}};
  for (size_t skip = 0; skip <= 10; ++skip) {
    for (size_t length = 0; skip + length <= 10; ++length) {
      std::vector<iovec> out;
      AppendSlice(parts, skip, length, out);
      std::string text;
      for (const iovec& part : out) text.append(static_cast<char*>(part.iov_base), part.iov_len);
      CHECK(text == std::string("0123456789").substr(skip, length));
    }
  }
}

TEST_CASE("credit is counted modulo 2^32") {
  Credit credit;
  credit.peer_buf_alloc = 1000;
  credit.tx_cnt = 0xFFFFFFF0;
  credit.peer_fwd_cnt = 0xFFFFFFF0;
  CHECK(credit.SendSpace() == 1000);
  credit.tx_cnt += 100;
  CHECK(credit.tx_cnt < 100);
  CHECK(credit.SendSpace() == 900);
  credit.peer_fwd_cnt += 100;
  CHECK(credit.SendSpace() == 1000);
  // A guest that claims to have forwarded more than it got, or shrinks its buffer, gets nothing.
  credit.peer_fwd_cnt += 1;
  CHECK(credit.SendSpace() == 0);
  credit.peer_fwd_cnt -= 501;
  CHECK(credit.SendSpace() == 500);
  credit.peer_buf_alloc = 10;
  CHECK(credit.SendSpace() == 0);

  credit.buf_alloc = 4096;
  credit.rx_cnt = 100;
  credit.fwd_cnt = credit.announced_fwd = 0xFFFFFFFF;
  CHECK(credit.MayReceive(4096 - 101));
  CHECK(!credit.MayReceive(4096 - 100));
  CHECK(!credit.MayReceive(0xFFFFFFFF));
  credit.fwd_cnt += 1023;
  CHECK(!credit.ShouldAnnounce());
  credit.fwd_cnt += 1;
  CHECK(credit.ShouldAnnounce());
}

TEST_CASE("only a whole CONNECT line with a port is taken") {
  CHECK(ParseConnect("CONNECT 1024\n") == 1024);
  CHECK(ParseConnect("CONNECT 4294967295\n") == 4294967295);
  for (const char* bad : {"CONNECT 4294967296\n", "CONNECT \n", "CONNECT -1\n", "CONNECT 1 \n",
                          "CONNECT  1\n", "connect 1\n", "CONNECT 1", "CONNECT 0x10\n", "\n", ""}) {
    CHECK_MESSAGE(!ParseConnect(bad), bad);
  }
}

TEST_CASE("guest addresses are found in their regions and nowhere else") {
  std::array<uint8_t, 300> bytes = {};
  GuestMemory memory;
  memory.Borrow(1000, 50'000, 100, bytes.data());
  memory.Borrow(1100, 70'000, 100, bytes.data() + 200);  // adjoins the first for the guest only
  std::vector<iovec> out;
  REQUIRE(memory.AppendGuest(1050, 100, true, out));
  REQUIRE(out.size() == 2);
  CHECK(out[0].iov_base == bytes.data() + 50);
  CHECK(out[0].iov_len == 50);
  CHECK(out[1].iov_base == bytes.data() + 200);
  CHECK(out[1].iov_len == 50);
  for (const auto& [address, size] :
       std::initializer_list<std::pair<uint64_t, uint64_t>>{{999, 1},
                                                            {1000, 201},
                                                            {1199, 2},
                                                            {1200, 1},
                                                            {0, 1},
                                                            {UINT64_MAX, 1},
                                                            {1100, UINT64_MAX},
                                                            {UINT64_MAX - 5, 50}}) {
    out.clear();
    CHECK(!memory.AppendGuest(address, size, true, out));
  }
  CHECK(memory.FromUser(50'000, 100, true) == bytes.data());
  CHECK(memory.FromUser(70'010, 90, true) == bytes.data() + 210);
  CHECK(memory.FromUser(50'000, 101, true) == nullptr);
  CHECK(memory.FromUser(49'999, 1, true) == nullptr);
  CHECK(memory.FromUser(50'001, UINT64_MAX, true) == nullptr);
}

}  // namespace gcs::host::vsock
