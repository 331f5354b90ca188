// SPDX-License-Identifier: Apache-2.0
// The desired state of an interface: what is made, what stays, what goes.
#include <linux/if_addr.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "net/interface_text.h"
#include "net/namespace.h"
#include "system/net_interface_support.h"

namespace gcs::test {
namespace {

using net::Namespace;
using net::RouteText;
using Texts = std::vector<std::string>;

// Without what the kernel has made.
Texts Global(Texts addresses) {
  std::erase_if(addresses, [](const std::string& each) { return each.starts_with("fe80:"); });
  return addresses;
}

// Everything that a config can ask for.
InterfaceConfig Full() {
  return {.name = "eth0",
          .mtu = 1400,
          .addresses = {"10.0.0.2/24", "10.0.0.3/24", "192.168.7.1/32", "fd00::2/64"},
          .routes = {{.destination = "0.0.0.0/0", .gateway = "10.0.0.1"},
                     {.destination = "10.7.0.0/16", .metric = 50, .source = "10.0.0.3"},
                     {.destination = "10.8.0.0/16", .gateway = "172.31.0.1"},
                     {.destination = "::/0", .gateway = "fd00::1"},
                     {.destination = "fd01::/64", .gateway = "fe80::7", .metric = 7},
                     {.destination = "fd02::/64", .source = "fd00::2"},
                     {.destination = "fd03::/64", .gateway = "fdff::1"},
                     {.destination = "0.0.0.0/0", .gateway = "10.0.0.254", .table = 100},
                     {.destination = "10.9.0.0/16", .gateway = "10.0.0.253", .table = 100},
                     {.destination = "::/0", .gateway = "fd00::fe", .table = 300}},
          .neighbors = {{"10.0.0.9", "02:00:00:00:00:09"}, {"fd00::9", "02:00:00:00:00:0a"}}};
}

// As they are read back: IPv6's own default metric, main as 0, in an order that can be compared.
std::vector<RouteText> Sorted(std::vector<RouteText> routes) {
  for (RouteText& each : routes) {
    if (each.metric == 0 && each.destination.find(':') != std::string::npos) each.metric = 1024;
  }
  std::ranges::sort(routes, {}, [](const RouteText& each) {
    return each.destination + " " + std::to_string(each.table) + " " + each.gateway;
  });
  return routes;
}

void CheckIs(const InterfaceState& state, const InterfaceConfig& config) {
  CHECK(state.name == config.name);
  CHECK(state.mtu == config.mtu);
  CHECK(state.up);
  Texts wanted = config.addresses, have = Global(state.addresses);
  std::ranges::sort(wanted);
  std::ranges::sort(have);
  CHECK(have == wanted);
  CHECK(Sorted(state.routes) == Sorted(config.routes));
  CHECK(state.neighbors == config.neighbors);
}

// "10.0.0.2 100" for each policy rule of ours.
Texts OurRules() {
  Texts texts;
  for (const net::Rule& rule : Good(Good(Namespace::Own()).Rules())) {
    texts.push_back(net::AddressText(rule.source) + " " + std::to_string(rule.table));
  }
  std::ranges::sort(texts);
  return texts;
}

TEST_CASE("an interface becomes what is asked for, and the kernel routes by it") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  const InterfaceState state = Good(Configure(Named("d0"), Full()));
  CheckIs(state, Full());
  CHECK(state.mac_address == "02:15:5d:00:00:01");
  CHECK(state.index == static_cast<uint32_t>(Good(Good(Namespace::Own()).FindLink("eth0")).index));
  CheckIs(Listed("eth0"), Full());
  CHECK(OurRules() == Texts{"10.0.0.2 100", "10.0.0.3 100", "192.168.7.1 100", "fd00::2 300"});
  const std::string v4 = Shell("ip route");
  CHECK(v4.find("default via 10.0.0.1 dev eth0") != std::string::npos);
  CHECK(v4.find("10.7.0.0/16 dev eth0 scope link  src 10.0.0.3  metric 50") != std::string::npos);
  // Beyond every address's prefix, nevertheless on link.
  CHECK(v4.find("10.8.0.0/16 via 172.31.0.1 dev eth0 onlink") != std::string::npos);
  CHECK(Shell("ip rule").find("from 10.0.0.3 lookup 100") != std::string::npos);
  CHECK(Shell("ip -6 rule").find("from fd00::2 lookup 300") != std::string::npos);
  CHECK(Shell("ip route get 8.8.8.8 from 10.0.0.3").find("via 10.0.0.254") != std::string::npos);
  CHECK(Shell("ip route get 8.8.8.8").find("via 10.0.0.1") != std::string::npos);
  const std::string neighbors = Shell("ip neigh show nud permanent");
  CHECK(neighbors.find("10.0.0.9 dev eth0 lladdr 02:00:00:00:00:09") != std::string::npos);
}

TEST_CASE("IPv6 addresses are of use at once") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  Good(Configure(Named("d0"), {.addresses = {"fd00::2/64"}}));
  for (const net::Address& each :
       Good(Good(Namespace::Own()).Addresses(static_cast<int>(Listed("d0").index)))) {
    if (each.scope == 0) CHECK((each.flags & IFA_F_TENTATIVE) == 0);
  }
}

TEST_CASE("the same once more changes nothing") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  const InterfaceState first = Good(Configure(WithMac("02:15:5d:00:00:01"), Full()));
  SettleNetwork();
  Monitor monitor;
  const InterfaceState second = Good(Configure(WithMac("02:15:5D:00:00:01"), Full()));
  CHECK(monitor.ChangesText() == "");
  CHECK(second.routes == first.routes);
  CHECK(Global(second.addresses) == Global(first.addresses));
  // The monitor would have seen it.
  Good(Configure(Named("eth0"), {.name = "eth0", .addresses = {"10.0.0.2/24"}}));
  CHECK(monitor.Changes().contains(RTM_DELROUTE));
}

TEST_CASE("what is asked for in the words of what was read back is there already") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  const InterfaceState state = Good(Configure(Named("d0"), Full()));
  SettleNetwork();
  Monitor monitor;
  Good(Configure(Named("eth0"), {.mtu = state.mtu,
                                 .addresses = Global(state.addresses),
                                 .routes = state.routes,
                                 .neighbors = state.neighbors}));
  CHECK(monitor.ChangesText() == "");
}

TEST_CASE("what is no longer asked for goes, what still is stays untouched") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  Good(Configure(Named("d0"), Full()));
  InterfaceConfig less = Full();
  less.addresses = {"10.0.0.2/24", "fd00::2/64", "10.5.0.1/16"};
  less.routes.erase(less.routes.begin() + 1);  // its source goes
  less.routes.erase(less.routes.begin() + 6, less.routes.end());
  less.neighbors = {{"10.0.0.9", "02:00:00:00:00:99"}};
  SettleNetwork();
  Monitor monitor;
  CheckIs(Good(Configure(Named("eth0"), less)), less);
  CHECK(OurRules() == Texts());
  const std::multiset<int> changes = monitor.Changes();
  CHECK(changes.count(RTM_NEWADDR) == 1);
  CHECK(changes.count(RTM_DELADDR) == 2);
  CHECK(changes.count(RTM_DELRULE) == 4);
  CHECK(changes.count(RTM_NEWRULE) == 0);
  // Those of the new address in the tables local and main, which the kernel makes.
  CHECK(changes.count(RTM_NEWROUTE) <= 3);
}

TEST_CASE("nothing asked for is an interface that is up and has nothing") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  Good(Configure(Named("d0"), Full()));
  const InterfaceState state = Good(Configure(Named("eth0"), {}));
  CHECK(state.name == "eth0");
  CHECK(state.mtu == 1400);
  CHECK(state.up);
  CHECK(Global(state.addresses) == Texts());
  CHECK(state.routes.empty());
  CHECK(state.neighbors.empty());
}

TEST_CASE("a secondary address that stays is untouched when its primary one goes") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  const InterfaceConfig one{.addresses = {"10.0.0.3/24"},
                            .routes = {{.destination = "0.0.0.0/0", .gateway = "10.0.0.1"}}};
  Good(Configure(Named("d0"), {.addresses = {"10.0.0.2/24", "10.0.0.3/24"}, .routes = one.routes}));
  SettleNetwork();
  Monitor monitor;
  CHECK(Global(Good(Configure(Named("d0"), one)).addresses) == one.addresses);
  const std::multiset<int> changes = monitor.Changes();
  // The kernel tells a promotion as a new address, but the old one has not been removed.
  CHECK(changes.count(RTM_DELADDR) == 1);
  CHECK(Shell("ip route").find("default via 10.0.0.1") != std::string::npos);
  CHECK(Shell("cat /proc/sys/net/ipv4/conf/d0/promote_secondaries") == "0\n");
}

TEST_CASE("an address that would expire and is asked for stays for good") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  Namespace own = Good(Namespace::Own());
  const int index = Good(own.FindLink("d0")).index;
  REQUIRE(own.AddAddress(index, {.family = AF_INET,
                                 .local = std::string("\x0a\0\0\x02", 4),
                                 .prefix_length = 24,
                                 .valid_s = 1000,
                                 .preferred_s = 1000}));
  Good(Configure(Named("d0"), {.addresses = {"10.0.0.2/24"}}));
  const auto addresses = Good(own.Addresses(index));
  REQUIRE(!addresses.empty());
  CHECK(addresses[0].valid_s == UINT32_MAX);
  CHECK(addresses[0].preferred_s == UINT32_MAX);
}

TEST_CASE("an address with another prefix length, a route with another gateway, is a change") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  for (const auto& [v4, v6, gateway] : {std::array{"10.0.0.2/24", "fd00::2/64", "10.0.0.1"},
                                        std::array{"10.0.0.2/16", "fd00::2/48", "10.0.0.9"},
                                        std::array{"10.0.0.2/32", "fd00::2/128", "10.0.0.1"}}) {
    const InterfaceConfig config{.addresses = {v4, v6},
                                 .routes = {{.destination = "0.0.0.0/0", .gateway = gateway}}};
    const InterfaceState state = Good(Configure(Named("d0"), config));
    CHECK(Global(state.addresses) == config.addresses);
    CHECK(state.routes == config.routes);
  }
}

TEST_CASE("a route that the kernel has made with an address may be asked for, too") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  const InterfaceConfig config{
      .addresses = {"10.0.0.2/24", "fd00::2/64"},
      .routes = {{.destination = "10.0.0.0/24"}, {.destination = "fd00::/64", .metric = 256}}};
  Good(Configure(Named("d0"), config));
  Good(Configure(Named("d0"), config));
  CHECK(Shell("ip route") == "10.0.0.0/24 dev d0 scope link  src 10.0.0.2 \n");
}

TEST_CASE("an interface is found by its MAC address, and in the target first") {
  const Two two;
  MakeWorkingDevice("d0", "02:15:5d:00:0a:0b");
  two.There([&] { return MakeWorkingDevice("d0", "02:15:5d:00:0a:0c"); });
  CHECK(Good(Configure(WithMac("02:15:5D:00:0A:0B"), {.addresses = {"10.0.0.2/24"}})).name == "d0");
  // Of the same name in both.
  Good(Configure(Named("d0"), {.addresses = {"10.0.0.3/24"}}, two.Second()));
  CHECK(Global(Listed("d0").addresses) == Texts{"10.0.0.2/24"});
  CHECK(Global(Listed("d0", two.Second()).addresses) == Texts{"10.0.0.3/24"});
}

TEST_CASE("two interfaces with one MAC address are an error with both names, but not a device and its port") {
  const PrivateNetwork network;
  MakeDevice("d0");
  MakeDevice("d1");
  Shell("ip link set d0 address 02:00:00:00:00:01; ip link set d1 address 02:00:00:00:00:01");
  const std::string before = WholeState();
  const auto both = Configure(WithMac("02:00:00:00:00:01"), {.addresses = {"10.0.0.2/24"}});
  REQUIRE_FALSE(both);
  CHECK(both.error().err == ENOTUNIQ);
  CHECK(both.error().ToString().find("d0 and d1") != std::string::npos);
  CHECK(net::RemoveInterface(WithMac("02:00:00:00:00:01"), {}).error().err == ENOTUNIQ);
  CHECK(WholeState() == before);
  // As the VF of a Hyper-V device.
  Shell("ip link del d1; ip link add br0 address 02:00:00:00:00:01 type bridge");
  Shell("busybox brctl addif br0 d0");
  CHECK(Good(Configure(WithMac("02:00:00:00:00:01"), {})).name == "br0");
  // Two ports of a third device.
  MakeDevice("d2");
  Shell(
      "ip link set br0 address 02:00:00:00:00:02; ip link set d2 address 02:00:00:00:00:01; busybox brctl "
      "addif br0 d2");
  CHECK(Configure(WithMac("02:00:00:00:00:01"), {}).error().err == ENOTUNIQ);
}

TEST_CASE("a device knows the bus's name of what is behind it: on VMBus that is the instance id") {
  // This machine's own devices, which are only looked at.
  Namespace own = Good(Namespace::Own());
  int looked_at = 0;
  for (const net::Link& link : Good(own.Links())) {
    std::string parent = Shell("readlink /sys/class/net/" + link.name + "/device || true");
    parent.erase(parent.find_last_not_of('\n') + 1);
    CHECK(link.parent == parent.substr(parent.find_last_of('/') + 1));
    looked_at += parent.empty() ? 0 : 1;
  }
  if (looked_at == 0) MESSAGE("this machine has no network adapter");
}

TEST_CASE("the loopback device is none of them") {
  const PrivateNetwork network;
  Shell("ip link set lo up");
  const std::string before = WholeState();
  CHECK(Configure(Named("lo"), {}).error().err == EINVAL);
  CHECK(net::RemoveInterface(Named("lo"), {}).error().err == EINVAL);
  CHECK(Configure(WithMac("00:00:00:00:00:00"), {}).error().err == ETIMEDOUT);
  CHECK(WholeState() == before);
  CHECK(Listed("lo").mac_address.empty());
  CHECK(Listed("lo").addresses == Texts{"127.0.0.1/8", "::1/128"});
}

TEST_CASE("an interface that is not there is waited for until the deadline, or until nobody wants it") {
  const Two two;
  const int64_t before = base::MonotonicNs();
  const auto late = net::ConfigureInterface(Named("d0"), two.Second(), {}, Within(200));
  REQUIRE_FALSE(late);
  CHECK(late.error().err == ETIMEDOUT);
  CHECK(base::MonotonicNs() - before >= 190 * base::kNsPerMs);
  const base::Fd gone(eventfd(0, EFD_CLOEXEC));
  std::jthread caller([&] {
    usleep(100'000);
    CHECK(eventfd_write(gone.get(), 1) == 0);
  });
  net::Patience patience = Within(20'000);
  patience.cancel_fd = gone.get();
  const auto canceled = net::ConfigureInterface(WithMac("02:15:5d:00:00:01"), two.Second(), {}, patience);
  REQUIRE_FALSE(canceled);
  CHECK(canceled.error().err == ECANCELED);
  CHECK(base::MonotonicNs() - before < 10'000 * base::kNsPerMs);
  // There is nothing to wait for where there is one already, however late.
  MakeDevice("d0");
  CHECK(net::ConfigureInterface(Named("d0"), two.Second(), {}, {}));
}

TEST_CASE("an interface that comes later is taken when it comes, in either namespace") {
  for (const bool in_target : {false, true}) {
    CAPTURE(in_target);
    const Two two;
    const base::Fd own = OwnFd();
    std::jthread plug([&] {
      usleep(200'000);
      REQUIRE(setns(in_target ? two.second_fd.get() : own.get(), CLONE_NEWNET) == 0);
      MakeDevice("d1");  // another one
      usleep(50'000);
      MakeWorkingDevice("d0");
    });
    const int64_t before = base::MonotonicNs();
    const auto state = net::ConfigureInterface(WithMac("02:15:5d:00:00:01"), two.Second(),
                                               {.name = "eth0", .addresses = {"10.0.0.2/24"}}, Within(8'000));
    CHECK(base::MonotonicNs() - before < 6'000 * base::kNsPerMs);
    REQUIRE_MESSAGE(state, state.error().ToString());
    CHECK(Global(state->addresses) == Texts{"10.0.0.2/24"});
    CHECK(Global(Listed("eth0", two.Second()).addresses) == Texts{"10.0.0.2/24"});
  }
}

TEST_CASE("an interface is moved, is the same there a second time, and comes back with nothing") {
  const Two two;
  MakeWorkingDevice("d0");
  // What it has had before has no part in it.
  Good(Configure(Named("d0"), {.addresses = {"10.99.0.1/24", "fd99::1/64"},
                               .routes = {{.destination = "10.98.0.0/16", .table = 100}},
                               .neighbors = {{"10.99.0.9", "02:00:00:00:00:09"}}}));
  CHECK(OurRules() == Texts{"10.99.0.1 100"});
  const InterfaceState state = Good(Configure(WithMac("02:15:5d:00:00:01"), Full(), two.Second()));
  CheckIs(state, Full());
  CheckIs(Listed("eth0", two.Second()), Full());
  CHECK(Shell("ip link").find("d0") == std::string::npos);
  CHECK(OurRules() == Texts());
  const Texts rules = two.There(OurRules);
  CHECK(rules == Texts{"10.0.0.2 100", "10.0.0.3 100", "192.168.7.1 100", "fd00::2 300"});
  two.There([] {
    SettleNetwork();
    return 0;
  });
  auto monitor = two.There([] { return Monitor(); });
  Good(Configure(WithMac("02:15:5d:00:00:01"), Full(), two.Second()));
  CHECK(monitor.ChangesText() == "");

  REQUIRE(net::RemoveInterface(WithMac("02:15:5d:00:00:01"), two.Second()));
  CHECK(two.There(OurRules) == Texts());
  CHECK(two.ShellThere("ls /proc/self/net/dev_snmp6") == "lo\n");
  const InterfaceState back = Listed("eth0");
  CHECK_FALSE(back.up);
  CHECK(back.addresses.empty());
  CHECK(back.routes.empty());
  CHECK(back.neighbors.empty());
  CHECK(OurRules() == Texts());
  const auto again = net::RemoveInterface(WithMac("02:15:5d:00:00:01"), two.Second());
  REQUIRE_FALSE(again);
  CHECK(again.error().err == ENODEV);
}

TEST_CASE("an interface in the caller's own namespace is removed by taking all away") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  Good(Configure(Named("d0"), Full()));
  REQUIRE(net::RemoveInterface(Named("eth0"), {}));
  const InterfaceState state = Listed("eth0");
  CHECK_FALSE(state.up);
  CHECK(state.addresses.empty());
  CHECK(state.neighbors.empty());
  CHECK(OurRules() == Texts());
  CHECK(net::RemoveInterface(Named("nosuch"), {}).error().err == ENODEV);
}

TEST_CASE("an interface that comes back where its name is taken gets another one") {
  const Two two;
  MakeWorkingDevice("d0");
  Good(Configure(Named("d0"), {.name = "eth0"}, two.Second()));
  MakeDevice("eth0");
  REQUIRE(net::RemoveInterface(Named("eth0"), two.Second()));
  const auto states = Good(net::ListInterfaces({}));
  CHECK(std::ranges::count(states, "02:15:5d:00:00:01", &InterfaceState::mac_address) == 1);
  CHECK(std::ranges::count(states, "eth0", &InterfaceState::name) == 1);
}

TEST_CASE("an interface goes where its old addresses can't be") {
  const Two two;
  CHECK(two.ShellThere("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6").empty());
  MakeWorkingDevice("d0");
  Good(Configure(Named("d0"), {.addresses = {"fd00::2/64", "10.1.0.1/24"}}));
  const auto state = Configure(Named("d0"), {.addresses = {"10.0.0.2/24"}}, two.Second());
  REQUIRE_MESSAGE(state, state.error().ToString());
  CHECK(state->addresses == Texts{"10.0.0.2/24"});
}

TEST_CASE("interfaces are listed by index, with what has gone through them") {
  const PrivateNetwork network;
  const std::string peer = MakeWorkingDevice("d0");
  Good(Configure(Named("d0"),
                 {.addresses = {"10.0.0.2/24"}, .neighbors = {{"10.0.0.9", "02:00:00:00:00:09"}}}));
  SettleNetwork();
  const InterfaceState before = Listed("d0");
  // Echo requests to somebody who is not there.
  Shell("busybox ping -c 3 -i 0.1 -W 1 -s 1000 10.0.0.9 > /dev/null || true");
  CHECK(Listed("d0").sent_bytes >= before.sent_bytes + 3000);
  CHECK(Listed(peer).received_bytes >= 3000);
  const auto states = Good(net::ListInterfaces({}));
  CHECK(states.size() == 3);
  CHECK(std::ranges::is_sorted(states, {}, &InterfaceState::index));
}

}  // namespace
}  // namespace gcs::test
