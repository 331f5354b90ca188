// SPDX-License-Identifier: Apache-2.0
// What is refused, by us or by the kernel, changes nothing: one error at each step of a configuration.
#include <linux/if_addr.h>

#include <functional>

#include "net/namespace.h"
#include "system/net_interface_support.h"

namespace gcs::test {
namespace {

using net::RouteText;

std::vector<RouteText> Routes(size_t count) {
  std::vector<RouteText> routes;
  for (size_t i = 0; i < count; ++i) {
    routes.push_back(
        {.destination = "10." + std::to_string(64 + i / 256) + "." + std::to_string(i % 256) + ".0/24"});
  }
  return routes;
}

// Good up to `edit`, and different from what Prepare makes in everything.
InterfaceConfig Changed(const std::function<void(InterfaceConfig&)>& edit) {
  InterfaceConfig config{.name = "eth9",
                         .mtu = 1300,
                         .addresses = {"10.0.0.3/24", "10.6.0.1/16", "fd06::1/64"},
                         .routes = {{.destination = "0.0.0.0/0", .gateway = "10.6.0.9"},
                                    {.destination = "fd66::/64", .gateway = "fd06::9"},
                                    {.destination = "10.66.0.0/16", .gateway = "10.6.0.8", .table = 200}},
                         .neighbors = {{"10.6.0.9", "02:00:00:00:00:66"}}};
  edit(config);
  return config;
}

struct Refusal {
  std::string what;
  int err;
  std::function<void(InterfaceConfig&)> edit;
  std::function<void()> prepare;  // in the namespace that the interface is to be in
};

// To look for duplicates takes seconds, and none of these tests is about that.
void HurryUp() { Shell("for of in all default; do echo 0 > /proc/sys/net/ipv6/conf/$of/accept_dad; done"); }

// An interface with everything, up or not, in the thread's namespace.
void Prepare(bool up) {
  HurryUp();
  MakeWorkingDevice("d0");
  Good(Configure(Named("d0"),
                 {.mtu = 1400,
                  .addresses = {"10.0.0.2/24", "fd00::2/64"},
                  .routes = {{.destination = "0.0.0.0/0", .gateway = "10.0.0.1"},
                             {.destination = "10.8.0.0/16", .gateway = "172.31.0.1"},
                             {.destination = "fd08::/64", .gateway = "fd00::1"},
                             {.destination = "0.0.0.0/0", .gateway = "10.0.0.254", .table = 100},
                             {.destination = "::/0", .gateway = "fd00::fe", .table = 100}},
                  .neighbors = {{"10.0.0.9", "02:00:00:00:00:09"}, {"fd00::9", "02:00:00:00:00:0a"}}}));
  // And what no config would say: a label, a secondary address, a peer, a route of another kind.
  Shell(R"(ip addr add 10.0.0.3/24 dev d0 label d0:three
           ip addr add 10.0.0.4/24 dev d0
           ip addr add 10.4.0.1 peer 10.4.0.2 dev d0
           ip addr add fd01::2/64 dev d0
           ip route add 10.9.0.0/16 via 10.0.0.8 metric 5)");
  SettleNetwork();
  if (up) return;
  Shell("ip link set d0 down; ip addr add 10.5.0.5/24 dev d0");
  // What is down can't find out whether there are duplicates.
  net::Namespace own = Good(net::Namespace::Own());
  REQUIRE(
      own.AddAddress(Good(own.FindLink("d0")).index, {.family = AF_INET6,
                                                      .local = "\xfd\x05" + std::string(13, '\0') + "\x05",
                                                      .prefix_length = 64,
                                                      .flags = IFA_F_NODAD}));
}

const std::vector<Refusal>& Refusals() {
  static const std::vector<Refusal> refusals{
      {"text of an address",
       EINVAL,
       [](auto& config) { config.addresses.emplace_back("10.0.0.300/24"); },
       {}},
      {"too many routes", E2BIG, [](auto& config) { config.routes = Routes(4097); }, {}},
      {"name", EINVAL, [](auto& config) { config.name = "a/b"; }, {}},
      {"template", EINVAL, [](auto& config) { config.name = "eth%d"; }, {}},
      {"name that is taken", EEXIST, [](auto& config) { config.name = "x"; },
       [] { Shell("ip link add x type veth"); }},
      {"MTU", EINVAL, [](auto& config) { config.mtu = 60; }, {}},
      {"address", EACCES, [](auto&) {},
       [] {
         Shell(
             "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6;"
             "for f in /proc/sys/net/ipv6/conf/d0/disable_ipv6; do test ! -e $f || exit 0; done");
       }},
      {"address below IPv6's least MTU", EINVAL, [](auto& config) { config.mtu = 1000; }, {}},
      {"gateway that is everybody",
       EINVAL,
       [](auto& config) {
         config.routes.push_back({.destination = "10.67.0.0/16", .gateway = "10.6.255.255"});
       },
       {}},
      {"source that no interface has",
       EINVAL,
       [](auto& config) { config.routes.push_back({.destination = "10.67.0.0/16", .source = "10.77.0.1"}); },
       {}},
      {"source of IPv6 that no interface has",
       EINVAL,
       [](auto& config) { config.routes.push_back({.destination = "fd67::/64", .source = "fd77::1"}); },
       {}},
      {"route that another interface has", EEXIST,
       [](auto& config) { config.routes.push_back({.destination = "10.67.0.0/16", .gateway = "10.6.0.7"}); },
       [] {
         Shell(
             "ip link add other type veth; ip addr add 10.88.0.1/24 dev other; ip link set other up;"
             "ip route add 10.67.0.0/16 dev other");
       }},
      {"neighbour",
       EINVAL,
       [](auto& config) {
         config.mtu = 1000;
         config.addresses.pop_back();
         config.routes.erase(config.routes.begin() + 1);
         config.neighbors.push_back({"fd06::9", "02:00:00:00:00:66"});
       },
       {}},
  };
  return refusals;
}

TEST_CASE("a refusal leaves an interface as it was where it is") {
  for (const bool up : {true, false}) {
    for (const Refusal& refusal : Refusals()) {
      if (refusal.err == EACCES) continue;  // of a new device only
      CAPTURE(up);
      CAPTURE(refusal.what);
      const PrivateNetwork network;
      Prepare(up);
      if (refusal.prepare) refusal.prepare();
      const std::string before = WholeState();
      const auto refused = Configure(Named("d0"), Changed(refusal.edit));
      REQUIRE_FALSE(refused);
      CHECK_MESSAGE(refused.error().err == refusal.err, refused.error().ToString());
      CHECK(Difference(before, WholeState()) == "");
      // Without what was refused all of it is possible.
      CHECK(Configure(Named("d0"), Changed([](auto&) {})));
    }
  }
}

TEST_CASE("a refusal leaves an interface where and as it was if it would have been moved") {
  for (const bool up : {true, false}) {
    for (const Refusal& refusal : Refusals()) {
      CAPTURE(up);
      CAPTURE(refusal.what);
      const Two two;
      Prepare(up);
      two.There([&] {
        HurryUp();
        if (refusal.prepare) refusal.prepare();
        return 0;
      });
      const std::string before = WholeState();
      const std::string there = two.There(WholeState);
      const auto refused = Configure(Named("d0"), Changed(refusal.edit), two.Second());
      REQUIRE_FALSE(refused);
      CHECK_MESSAGE(refused.error().err == refusal.err, refused.error().ToString());
      CHECK(Difference(before, WholeState()) == "");
      CHECK(Difference(there, two.There(WholeState)) == "");
    }
  }
}

TEST_CASE("an interface that can't be set up gets nothing") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  // Two of one address on one device: the kernel sets the second one up only after the first is down.
  Shell(R"(ip link set d0 up
           for m in m0 m1; do ip link add link d0 name $m address 02:00:00:00:00:09 type macvlan; done
           ip link set m0 up
           ip addr add 10.5.0.1/24 dev m1)");
  const std::string before = WholeState();
  const auto refused =
      Configure(Named("m1"), {.name = "eth0", .mtu = 1300, .addresses = {"10.0.0.2/24", "fd00::2/64"}});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().err == EADDRINUSE);
  CHECK(Difference(before, WholeState()) == "");
}

TEST_CASE("the order of addresses comes back, too") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  Good(Configure(Named("d0"), {.addresses = {"10.0.0.2/24", "10.0.0.3/24", "10.0.0.4/24"}}));
  const std::string before = WholeState();
  // The second one would become the primary one.
  const auto refused = Configure(
      Named("d0"),
      {.addresses = {"10.0.0.3/24"}, .routes = {{.destination = "10.9.0.0/16", .source = "10.77.0.1"}}});
  REQUIRE_FALSE(refused);
  CHECK(Difference(before, WholeState()) == "");
}

TEST_CASE("the limits are within reach, and a second time costs little") {
  const PrivateNetwork network;
  MakeWorkingDevice("d0");
  InterfaceConfig config{.routes = Routes(4096)};
  for (int i = 0; i < 256; ++i) config.addresses.push_back("10.1." + std::to_string(i) + ".1/32");
  for (int i = 0; i < 4096; ++i) {
    config.neighbors.push_back(
        {"10.2." + std::to_string(i / 256) + "." + std::to_string(i % 256), "02:00:00:00:00:09"});
  }
  Shell(
      "for f in 1 2 3; do echo 100000 > /proc/sys/net/ipv4/neigh/default/gc_thresh$f; done 2> /dev/null || "
      "true");
  const InterfaceState state = Good(Configure(Named("d0"), config));
  CHECK(state.routes.size() == 4096);
  CHECK(state.addresses.size() >= 256);
  const int64_t before = base::MonotonicNs();
  Good(Configure(Named("d0"), config));
  const int64_t ms = (base::MonotonicNs() - before) / base::kNsPerMs;
  CHECK(ms < 2'000);
  CHECK(Good(Configure(Named("d0"), {})).routes.empty());
}

}  // namespace
}  // namespace gcs::test
