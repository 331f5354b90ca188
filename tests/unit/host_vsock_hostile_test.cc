// SPDX-License-Identifier: Apache-2.0
// A guest that breaks every rule: the device says no, goes on living and serves the next boot.
#include "host_vsock_rig.h"

namespace gcs::host::vsock {

namespace {

constexpr int kRx = 0;
constexpr int kTx = 1;

void ServesNextBoot(Rig& rig) {
  rig.driver->Stop();
  rig.driver->Start();
  auto [guest, host] = OpenFromHost(rig, 1024);
  guest.Send(VIRTIO_VSOCK_OP_RW, "alive");
  CHECK(ReadHost(host.get(), 5) == "alive");
}

}  // namespace

TEST_CASE("a hostile descriptor disables the queue and nothing else") {
  Rig rig({.indirect = true});
  auto [guest, host] = OpenFromHost(rig, 1024);
  FakeDriver& driver = *rig.driver;
  vring_desc* const desc = driver.desc(kTx);
  const uint64_t scratch = driver.scratch_offset();
  const uint64_t good = driver.guest_address(scratch);
  auto* const table = reinterpret_cast<vring_desc*>(driver.memory() + scratch);
  uint16_t head = 100;
  int queue = kTx;

  SUBCASE("a head beyond the table") { head = 128; }
  SUBCASE("an address outside memory") { desc[100] = {.addr = 0x1000, .len = 44, .flags = 0, .next = 0}; }
  SUBCASE("an address at the end of the world") {
    desc[100] = {.addr = UINT64_MAX - 10, .len = 44, .flags = 0, .next = 0};
  }
  SUBCASE("a length beyond memory") { desc[100] = {.addr = good, .len = UINT32_MAX, .flags = 0, .next = 0}; }
  SUBCASE("a next beyond the table") {
    desc[100] = {.addr = good, .len = 4, .flags = VRING_DESC_F_NEXT, .next = 500};
  }
  SUBCASE("a chain that bites its tail") {
    desc[100] = {.addr = good, .len = 4, .flags = VRING_DESC_F_NEXT, .next = 101};
    desc[101] = {.addr = good, .len = 4, .flags = VRING_DESC_F_NEXT, .next = 100};
  }
  SUBCASE("a readable buffer behind a writable one") {
    desc[100] = {.addr = good, .len = 44, .flags = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, .next = 101};
    desc[101] = {.addr = good, .len = 44, .flags = 0, .next = 0};
  }
  SUBCASE("an indirect table outside memory") {
    desc[100] = {.addr = 0x1000, .len = 32, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  }
  SUBCASE("an indirect table of half an entry") {
    desc[100] = {.addr = good, .len = 24, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  }
  SUBCASE("an empty indirect table") {
    desc[100] = {.addr = good, .len = 0, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  }
  SUBCASE("a huge indirect table") {
    desc[100] = {.addr = good, .len = 16 << 16, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  }
  SUBCASE("an indirect table in an indirect table") {
    table[0] = {.addr = good, .len = 16, .flags = VRING_DESC_F_INDIRECT, .next = 0};
    desc[100] = {.addr = good, .len = 16, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  }
  SUBCASE("an indirect table whose next leads out of it") {
    table[0] = {.addr = good, .len = 4, .flags = VRING_DESC_F_NEXT, .next = 1};
    desc[100] = {.addr = good, .len = 16, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  }
  SUBCASE("an rx buffer without room for data") {
    queue = kRx;
    Rig tiny({.rx_buffer = 44, .rx_buffers = 1});
    const base::Fd refused = tiny.HostConnect(1);
    CHECK(Closed(refused.get()));
    CHECK(tiny.stats().queue_errors == 1);
    return;
  }
  SUBCASE("an rx buffer that may only be read") {
    queue = kRx;
    Rig empty({.rx_buffers = 1});
    empty.driver->desc(kRx)[0].flags = 0;
    const base::Fd refused = empty.HostConnect(1);
    CHECK(Closed(refused.get()));
    CHECK(empty.stats().queue_errors == 1);
    return;
  }
  driver.PushAvail(queue, head);
  CHECK(Eventually([&] { return rig.stats().queue_errors == 1; }));
  CHECK(Closed(host.get()));
  CHECK(Closed(rig.HostConnect(1024).get()));
  ServesNextBoot(rig);
}

TEST_CASE("an available index that jumps disables the queue") {
  Rig rig;
  REQUIRE(Eventually([&] { return rig.stats().ready.load(); }));
  rig.driver->avail(kTx)->idx = 1000;
  rig.driver->Kick(kTx);
  CHECK(Eventually([&] { return rig.stats().queue_errors == 1; }));
  ServesNextBoot(rig);
}

TEST_CASE("indirect descriptors that were not negotiated disable the queue") {
  Rig rig;
  rig.driver->desc(kTx)[100] = {.addr = rig.driver->guest_address(rig.driver->scratch_offset()),
                                .len = 16,
                                .flags = VRING_DESC_F_INDIRECT,
                                .next = 0};
  rig.driver->PushAvail(kTx, 100);
  CHECK(Eventually([&] { return rig.stats().queue_errors == 1; }));
  ServesNextBoot(rig);
}

TEST_CASE("a bad packet costs its own connection at most") {
  Rig rig;
  auto [guest, host] = OpenFromHost(rig, 1024);
  auto [other, other_host] = OpenFromHost(rig, 1025);
  Packet packet = {.src_cid = Rig::kCid,
                   .dst_cid = kHostCid,
                   .src_port = 1024,
                   .dst_port = guest.host_port,
                   .op = VIRTIO_VSOCK_OP_RW,
                   .buf_alloc = 1000};
  bool answered = true;
  bool closes = true;
  SUBCASE("a length beyond the buffer") { packet.len = 1; }
  SUBCASE("a length of 4 GiB") { packet.len = UINT32_MAX; }
  SUBCASE("an unknown operation") { packet.op = 99; }
  SUBCASE("operation 0") { packet.op = 0; }
  SUBCASE("a second request") { packet.op = VIRTIO_VSOCK_OP_REQUEST; }
  SUBCASE("a second response") { packet.op = VIRTIO_VSOCK_OP_RESPONSE; }
  SUBCASE("somebody else's CID") {
    packet.src_cid = 77;
    answered = closes = false;
  }
  SUBCASE("for somebody else") {
    packet.dst_cid = 3;
    closes = false;
  }
  SUBCASE("a datagram") {
    packet.type = 3;
    closes = false;
  }
  rig.driver->Send(packet);
  if (answered) {
    const auto answer = rig.driver->Receive(5000);
    REQUIRE(answer);
    CHECK(answer->packet.op == VIRTIO_VSOCK_OP_RST);
    CHECK(answer->packet.src_cid == packet.dst_cid);
    CHECK(answer->packet.dst_cid == Rig::kCid);
  } else {
    CHECK(!rig.driver->Receive(50));
  }
  CHECK(rig.stats().bad_packets == 1);
  CHECK(Closed(host.get(), closes ? 5000 : 50) == closes);
  other.Send(VIRTIO_VSOCK_OP_RW, "fine");
  CHECK(ReadHost(other_host.get(), 4) == "fine");
  CHECK(rig.stats().queue_errors == 0);
}

TEST_CASE("a packet shorter than its header is dropped") {
  Rig rig;
  auto [guest, host] = OpenFromHost(rig, 1024);
  rig.driver->desc(kTx)[100] = {
      .addr = rig.driver->guest_address(rig.driver->scratch_offset()), .len = 43, .flags = 0, .next = 0};
  rig.driver->PushAvail(kTx, 100);
  CHECK(Eventually([&] { return rig.stats().bad_packets == 1; }));
}

TEST_CASE("answers to unknown connections wait for rx buffers within bounds") {
  Rig rig({.rx_buffers = 1});
  REQUIRE(Eventually([&] { return rig.stats().ready.load(); }));
  // Each wants an RST; after some hundred the device stops taking packets until the guest takes answers.
  const auto stray = [&](uint32_t port) {
    rig.driver->Send({.src_cid = Rig::kCid,
                      .dst_cid = kHostCid,
                      .src_port = port,
                      .dst_port = 1,
                      .op = VIRTIO_VSOCK_OP_RW});
  };
  // One answer fits the one rx buffer, 256 wait in the list; the ring then keeps what it has.
  for (uint32_t i = 0; i < 257 + 40; ++i) stray(i);
  for (uint32_t i = 0; i < 257 + 40; ++i) CHECK(rig.Receive(VIRTIO_VSOCK_OP_RST).packet.dst_port == i);
  stray(1'000'000);
  CHECK(rig.Receive(VIRTIO_VSOCK_OP_RST).packet.dst_port == 1'000'000);
}

}  // namespace gcs::host::vsock
