// SPDX-License-Identifier: Apache-2.0
// Devices that move between two network namespaces of the test's own.
#include <arpa/inet.h>
#include <linux/if_addr.h>
#include <sys/socket.h>

#include <algorithm>
#include <vector>

#include "net/device.h"
#include "system/net_support.h"

namespace gcs::test {
namespace {

using net::Address;
using net::DeviceMoves;
using net::Link;
using net::Namespace;

std::string Text(const Address& address) {
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(address.family, address.local.data(), text, sizeof text);
  return text + ("/" + std::to_string(address.prefix_length));
}

std::string Texts(const std::vector<Address>& addresses) {
  std::string texts;
  for (const Address& address : addresses) texts += Text(address) + " ";
  return texts;
}

TEST_CASE("names of devices are those that the kernel takes") {
  for (const char* good : {"a", "eth0", "exactly15bytes_", "%", "a%b", "\xc3\xa4"}) {
    CAPTURE(good);
    CHECK(net::ValidDeviceName(good));
  }
  for (const char* bad : {"", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\n", "a\v", "sixteen_bytes_xx"}) {
    CAPTURE(bad);
    CHECK_FALSE(net::ValidDeviceName(bad));
    CHECK_FALSE(net::ValidDeviceTemplate(bad));
  }
  CHECK_FALSE(net::ValidDeviceName(std::string_view("a\0b", 3)));
  for (const char* good : {"eth%d", "%d", "a%db", "eth0"}) CHECK(net::ValidDeviceTemplate(good));
  for (const char* bad : {"%", "a%", "a%s", "%d%d", "%%d", "%d%"}) {
    CAPTURE(bad);
    CHECK_FALSE(net::ValidDeviceTemplate(bad));
  }
}

TEST_CASE("links, addresses and MTU are read back as they were set") {
  const PrivateNetwork network;
  MakeDevice("d0");
  Namespace own = Good(Namespace::Own());
  const Link link = Good(own.FindLink("d0"));
  CHECK_FALSE(link.up);
  CHECK(Good(own.Links()).size() == 3);  // with lo and the other end
  REQUIRE(own.SetMtu(link.index, 1400));
  REQUIRE(own.SetUp(link.index, true));
  const Link changed = Good(own.FindLink(link.index));
  CHECK(changed.name == "d0");
  CHECK(changed.mtu == 1400);
  CHECK(changed.up);
  const Address v4{
      .family = AF_INET, .local = std::string("\x0a\x01\x02\x03", 4), .prefix_length = 24, .metric = 77};
  REQUIRE(own.AddAddress(link.index, v4));
  const auto again = own.AddAddress(link.index, v4);
  REQUIRE_FALSE(again);
  CHECK(again.error().err == EEXIST);
  CHECK(again.error().step == "add address");
  const auto addresses = Good(own.Addresses(link.index));
  REQUIRE(addresses.size() >= 1);
  CHECK(Text(addresses[0]) == "10.1.2.3/24");
  CHECK(addresses[0].metric == 77);
  CHECK(addresses[0].label == "d0");
  CHECK((addresses[0].flags & IFA_F_PERMANENT) != 0);
  // Those of the device only.
  CHECK(Good(own.Addresses(Good(own.FindLink("veth0")).index)).empty());
  REQUIRE(own.SetUp(link.index, false));
  CHECK_FALSE(Good(own.FindLink(link.index)).up);
}

TEST_CASE("what is not there or not allowed is an error with the kernel's errno and words") {
  const PrivateNetwork network;
  Namespace own = Good(Namespace::Own());
  const auto missing = own.FindLink("nosuch");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().err == ENODEV);
  CHECK(missing.error().object == "nosuch");
  CHECK(own.FindLink(4711).error().err == ENODEV);
  CHECK(own.SetUp(4711, true).error().err == ENODEV);
  MakeDevice("d0");
  const auto mtu = own.SetMtu(Good(own.FindLink("d0")).index, 1);
  REQUIRE_FALSE(mtu);
  CHECK(mtu.error().err == EINVAL);
  CHECK(mtu.error().message == "mtu less than device minimum");
  const auto self = DeviceMoves::Begin(OwnFd());
  REQUIRE_FALSE(self);
  CHECK(self.error().err == EINVAL);
}

TEST_CASE("a socket of another namespace leaves the thread where it is") {
  const Two two;
  const std::string before = Shell("readlink /proc/self/ns/net");
  CHECK(Good(Namespace::Of(two.Second())).Same(Good(Namespace::Of(two.Second()))));
  CHECK_FALSE(Good(Namespace::Of(two.Second())).Same(Good(Namespace::Own())));
  CHECK(Shell("readlink /proc/self/ns/net") == before);
  const auto wrong = Namespace::Of(base::Fd(open("/dev/null", O_RDONLY | O_CLOEXEC)));
  REQUIRE_FALSE(wrong);
  CHECK(wrong.error().step == "enter network namespace");
}

TEST_CASE("a moved device keeps its permanent global addresses in their order, and is up") {
  const Two two;
  MakeDevice("d0");
  Shell(R"(ip addr add 10.1.0.1/24 dev d0
           ip addr add 10.1.0.2/24 dev d0 label d0:two
           ip addr add 10.2.0.1/16 dev d0
           ip addr add 169.254.7.7/16 scope link dev d0
           ip addr add fd00:1::1/64 dev d0
           ip addr add fd00:2::1/64 dev d0
           ip addr add 10.4.0.1 peer 10.4.0.2 dev d0
           ip link set d0 mtu 1300
           ip link set d0 up
           ip link set veth0 up)");
  SettleNetwork();
  Namespace own = Good(Namespace::Own());
  const int old_index = Good(own.FindLink("d0")).index;
  // One with a lifetime is not permanent.
  REQUIRE(own.AddAddress(old_index, {.family = AF_INET,
                                     .local = std::string("\x0a\x05\x00\x01", 4),
                                     .prefix_length = 24,
                                     .valid_s = 1000,
                                     .preferred_s = 1000}));
  auto moves = Good(DeviceMoves::Begin(two.Second()));
  const Link moved = Good(moves.Move("d0", "d1"));
  CHECK(moved.name == "d1");
  CHECK_FALSE(own.FindLink("d0"));
  Namespace second = Good(Namespace::Of(two.Second()));
  const Link link = Good(second.FindLink("d1"));
  CHECK(link.index == old_index);
  CHECK(link.up);
  CHECK(link.mtu == 1300);
  auto addresses = Good(second.Addresses(link.index));
  std::erase_if(addresses, [](const Address& each) { return each.family == AF_INET6 && each.scope != 0; });
  CHECK(Texts(addresses) == "10.1.0.1/24 10.2.0.1/16 10.4.0.1/32 10.1.0.2/24 fd00:1::1/64 fd00:2::1/64 ");
  REQUIRE(addresses.size() == 6);
  CHECK(addresses[0].label == "d1");
  CHECK(addresses[3].label == "d1:two");
  CHECK((addresses[3].flags & IFA_F_SECONDARY) != 0);
  CHECK(addresses[2].peer == std::string("\x0a\x04\x00\x02", 4));
  for (const Address& each : addresses) CHECK((each.flags & ~uint32_t{IFA_F_SECONDARY}) == IFA_F_PERMANENT);
}

TEST_CASE("a device whose index is taken gets another one, and comes back as what it was") {
  const Two two;
  MakeDevice("d0");
  Namespace own = Good(Namespace::Own());
  const Link before = Good(own.FindLink("d0"));
  // The indices of a namespace are counted from 1.
  for (int i = 0; i < before.index; ++i) {
    CHECK(two.ShellThere("ip link add x" + std::to_string(i) + " type veth").empty());
  }
  auto moves = Good(DeviceMoves::Begin(two.Second()));
  const Link moved = Good(moves.Move("d0", {}));
  CHECK(moved.index != before.index);
  CHECK(moved.name == "d0");
  moves.TakeBack();
  const Link after = Good(own.FindLink("d0"));
  CHECK(after.index == before.index);
  CHECK_FALSE(after.up);
}

TEST_CASE("a template gets the first number that is free") {
  const Two two;
  CHECK(two.ShellThere("ip link add net0 type veth").empty());
  MakeDevice("d0");
  MakeDevice("d1");
  auto moves = Good(DeviceMoves::Begin(two.Second()));
  CHECK(Good(moves.Move("d0", "net%d")).name == "net1");
  CHECK(Good(moves.Move("d1", "net%d")).name == "net2");
}

TEST_CASE("a name that is taken is an error before anything has changed") {
  const Two two;
  CHECK(two.ShellThere("ip link add x type veth").empty());
  MakeDevice("d0");
  Shell("ip addr add 10.1.0.1/24 dev d0; ip link set d0 up; ip route add 10.9.0.0/16 via 10.1.0.9");
  const std::string before = NetworkState();
  auto moves = Good(DeviceMoves::Begin(two.Second()));
  const auto taken = moves.Move("d0", "x");
  REQUIRE_FALSE(taken);
  CHECK(taken.error().err == EEXIST);
  CHECK(taken.error().object == "d0");
  CHECK(taken.error().message.find("x exists") != std::string::npos);
  CHECK(NetworkState() == before);
}

TEST_CASE("devices that are taken back have all that they had, also after others have renamed them") {
  const Two two;
  MakeDevice("d0");
  MakeDevice("d1");
  Shell(R"(ip link set veth0 up
           ip link set veth1 up
           ip addr add 10.1.0.1/24 dev d0
           ip addr add 10.1.0.2/24 dev d0 label d0:two
           ip addr add 169.254.7.7/16 scope link dev d0
           ip addr add fd00:1::1/64 dev d0
           ip addr add fd00:2::1/64 dev d0
           ip link set d0 mtu 1300
           ip link set d0 up
           ip route add 10.9.0.0/16 via 10.1.0.9
           ip route add 10.8.0.0/16 via 10.9.0.1 dev d0 onlink
           ip route add default via 10.1.0.8
           ip -6 route add fd00:9::/64 via fd00:1::9
           ip addr add 10.7.0.1/24 dev d1)");
  SettleNetwork();
  const std::string before = NetworkState();
  {
    auto moves = Good(DeviceMoves::Begin(two.Second()));
    REQUIRE(moves.Move("d0", "x"));
    REQUIRE(moves.Move("d1", {}));
    CHECK_FALSE(moves.Move("nosuch", {}));
    CHECK(two.ShellThere("ip link set x down; ip link set x name y").empty());
    CHECK(Shell("ip link").find(" d0") == std::string::npos);
    moves.TakeBack();
  }
  CHECK(NetworkState() == before);
  // And nothing is left of it there.
  CHECK(two.ShellThere("ls /proc/self/net/dev_snmp6") == "lo\n");
}

}  // namespace
}  // namespace gcs::test
