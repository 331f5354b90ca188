// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "net/interface.h"
#include "system/net_support.h"

namespace gcs::test {

using net::InterfaceConfig;
using net::InterfaceSelect;
using net::InterfaceState;

inline net::Patience Within(int64_t ms) { return {.deadline_ns = base::MonotonicNs() + ms * base::kNsPerMs}; }

inline InterfaceSelect Named(const std::string& name) {
  return {.by = InterfaceSelect::By::kName, .value = name};
}
inline InterfaceSelect WithMac(const std::string& mac) {
  return {.by = InterfaceSelect::By::kMacAddress, .value = mac};
}

inline base::Result<InterfaceState> Configure(const InterfaceSelect& select, const InterfaceConfig& config,
                                              const base::Fd& target = {}) {
  return net::ConfigureInterface(select, target, config, Within(0));
}

inline InterfaceState Listed(const std::string& name, const base::Fd& in = {}) {
  for (InterfaceState& each : Good(net::ListInterfaces(in))) {
    if (each.name == name) return std::move(each);
  }
  FAIL("there is no " << name);
  return {};
}

// All of the thread's namespace that an interface's configuration can change. A device that has been down in
// another namespace has no queues until it is up.
inline std::string WholeState() {
  SettleNetwork();
  std::string state = NetworkState();
  for (size_t at = 0; (at = state.find("qdisc noop ")) != std::string::npos;)
    state.replace(at, 10, "qdisc noqueue");
  return state + Shell(R"(ip rule; ip -6 rule
           for table in 100 200; do ip route show table $table; ip -6 route show table $table; done 2> /dev/null
           ip neigh show nud permanent | sort; ip -6 neigh show nud permanent | sort)");
}

// The lines of one that the other does not have, or not in that order; empty if they are the same.
inline std::string Difference(const std::string& before, const std::string& after) {
  if (before == after) return {};
  const auto without = [](const std::string& text, const std::string& other) {
    std::string lines;
    for (size_t at = 0, end = 0; at < text.size(); at = end + 1) {
      end = std::min(text.find('\n', at), text.size());
      const std::string line = text.substr(at, end - at) + "\n";
      if (("\n" + other).find("\n" + line) == std::string::npos) lines += line;
    }
    return lines;
  };
  return "was:\n" + without(before, after) + "is:\n" + without(after, before) + "(or in another order)";
}

// Counts what the kernel says to have changed in the thread's namespace from now on.
class Monitor {
 public:
  Monitor() : fd_(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)) {
    REQUIRE(fd_.valid());
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    REQUIRE(bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    for (const int group : {RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE,
                            RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE}) {
      REQUIRE(setsockopt(fd_.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0);
    }
    // What the kernel does by itself with a device that has just got its carrier.
    constexpr int kQuietMs = 300;
    while (Wait(kQuietMs)) Take();
  }
  // Types of messages (RTM_*).
  std::multiset<int> Changes() {
    constexpr int kLateMs = 50;
    std::multiset<int> types;
    while (Wait(kLateMs)) types.merge(Take());
    return types;
  }
  // Empty if there are none.
  std::string ChangesText() {
    std::string text;
    for (const int type : Changes()) text += std::to_string(type) + " ";
    return text;
  }

 private:
  [[nodiscard]] bool Wait(int ms) const {
    pollfd polled{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    return poll(&polled, 1, ms) == 1;
  }
  std::multiset<int> Take() const {
    alignas(nlmsghdr) std::array<char, 65536> buffer;
    auto left = static_cast<unsigned>(recv(fd_.get(), buffer.data(), buffer.size(), 0));
    std::multiset<int> types;
    for (auto* each = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(each, left);
         each = NLMSG_NEXT(each, left)) {
      types.insert(each->nlmsg_type);
    }
    return types;
  }
  base::Fd fd_;
};

// A device with a carrier: the end of a pair whose other end is up. Returns that one's name. The device can
// be found by its address when all is done.
inline std::string MakeWorkingDevice(const std::string& name, const std::string& mac = "02:15:5d:00:00:01") {
  Shell("ip link add " + name + " type veth");
  std::string peer = Shell("ip link show " + name + " | sed -n 's/.*@\\([^:]*\\):.*/\\1/p'");
  peer.erase(peer.find_last_not_of('\n') + 1);
  Shell("ip link set " + peer + " up; ip link set " + name + " address " + mac);
  return peer;
}

}  // namespace gcs::test
