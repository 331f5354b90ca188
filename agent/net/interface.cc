// SPDX-License-Identifier: Apache-2.0
#include "net/interface.h"

#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <optional>
#include <set>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "net/device.h"
#include "net/interface_text.h"
#include "net/namespace.h"

namespace gcs::net {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

namespace {

// An interface as it is, or is to be.
struct Shape {
  std::string name;
  uint32_t mtu = 0;
  bool up = true;
  std::vector<Address> addresses;
  std::vector<Route> routes;
  std::vector<Neighbor> neighbors;
  std::vector<Rule> rules;
};

// What the kernel makes by itself: fe80::/64 and the like.
bool IsOwnAffair(const Address& address) {
  return address.family == AF_INET6 && address.scope != RT_SCOPE_UNIVERSE;
}

bool SameAddress(const Address& a, const Address& b) {
  return a.family == b.family && a.local == b.local && a.prefix_length == b.prefix_length && a.peer == b.peer;
}

bool Expires(const Address& address) {
  return address.valid_s != UINT32_MAX || address.preferred_s != UINT32_MAX;
}

// What two of the same kind have in common if one of them is as good as the other.
std::string KeyOf(const Address& address) {
  return PrefixText({address.local, address.prefix_length}) + " " + address.peer;
}
std::string KeyOf(const Route& route) {
  const RouteFields fields = ReadRoute(route);
  if (fields.destination.address.empty()) return route.message;
  return PrefixText(fields.destination) + " " + AddressText(fields.gateway) + " " +
         std::to_string(fields.metric) + " " + AddressText(fields.source) + " " +
         std::to_string(fields.table);
}
std::string KeyOf(const Neighbor& neighbor) { return neighbor.address + neighbor.mac_address; }
std::string KeyOf(const Rule& rule) { return rule.source + std::to_string(rule.table); }

// Rules for an address belong to the interface that has it, or that had it.
Result<std::vector<Rule>> RulesOf(Namespace& in, const std::vector<Address>& addresses) {
  GCS_ASSIGN(std::vector<Rule> rules, in.Rules());
  std::erase_if(rules, [&](const Rule& rule) {
    return std::ranges::find(addresses, rule.source, &Address::local) == addresses.end();
  });
  return rules;
}

Result<Shape> ShapeOf(Namespace& in, const Link& link) {
  Shape shape{.name = link.name, .mtu = link.mtu, .up = link.up};
  GCS_ASSIGN(shape.addresses, in.Addresses(link.index));
  GCS_ASSIGN(shape.routes, in.Routes(link.index));
  GCS_ASSIGN(shape.neighbors, in.Neighbors(link.index));
  GCS_ASSIGN(shape.rules, RulesOf(in, shape.addresses));
  return shape;
}

template <typename T>
std::set<std::string> KeysOf(const std::vector<T>& all) {
  std::set<std::string> keys;
  for (const T& one : all) keys.insert(KeyOf(one));
  return keys;
}

template <typename T, typename Remove>
Result<> RemoveOthers(const std::vector<T>& there, const std::vector<T>& wanted, Remove take) {
  const std::set<std::string> keys = KeysOf(wanted);
  for (const T& one : there) {
    if (keys.contains(KeyOf(one))) continue;
    auto removed = take(one);
    // With the one before it, or by somebody else.
    if (!removed && removed.error().err != ESRCH && removed.error().err != EADDRNOTAVAIL &&
        removed.error().err != ENOENT)
      return removed;
  }
  return {};
}

template <typename T, typename Add>
Result<> AddMissing(const std::vector<T>& there, const std::vector<T>& wanted, Add add) {
  const std::set<std::string> keys = KeysOf(there);
  for (const T& one : wanted) {
    if (!keys.contains(KeyOf(one))) GCS_TRY(add(one));
  }
  return {};
}

// Whether the kernel has made this route with one of the addresses.
bool ComesWith(const RouteFields& route, const std::vector<Address>& addresses) {
  return route.gateway.empty() && route.table == RT_TABLE_MAIN &&
         std::ranges::any_of(addresses, [&](const Address& each) {
           return each.prefix_length == route.destination.length && Contains(route.destination, each.local) &&
                  (route.source.empty() || route.source == each.local);
         });
}

// Before Linux 6.2 an interface has to be down for that.
Result<> Rename(Namespace& in, const Link& link, const std::string& name) {
  auto renamed = in.Rename(link.index, name);
  if (renamed || renamed.error().err != EBUSY || !link.up) return renamed;
  GCS_TRY(in.SetUp(link.index, false));
  return in.Rename(link.index, name);
}

// With a primary IPv4 address its secondary ones would go, of which some may be to stay.
Result<> RemoveAddresses(Namespace& in, int index, const std::vector<Address>& addresses,
                         const std::vector<Address>& wanted) {
  const std::set<std::string> keys = KeysOf(wanted);
  const bool primary = std::ranges::any_of(addresses, [&](const Address& each) {
    return each.family == AF_INET && (each.flags & IFA_F_SECONDARY) == 0 && !keys.contains(KeyOf(each));
  });
  bool promote = false;
  if (primary) {
    GCS_ASSIGN(const bool promotes, in.Promotes(index));
    promote = !promotes;
  }
  if (promote) GCS_TRY(in.SetPromotes(index, true));
  const auto removed = RemoveOthers(addresses, wanted, [&](const Address& address) -> Result<> {
    return IsOwnAffair(address) ? Result<>() : in.RemoveAddress(index, address);
  });
  if (promote) GCS_TRY(in.SetPromotes(index, false));
  return removed;
}

// All that are wanted are there before one that is not (of the same order as the kernel's): else those behind
// it are removed, to be added again. The first of a prefix is the primary one, the source of packets.
Result<> KeepOrder(Namespace& in, int index, const std::vector<Address>& wanted) {
  for (const int family : {AF_INET, AF_INET6}) {
    const auto of = [&](std::vector<Address> all) {
      std::erase_if(all, [&](const Address& each) { return each.family != family || IsOwnAffair(each); });
      return all;
    };
    GCS_ASSIGN(std::vector<Address> all, in.Addresses(index));
    std::vector<Address> there = of(std::move(all));
    // With a new name of the interface the kernel has made new labels, which stay when the old name is back.
    const auto same = [](const Address& a, const Address& b) {
      return SameAddress(a, b) && a.label == b.label;
    };
    const auto end = std::ranges::mismatch(there, of(wanted), same).in1;
    there.erase(there.begin(), end);
    std::ranges::reverse(there);
    GCS_TRY(RemoveAddresses(in, index, there, {}));
  }
  return {};
}

enum class Likeness : uint8_t {
  kAsked,  // ends at the first error
  kExact,  // as it has been once, with the order of addresses; goes on after an error, which it returns
};

// Makes the interface like `shape`, whatever it is like; touches nothing that is right already.
Result<> Reshape(Namespace& in, int index, const Shape& shape, Likeness likeness) {
  const bool exact = likeness == Likeness::kExact;
  Result<> first;
  const auto did = [&](Result<> result) -> Result<> {
    if (result || !exact) return result;
    if (first) first = std::move(result);
    return {};
  };
  GCS_ASSIGN(const Link before, in.FindLink(index));
  if (before.name != shape.name) GCS_TRY(did(Rename(in, before, shape.name)));
  if (before.mtu != shape.mtu) GCS_TRY(did(in.SetMtu(index, shape.mtu)));
  // Some addresses would go with that.
  if (before.up && !shape.up) GCS_TRY(did(in.SetUp(index, false)));

  GCS_ASSIGN(const std::vector<Address> old_addresses, in.Addresses(index));
  GCS_ASSIGN(const std::vector<Rule> old_rules, RulesOf(in, old_addresses));
  GCS_TRY(RemoveOthers(old_rules, shape.rules, [&](const Rule& rule) { return did(in.RemoveRule(rule)); }));
  GCS_TRY(did(RemoveAddresses(in, index, old_addresses, shape.addresses)));
  if (exact) GCS_TRY(did(KeepOrder(in, index, shape.addresses)));
  // One can take others with it.
  GCS_ASSIGN(const std::vector<Address> addresses, in.Addresses(index));
  GCS_TRY(AddMissing(addresses, shape.addresses, [&](const Address& address) -> Result<> {
    if (IsOwnAffair(address)) return {};
    return did(exact ? Readd(in, index, address) : in.AddAddress(index, address));
  }));
  for (const Address& address : shape.addresses) {
    const auto there =
        std::ranges::find_if(addresses, [&](const Address& each) { return SameAddress(each, address); });
    if (there != addresses.end() && Expires(*there) != Expires(address))
      GCS_TRY(did(in.ChangeAddress(index, address)));
  }
  GCS_ASSIGN(const Link now, in.FindLink(index));
  if (shape.up && !now.up) GCS_TRY(did(in.SetUp(index, true)));

  GCS_ASSIGN(const std::vector<Route> routes, in.Routes(index));
  GCS_TRY(RemoveOthers(routes, shape.routes, [&](const Route& route) -> Result<> {
    auto removed = in.RemoveRoute(route);
    if (!removed) removed.error().object = PrefixText(ReadRoute(route).destination);
    return did(std::move(removed));
  }));
  // A gateway may be reached by another route.
  std::vector<Route> wanted = shape.routes;
  std::ranges::stable_partition(wanted, [](const Route& route) { return ReadRoute(route).gateway.empty(); });
  GCS_TRY(AddMissing(routes, wanted, [&](const Route& route) -> Result<> {
    const RouteFields fields = ReadRoute(route);
    auto added = in.AddRoute(route);
    if (!added && added.error().err == EEXIST && ComesWith(fields, shape.addresses)) return {};
    if (!added) added.error().object = PrefixText(fields.destination);
    return did(std::move(added));
  }));
  GCS_ASSIGN(const std::vector<Neighbor> neighbors, in.Neighbors(index));
  GCS_TRY(RemoveOthers(neighbors, shape.neighbors,
                       [&](const Neighbor& one) { return did(in.RemoveNeighbor(index, one)); }));
  GCS_TRY(AddMissing(neighbors, shape.neighbors,
                     [&](const Neighbor& one) { return did(in.AddNeighbor(index, one)); }));
  GCS_ASSIGN(const std::vector<Rule> rules, in.Rules());
  GCS_TRY(AddMissing(rules, shape.rules, [&](const Rule& rule) { return did(in.AddRule(rule)); }));
  return first;
}

// Those of them that are there and for an address that no interface has any more.
Result<> RemoveRules(Namespace& in, const std::vector<Rule>& rules) {
  GCS_ASSIGN(const std::vector<Rule> there, in.Rules());
  const std::set<std::string> keys = KeysOf(there);
  for (const Rule& rule : rules) {
    if (keys.contains(KeyOf(rule))) GCS_TRY(in.RemoveRule(rule));
  }
  return {};
}

Shape ShapeOf(const InterfacePlan& plan, const InterfaceConfig& config, const Link& link) {
  Shape shape{.name = config.name.empty() ? link.name : config.name,
              .mtu = config.mtu == 0 ? link.mtu : config.mtu,
              .neighbors = plan.neighbors,
              .rules = plan.rules};
  for (const Prefix& prefix : plan.addresses) {
    const bool v6 = prefix.address.size() == sizeof(in6_addr);
    // The host has chosen it: nobody is asked whether it is taken, which would cost seconds.
    shape.addresses.push_back({.family = v6 ? AF_INET6 : AF_INET,
                               .local = prefix.address,
                               .prefix_length = prefix.length,
                               .scope = RT_SCOPE_UNIVERSE,
                               .flags = v6 ? static_cast<uint32_t>(IFA_F_NODAD) : 0});
  }
  for (const RouteFields& route : plan.routes) {
    const std::string& gateway = route.gateway;
    const bool link_local = gateway.size() == sizeof(in6_addr) &&
                            Contains({std::string("\xfe\x80", 2) + std::string(14, '\0'), 10}, gateway);
    // Hosts give addresses of their own prefix (/32) and a gateway beyond it.
    const bool reachable =
        gateway.empty() || link_local ||
        std::ranges::any_of(plan.addresses, [&](const Prefix& each) { return Contains(each, gateway); });
    shape.routes.push_back(MakeRoute(route, link.index, !reachable));
  }
  return shape;
}

// Nothing: it is not there.
Result<std::optional<Link>> Find(Namespace& in, const InterfaceSelect& select) {
  if (select.by == InterfaceSelect::By::kName) {
    auto link = in.FindLink(select.value);
    if (link) return *link;
    if (link.error().err == ENODEV) return std::nullopt;
    return std::unexpected(link.error());
  }
  const bool by_mac = select.by == InterfaceSelect::By::kMacAddress;
  const std::string wanted = by_mac ? ParseMac(select.value) : ParseGuid(select.value);
  GCS_ASSIGN(std::vector<Link> links, in.Links());
  std::erase_if(links, [&](const Link& link) {
    return link.loopback || (by_mac ? link.mac_address : ParseGuid(link.parent)) != wanted;
  });
  // A Hyper-V device and the VF below it have the same address.
  if (links.size() > 1 && !std::ranges::all_of(links, &Link::enslaved)) std::erase_if(links, &Link::enslaved);
  if (links.empty()) return std::nullopt;
  if (links.size() > 1)
    return MakeError(ENOTUNIQ, "find interface", select.value, links[0].name + " and " + links[1].name);
  return links[0];
}

Result<> Check(const InterfaceSelect& select) {
  using By = InterfaceSelect::By;
  const auto bad = [](const char* object, const char* why) {
    return MakeError(EINVAL, "check interface", object, why);
  };
  if (select.by == By::kName && !ValidDeviceName(select.value))
    return bad("interface.name", "no name of one");
  if (select.by == By::kMacAddress && ParseMac(select.value).empty())
    return bad("interface.mac_address", "no address like 02:15:5d:00:00:01");
  if (select.by == By::kVmbusGuid && ParseGuid(select.value).empty())
    return bad("interface.vmbus_guid", "no GUID");
  return {};
}

// What the watches tell is not read: whoever waits looks for himself.
Result<> AwaitChange(const std::array<Fd, 2>& watches, const Patience& patience, const std::string& object) {
  std::array<pollfd, 3> fds{pollfd{.fd = watches[0].get(), .events = POLLIN, .revents = 0},
                            pollfd{.fd = watches[1].get(), .events = POLLIN, .revents = 0},
                            pollfd{.fd = patience.cancel_fd, .events = POLLIN, .revents = 0}};
  const int64_t left_ms = (patience.deadline_ns - base::MonotonicNs()) / base::kNsPerMs;
  if (left_ms <= 0) return MakeError(ETIMEDOUT, "wait for interface", object);
  if (poll(fds.data(), fds.size(), static_cast<int>(std::min<int64_t>(left_ms, INT_MAX))) < 0 &&
      errno != EINTR)
    return ErrnoError("poll", "links");
  if (fds[2].revents != 0) return MakeError(ECANCELED, "wait for interface", object);
  // ENOBUFS, too: what was lost is a change.
  std::array<char, 8192> dropped;
  for (const Fd& watch : watches) {
    while (recv(watch.get(), dropped.data(), dropped.size(), 0) > 0) {
    }
  }
  return {};
}

struct Place {
  Link link;
  bool in_target = false;
};

// Subscribed before the first look, so that none that comes in between is missed.
Result<Place> Await(Namespace& own, Namespace& target, const InterfaceSelect& select,
                    const Patience& patience) {
  std::array<Fd, 2> watches;
  GCS_ASSIGN(watches[0], target.WatchLinks());
  GCS_ASSIGN(watches[1], own.WatchLinks());
  for (;;) {
    GCS_ASSIGN(auto there, Find(target, select));
    if (there) return Place{*there, true};
    GCS_ASSIGN(there, Find(own, select));
    if (there) return Place{*there, false};
    GCS_TRY(AwaitChange(watches, patience, select.value));
  }
}

Result<InterfaceState> StateOf(Namespace& in, const Link& link) {
  InterfaceState state{.name = link.name,
                       .index = static_cast<uint32_t>(link.index),
                       .mac_address = link.loopback ? std::string() : MacText(link.mac_address),
                       .mtu = link.mtu,
                       .up = link.up,
                       .received_bytes = link.received_bytes,
                       .sent_bytes = link.sent_bytes,
                       .hardware = !link.parent.empty()};
  GCS_ASSIGN(const std::vector<Address> addresses, in.Addresses(link.index));
  for (const Address& address : addresses)
    state.addresses.push_back(PrefixText({address.local, address.prefix_length}));
  GCS_ASSIGN(const std::vector<Route> routes, in.Routes(link.index));
  for (const Route& route : routes) {
    const RouteFields fields = ReadRoute(route);
    if (!fields.destination.address.empty()) state.routes.push_back(ToText(fields));
  }
  GCS_ASSIGN(const std::vector<Neighbor> neighbors, in.Neighbors(link.index));
  for (const Neighbor& neighbor : neighbors)
    state.neighbors.push_back({AddressText(neighbor.address), MacText(neighbor.mac_address)});
  return state;
}

Result<Namespace> Open(const Fd& namespace_fd) {
  if (!namespace_fd) return Namespace::Own();
  Fd copy(fcntl(namespace_fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) return ErrnoError("dup", "network namespace");
  return Namespace::Of(std::move(copy));
}

void Note(const Result<>& result, const Link& link) {
  if (result) return;
  base::Log(base::Level::kWarn, "an interface did not become again as it was",
            {{"interface", link.name}, {"error", result.error().ToString()}});
}

}  // namespace

Result<InterfaceState> ConfigureInterface(const InterfaceSelect& select, const Fd& target,
                                          const InterfaceConfig& config, const Patience& patience) {
  GCS_TRY(Check(select));
  // Of a template the kernel would make another name each time.
  if (!config.name.empty() && (!ValidDeviceName(config.name) || config.name.find('%') != std::string::npos))
    return MakeError(EINVAL, "check interface", "name", "no name of an interface");
  GCS_ASSIGN(const InterfacePlan plan, ParseConfig(config));
  GCS_ASSIGN(Namespace own, Namespace::Own());
  GCS_ASSIGN(Namespace in, Open(target));
  GCS_ASSIGN(const Place place, Await(own, in, select, patience));
  if (place.link.loopback)
    return MakeError(EINVAL, "configure interface", place.link.name, "is the loopback device");

  std::optional<DeviceMoves> moves;
  Link link = place.link;
  GCS_ASSIGN(const Shape before, ShapeOf(place.in_target ? in : own, link));
  const auto take_back = [&] {
    if (moves) {
      // The rules of its addresses would stay behind.
      Note(RemoveRules(in, plan.rules), link);
      Note(in.SetMtu(link.index, before.mtu), link);
      moves->TakeBack();
    }
    Note(Reshape(moves ? own : in, place.link.index, before, Likeness::kExact), place.link);
  };
  if (place.in_target) {
    const auto taken = config.name.empty() || config.name == link.name
                           ? std::nullopt
                           : std::optional(in.FindLink(config.name));
    if (taken && taken->has_value())
      return MakeError(EEXIST, "configure interface", config.name, "there is one of that name");
  } else {
    Fd copy(fcntl(target.get(), F_DUPFD_CLOEXEC, 0));
    if (!copy) return ErrnoError("dup", "network namespace");
    GCS_ASSIGN(moves, DeviceMoves::Begin(std::move(copy)));
    auto moved = moves->MoveBare(link.name, config.name);
    if (!moved) {
      moves->TakeBack();
      Note(Reshape(own, link.index, before, Likeness::kExact), link);
      return std::unexpected(moved.error());
    }
    link = *moved;
  }
  const Shape wanted = ShapeOf(plan, config, link);
  if (auto reshaped = Reshape(in, link.index, wanted, Likeness::kAsked); !reshaped) {
    take_back();
    return std::unexpected(reshaped.error());
  }
  // Where it has been, nothing is to be routed by its addresses any more.
  if (moves) {
    for (const Rule& rule : before.rules) Note(own.RemoveRule(rule), link);
  }
  GCS_ASSIGN(link, in.FindLink(link.index));
  return StateOf(in, link);
}

Result<> RemoveInterface(const InterfaceSelect& select, const Fd& from) {
  GCS_TRY(Check(select));
  GCS_ASSIGN(Namespace own, Namespace::Own());
  GCS_ASSIGN(Namespace in, Open(from));
  GCS_ASSIGN(const auto link, Find(in, select));
  if (!link) return MakeError(ENODEV, "find interface", select.value);
  if (link->loopback) return MakeError(EINVAL, "remove interface", link->name, "is the loopback device");
  if (in.Same(own)) {
    // Down at last: what the kernel has added goes with that.
    GCS_TRY(
        Reshape(in, link->index, {.name = link->name, .mtu = link->mtu, .up = link->up}, Likeness::kAsked));
    return in.SetUp(link->index, false);
  }
  GCS_ASSIGN(const std::vector<Address> addresses, in.Addresses(link->index));
  GCS_ASSIGN(const std::vector<Rule> rules, RulesOf(in, addresses));
  // It arrives down and without anything, whatever a container has made of it and however much of that.
  int index = link->index;
  auto moved = Relocate(in, own, *link, "", index);
  // As the kernel itself does when a namespace ends.
  if (!moved && moved.error().err == EEXIST) moved = Relocate(in, own, *link, "dev%d", index);
  GCS_TRY(moved);
  return RemoveRules(in, rules);
}

Result<std::vector<InterfaceState>> ListInterfaces(const Fd& in) {
  GCS_ASSIGN(Namespace space, Open(in));
  GCS_ASSIGN(std::vector<Link> links, space.Links());
  std::ranges::sort(links, {}, &Link::index);
  std::vector<InterfaceState> states;
  for (const Link& link : links) {
    auto state = StateOf(space, link);
    if (state) states.push_back(std::move(*state));
    // One that has gone meanwhile is left out.
    else if (state.error().err != ENODEV)
      return std::unexpected(state.error());
  }
  return states;
}

}  // namespace gcs::net
