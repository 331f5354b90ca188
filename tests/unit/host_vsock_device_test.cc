// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <cstdio>
#include <thread>
#include <vector>

#include "host_vsock_rig.h"

namespace gcs::host::vsock {

namespace {

constexpr uint16_t kRequest = VIRTIO_VSOCK_OP_REQUEST;
constexpr uint16_t kResponse = VIRTIO_VSOCK_OP_RESPONSE;
constexpr uint16_t kRst = VIRTIO_VSOCK_OP_RST;
constexpr uint16_t kShutdown = VIRTIO_VSOCK_OP_SHUTDOWN;
constexpr uint16_t kRw = VIRTIO_VSOCK_OP_RW;
constexpr uint16_t kCreditUpdate = VIRTIO_VSOCK_OP_CREDIT_UPDATE;
constexpr uint16_t kCreditRequest = VIRTIO_VSOCK_OP_CREDIT_REQUEST;
constexpr uint32_t kRcv = VIRTIO_VSOCK_SHUTDOWN_RCV;
constexpr uint32_t kSend = VIRTIO_VSOCK_SHUTDOWN_SEND;

std::string Pattern(size_t size) {
  std::string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>((i * 31) + (i >> 8));
  return out;
}

void SendHost(int fd, std::string_view data) {
  while (!data.empty()) {
    pollfd entry = {.fd = fd, .events = POLLOUT, .revents = 0};
    REQUIRE(poll(&entry, 1, 20'000) == 1);
    const ssize_t n = send(fd, data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) data.remove_prefix(n);
    if (n < 0 && errno != EAGAIN) FAIL("send: " << strerror(errno));
  }
}

// A guest that sends back what it gets until the host's half-close, then closes.
void EchoGuest(GuestEnd& guest) {
  std::string waiting;
  bool end = false;
  while (!end || !waiting.empty()) {
    auto got = guest.rig->driver->Receive(waiting.empty() || guest.Space() == 0 ? 10'000 : 0);
    if (got) {
      guest.Learn(got->packet);
      if (got->packet.op == kShutdown) end = true;
      waiting += got->data;
      guest.fwd_cnt += got->data.size();
    } else if (waiting.empty() || guest.Space() == 0) {
      FAIL("the device has stopped");
    }
    const size_t n = std::min<size_t>({waiting.size(), guest.Space(), 64 << 10});
    if (n == 0) continue;
    guest.Send(kRw, std::string_view(waiting).substr(0, n));
    waiting.erase(0, n);
  }
  guest.Send(kShutdown, {}, kRcv | kSend);
}

}  // namespace

TEST_CASE("the driver reads its CID from the device") {
  const Rig rig;
  CHECK(rig.driver->ReadCid() == Rig::kCid);
  CHECK(Eventually([&] { return rig.stats().ready.load(); }));
}

TEST_CASE("a host program connects to the guest and bytes go both ways") {
  Rig rig;
  auto [guest, host] = OpenFromHost(rig, 1024);
  SendHost(host.get(), "to the guest");
  const auto got = guest.Receive(kRw);
  CHECK(got.data == "to the guest");
  guest.Send(kRw, "to the host");
  CHECK(ReadHost(host.get(), 11) == "to the host");
  CHECK(rig.stats().connections == 1);
}

TEST_CASE("what a host program writes behind its CONNECT line belongs to the stream") {
  Rig rig;
  const base::Fd host = rig.HostLine("CONNECT 5\nearly bytes");
  const auto request = rig.Receive(kRequest);
  GuestEnd guest = {.rig = &rig, .host_port = request.packet.src_port, .guest_port = 5};
  CHECK(!rig.driver->Receive(50));
  guest.Send(kResponse);
  CHECK(guest.Receive(kRw).data == "early bytes");
}

TEST_CASE("the guest connects to a host program") {
  Rig rig;
  const base::Fd listener = rig.HostListen(700);
  GuestEnd guest = {.rig = &rig, .host_port = 700, .guest_port = 9000};
  guest.Send(kRequest);
  guest.Receive(kResponse);
  const base::Fd host(accept(listener.get(), nullptr, nullptr));
  REQUIRE(host);
  guest.Send(kRw, "hello");
  CHECK(ReadHost(host.get(), 5) == "hello");
  SendHost(host.get(), "world");
  CHECK(guest.Receive(kRw).data == "world");
}

TEST_CASE("a port that nobody serves is refused, on either side") {
  Rig rig;
  GuestEnd guest = {.rig = &rig, .host_port = 701, .guest_port = 9000};
  guest.Send(kRequest);
  guest.Receive(kRst);

  const base::Fd host = rig.HostConnect(4242);
  const auto request = rig.Receive(kRequest);
  GuestEnd nobody = {.rig = &rig, .host_port = request.packet.src_port, .guest_port = 4242};
  nobody.Send(kRst);
  CHECK(Closed(host.get()));
  CHECK(Eventually([&] { return rig.stats().connections == 0; }));
  CHECK(rig.stats().refused == 2);
}

TEST_CASE("a CONNECT before the driver is there is refused at once and not delivered later") {
  Rig rig({}, /*start=*/false);
  const base::Fd host = rig.HostConnect(1024);
  CHECK(Closed(host.get(), 1000));
  rig.driver->Start();
  CHECK(!rig.driver->Receive(100));
}

TEST_CASE("bad and unfinished CONNECT lines are closed") {
  Rig rig({}, true, {}, {.max_waiting = 100, .line_timeout_ns = 100 * base::kNsPerMs});
  for (const char* line :
       {"CONNECT x\n", "GET / HTTP/1.0\r\n\r\n", "CONNECT 11111111111111111111111111111111111111111111"}) {
    CHECK(Closed(rig.HostLine(line).get()));
  }
  const base::Fd slow = rig.HostLine("CONN");
  CHECK(!Closed(slow.get(), 30));
  CHECK(Closed(slow.get(), 2000));
  // A line in two parts is fine.
  const base::Fd parts = rig.HostLine("CONNECT 1");
  usleep(10'000);
  SendHost(parts.get(), "2\n");
  CHECK(rig.Receive(kRequest).packet.dst_port == 12);
}

TEST_CASE("a host program that gives up before the guest answers cancels its request") {
  Rig rig;
  base::Fd host = rig.HostConnect(1024);
  const auto request = rig.Receive(kRequest);
  host.Reset();
  const auto cancelled = rig.Receive(kRst);
  CHECK(cancelled.packet.src_port == request.packet.src_port);
  CHECK(cancelled.packet.dst_port == 1024);
  CHECK(Eventually([&] { return rig.stats().connections == 0; }));
}

TEST_CASE("a request that the guest never answers ends at its deadline") {
  Rig rig({}, true, {.connect_timeout_ns = 100 * base::kNsPerMs});
  const base::Fd host = rig.HostConnect(1024);
  rig.Receive(kRequest);
  rig.Receive(kRst);
  CHECK(Closed(host.get()));
}

TEST_CASE("the device sends no more than the guest's credit and asks for more once") {
  Rig rig;
  auto [guest, host] = OpenFromHost(rig, 1024, /*buf_alloc=*/10'000);
  const std::string data = Pattern(25'000);
  SendHost(host.get(), data);
  std::string got;
  while (got.size() < 10'000) got += guest.Receive(kRw).data;
  CHECK(got.size() == 10'000);
  guest.Receive(kCreditRequest);
  CHECK(!rig.driver->Receive(50));
  guest.fwd_cnt = 10'000;
  guest.Send(kCreditUpdate);
  while (got.size() < 20'000) got += guest.Receive(kRw).data;
  guest.Receive(kCreditRequest);
  guest.fwd_cnt = 20'000;
  guest.Send(kCreditUpdate);
  while (got.size() < data.size()) got += guest.Receive(kRw).data;
  CHECK(got == data);
}

TEST_CASE("the guest may send its credit and not a byte more; credit comes back as the host reads") {
  Rig rig({}, true, {.buf_alloc = 100'000});
  auto [guest, host] = OpenFromHost(rig, 1024);
  CHECK(guest.peer_buf_alloc == 100'000);
  // Fills the kernel's socket buffer, then the device's own, until the credit ends.
  uint64_t sent = 0;
  const std::string block = Pattern(50'000);
  for (;;) {
    while (auto got = rig.driver->Receive(guest.Space() < block.size() ? 200 : 0)) {
      REQUIRE(got->packet.op == kCreditUpdate);
      guest.Learn(got->packet);
    }
    if (guest.Space() < block.size()) break;
    guest.Send(kRw, block);
    sent += block.size();
    REQUIRE(sent < 20'000'000);
  }
  // The announced state may lag behind by a quarter of the buffer; CREDIT_REQUEST brings the true one.
  guest.Send(kCreditRequest);
  guest.Receive(kCreditUpdate);
  const uint32_t space = guest.Space();
  REQUIRE(space < block.size());
  if (space > 0) guest.Send(kRw, std::string_view(block).substr(0, space));
  sent += space;
  CHECK(!rig.driver->Receive(50));

  SUBCASE("the host reads everything, and credit follows") {
    std::string expected;
    for (uint64_t left = sent; left > 0;) {
      const size_t n = std::min<uint64_t>(left, block.size());
      expected += block.substr(0, n);
      left -= n;
    }
    CHECK(ReadHost(host.get(), sent) == expected);
    while (guest.Space() < 75'000) guest.Learn(guest.Receive(kCreditUpdate).packet);
  }
  SUBCASE("one byte more ends the connection") {
    guest.Send(kRw, "x");
    guest.Receive(kRst);
    CHECK(rig.stats().bad_packets == 1);
    CHECK(Eventually([&] { return rig.stats().connections == 0; }));
  }
}

TEST_CASE("each half of a stream closes by itself") {
  Rig rig;
  auto [guest, host] = OpenFromHost(rig, 1024);
  SUBCASE("the host first") {
    SendHost(host.get(), "last");
    shutdown(host.get(), SHUT_WR);
    CHECK(guest.Receive(kRw).data == "last");
    CHECK(guest.Receive(kShutdown).packet.flags == kSend);
    guest.Send(kRw, "still open");
    CHECK(ReadHost(host.get(), 10) == "still open");
    guest.Send(kShutdown, {}, kRcv | kSend);
    guest.Receive(kRst);
    CHECK(Closed(host.get()));
  }
  SUBCASE("the guest first") {
    guest.Send(kRw, "last");
    guest.Send(kShutdown, {}, kSend);
    CHECK(ReadHost(host.get(), 100) == "last");
    SendHost(host.get(), "still open");
    CHECK(guest.Receive(kRw).data == "still open");
    host.Reset();
    CHECK(guest.Receive(kShutdown).packet.flags == (kRcv | kSend));
    guest.Send(kRst);
  }
  SUBCASE("the guest stops receiving") {
    guest.Send(kShutdown, {}, kRcv);
    // No byte goes along: one that is sent before the device has heard of it would still be delivered.
    CHECK(Eventually([&] { return send(host.get(), "", 0, MSG_NOSIGNAL) < 0 && errno == EPIPE; }));
    guest.Send(kRw, "but sends");
    CHECK(ReadHost(host.get(), 9) == "but sends");
    guest.Send(kShutdown, {}, kRcv | kSend);
    guest.Receive(kRst);
  }
  SUBCASE("the host stops receiving") {
    shutdown(host.get(), SHUT_RD);
    guest.Send(kRw, "into the void");
    CHECK(guest.Receive(kShutdown).packet.flags == kRcv);
    SendHost(host.get(), "but sends");
    CHECK(guest.Receive(kRw).data == "but sends");
    guest.Send(kRst);
    CHECK(Closed(host.get()));
  }
  CHECK(Eventually([&] { return rig.stats().connections == 0; }));
}

TEST_CASE("after both ends have closed the guest may use the ports again at once") {
  Rig rig;
  const base::Fd listener = rig.HostListen(700);
  GuestEnd guest = {.rig = &rig, .host_port = 700, .guest_port = 9000};
  guest.Send(kRequest);
  guest.Receive(kResponse);
  base::Fd(accept(listener.get(), nullptr, nullptr)).Reset();
  CHECK(guest.Receive(kShutdown).packet.flags == (kRcv | kSend));
  GuestEnd second = {.rig = &rig, .host_port = 700, .guest_port = 9000};
  second.Send(kRequest);
  second.Receive(kResponse);
  const base::Fd host(accept(listener.get(), nullptr, nullptr));
  second.Send(kRw, "again");
  CHECK(ReadHost(host.get(), 5) == "again");
}

TEST_CASE("what a guest sent before it closed reaches a slow reader whole") {
  Rig rig;
  auto [guest, host] = OpenFromHost(rig, 1024);
  const std::string data = Pattern(60'000);
  uint64_t sent = 0;
  while (guest.Space() >= data.size()) {
    guest.Send(kRw, data);
    sent += data.size();
    while (auto got = rig.driver->Receive(20)) guest.Learn(got->packet);
  }
  guest.Send(kShutdown, {}, kRcv | kSend);
  guest.Receive(kRst);
  CHECK(rig.stats().connections == 1);
  const std::string got = ReadHost(host.get(), sent + 1);
  CHECK(got.size() == sent);
  CHECK(got.substr(got.size() - data.size()) == data);
  CHECK(Eventually([&] { return rig.stats().connections == 0; }));
}

TEST_CASE("64 MiB come back intact over any layout, ring feature and index") {
  FakeDriver::Options options;
  SUBCASE("plain") {}
  SUBCASE("random layout") { options = {.random_layout = true, .seed = 7}; }
  SUBCASE("random indirect layout, indices about to wrap") {
    options = {.base = 65'500, .indirect = true, .random_layout = true, .seed = 11};
  }
  SUBCASE("without EVENT_IDX, few and odd rx buffers") {
    options = {.event_idx = false, .random_layout = true, .rx_buffer = 1111, .rx_buffers = 3, .seed = 13};
  }
  SUBCASE("a ring of eight entries") { options = {.queue_size = 8, .base = 65'535, .rx_buffer = 3000}; }
  Rig rig(options);
  auto [guest, host] = OpenFromHost(rig, 1024);
  const std::string data = Pattern(options.rx_buffers == 3 || options.queue_size == 8 ? 4 << 20 : 64 << 20);
  std::string back;
  std::jthread writer([&, fd = host.get()] {
    SendHost(fd, data);
    shutdown(fd, SHUT_WR);
  });
  std::jthread reader([&, fd = host.get()] { back = ReadHost(fd, data.size() + 1, 20'000); });
  EchoGuest(guest);
  writer.join();
  reader.join();
  CHECK(back.size() == data.size());
  CHECK(back == data);
  CHECK(rig.stats().bad_packets == 0);
  CHECK(rig.stats().queue_errors == 0);
}

TEST_CASE("without rx buffers the device reads no socket, uses no time, and goes on when buffers come") {
  Rig rig({.rx_buffers = 2});
  base::Fd host = rig.HostConnect(1024);
  const auto request = rig.Receive(kRequest);
  GuestEnd guest = {
      .rig = &rig, .host_port = request.packet.src_port, .guest_port = 1024, .buf_alloc = 64 << 20};
  guest.Send(kResponse);
  CHECK(ReadHost(host.get(), 14).starts_with("OK "));
  // Two buffers take 2 * (4096 - 44) bytes; the driver posts them again only when it has looked at them.
  size_t stuck = 0;
  const std::string block = Pattern(65'536);
  for (int i = 0; i < 200; ++i) {
    const ssize_t n = send(host.get(), block.data(), block.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) stuck += n;
    if (n < 0) usleep(1000);
  }
  CHECK(stuck < 8'000'000);
  CHECK(rig.stats().to_guest_bytes == 2 * (4096 - 44));
  rusage before{};
  rusage after{};
  getrusage(RUSAGE_SELF, &before);
  usleep(200'000);
  getrusage(RUSAGE_SELF, &after);
  const auto us = [](const rusage& r) {
    return ((r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1'000'000) + r.ru_utime.tv_usec + r.ru_stime.tv_usec;
  };
  CHECK(us(after) - us(before) < 50'000);
  size_t got = 0;
  while (got < stuck) got += guest.Receive(kRw).data.size();
  CHECK(got == stuck);
}

TEST_CASE("a guest's reset closes every stream, and the next boot is served") {
  Rig rig;
  auto [guest, host] = OpenFromHost(rig, 1024);
  const base::Fd pending = rig.HostConnect(1025);
  rig.Receive(kRequest);
  rig.driver->Stop();
  CHECK(Closed(host.get()));
  CHECK(Closed(pending.get()));
  CHECK(rig.stats().connections == 0);
  CHECK(!rig.stats().ready);
  CHECK(Closed(rig.HostConnect(1024).get()));
  rig.driver->Start();
  auto [again, second] = OpenFromHost(rig, 1024);
  SendHost(second.get(), "second boot");
  CHECK(again.Receive(kRw).data == "second boot");
}

TEST_CASE("a VMM that ends makes room for the next one") {
  Rig rig;
  auto [guest, host] = OpenFromHost(rig, 1024);
  rig.driver->DisconnectVmm();
  CHECK(Closed(host.get()));
  rig.driver->ConnectVmm();
  rig.driver->Start();
  auto [again, second] = OpenFromHost(rig, 1024);
  again.Send(kRw, "new VMM");
  CHECK(ReadHost(second.get(), 7) == "new VMM");
}

TEST_CASE("thousands of streams at once, and a limit") {
  rlimit files{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &files) == 0);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  constexpr size_t kCount = 2000;
  REQUIRE(files.rlim_cur >= (2 * kCount) + 100);
  Rig rig({}, true, {.max_connections = kCount});
  const base::Fd listener = rig.HostListen(700);
  std::vector<base::Fd> hosts;
  for (uint32_t i = 0; i < kCount; ++i) {
    GuestEnd guest = {.rig = &rig, .host_port = 700, .guest_port = 10'000 + i};
    guest.Send(kRequest);
    guest.Receive(kResponse);
    hosts.emplace_back(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    REQUIRE(hosts.back());
  }
  GuestEnd beyond = {.rig = &rig, .host_port = 700, .guest_port = 9'999};
  beyond.Send(kRequest);
  beyond.Receive(kRst);
  CHECK(rig.stats().connections == kCount);
  for (uint32_t i = 0; i < kCount; ++i) SendHost(hosts[i].get(), std::to_string(i));
  size_t seen = 0;
  while (seen < kCount) {
    const auto got = rig.Receive(kRw);
    CHECK(got.data == std::to_string(got.packet.dst_port - 10'000));
    ++seen;
  }
}

TEST_CASE("a full backlog of the host's listener is waited for") {
  Rig rig;
  auto listener = ListenUnix(rig.dir + "/vsock_700", 1);
  REQUIRE(listener);
  for (uint32_t i = 0; i < 4; ++i) {
    GuestEnd guest = {.rig = &rig, .host_port = 700, .guest_port = 9000 + i};
    guest.Send(kRequest);
  }
  std::vector<base::Fd> hosts;
  size_t answered = 0;
  while (answered < 4) {
    rig.Receive(kResponse);
    ++answered;
    pollfd entry = {.fd = listener->get(), .events = POLLIN, .revents = 0};
    REQUIRE(poll(&entry, 1, 5000) == 1);
    hosts.emplace_back(accept(listener->get(), nullptr, nullptr));
  }
  CHECK(rig.stats().refused == 0);
}

TEST_CASE("the device alone moves 256 MiB either way; its speed is printed") {
  constexpr size_t kBytes = 256 << 20;
  const auto rate = [](int64_t from_ns) {
    return static_cast<double>(kBytes) * 1e3 / static_cast<double>(base::MonotonicNs() - from_ns);
  };
  {
    Rig rig;
    auto [guest, host] = OpenFromHost(rig, 1024);
    size_t arrived = 0;
    std::jthread reader([fd = host.get(), &arrived] {
      std::vector<char> buffer(1 << 20);
      while (arrived < kBytes) {
        pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
        if (poll(&entry, 1, 20'000) != 1) return;
        const ssize_t n = recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
        if (n > 0) arrived += n;
      }
    });
    const std::string block = Pattern(64 << 10);
    const int64_t from = base::MonotonicNs();
    for (size_t sent = 0; sent < kBytes; sent += block.size()) {
      while (auto got = rig.driver->Receive(guest.Space() < block.size() ? 10'000 : 0))
        guest.Learn(got->packet);
      guest.Send(kRw, block);
    }
    reader.join();
    CHECK(arrived == kBytes);
    printf("vsock device alone, guest to host: %.0f MB/s\n", rate(from));
  }
  {
    Rig rig;
    auto [guest, host] = OpenFromHost(rig, 1024);
    std::jthread writer([fd = host.get()] {
      const std::string block = Pattern(1 << 20);
      for (size_t sent = 0; sent < kBytes; sent += block.size()) SendHost(fd, block);
    });
    const int64_t from = base::MonotonicNs();
    uint32_t announced = 0;
    for (size_t got = 0; got < kBytes;) {
      const auto packet = rig.driver->Receive(10'000);
      REQUIRE(packet);
      const size_t n = packet->data.size();
      got += n;
      guest.fwd_cnt += n;
      if (packet->packet.op == kCreditRequest || guest.fwd_cnt - announced > guest.buf_alloc / 4) {
        announced = guest.fwd_cnt;
        guest.Send(kCreditUpdate);
      }
    }
    const double mb = rate(from);
    writer.join();
    printf("vsock device alone, host to guest: %.0f MB/s, %llu interrupts\n", mb,
           static_cast<unsigned long long>(rig.driver->interrupts()));
  }
}

}  // namespace gcs::host::vsock
