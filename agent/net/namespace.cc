// SPDX-License-Identifier: Apache-2.0
#include "net/namespace.h"

#include <fcntl.h>
#include <linux/ip.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <ranges>

#include "base/paths.h"
#include "net/namespace_socket.h"
#include "net/netlink.h"

namespace gcs::net {

using base::Fd;
using base::MakeError;
using base::Result;

namespace {

constexpr int kNewIndex = 49;    // IFLA_NEW_IFINDEX, since Linux 5.13
constexpr int kParentName = 56;  // IFLA_PARENT_DEV_NAME, since Linux 5.14
// Those that RTM_NEWADDR takes: the others are the kernel's to say.
constexpr uint32_t kSettableFlags = IFA_F_NODAD | IFA_F_OPTIMISTIC | IFA_F_HOMEADDRESS |
                                    IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN;

void ReadLink(nlmsghdr* head, std::vector<Link>& links) {
  const auto* info = Fixed<ifinfomsg>(head);
  if (info == nullptr || head->nlmsg_type != RTM_NEWLINK) return;
  const auto attributes = Parse<ifinfomsg, std::max(IFLA_MAX, kParentName) + 1>(head);
  const auto counters = Number<rtnl_link_stats64>(attributes[IFLA_STATS64], {});
  links.push_back({.index = info->ifi_index,
                   .name = Text(attributes[IFLA_IFNAME]),
                   .up = (info->ifi_flags & IFF_UP) != 0,
                   .mtu = Number<uint32_t>(attributes[IFLA_MTU], 0),
                   .loopback = (info->ifi_flags & IFF_LOOPBACK) != 0,
                   .mac_address = Bytes(attributes[IFLA_ADDRESS]),
                   .parent = Text(attributes[kParentName]),
                   .enslaved = attributes[IFLA_MASTER] != nullptr,
                   .received_bytes = counters.rx_bytes,
                   .sent_bytes = counters.tx_bytes});
}

void ReadAddress(nlmsghdr* head, int index, std::vector<Address>& addresses) {
  const auto* info = Fixed<ifaddrmsg>(head);
  // A kernel that doesn't filter tells those of all devices.
  if (info == nullptr || head->nlmsg_type != RTM_NEWADDR || info->ifa_index != static_cast<unsigned>(index))
    return;
  if (info->ifa_family != AF_INET && info->ifa_family != AF_INET6) return;
  const auto attributes = Parse<ifaddrmsg, IFA_MAX + 1>(head);
  Address address{.family = info->ifa_family,
                  .local = Bytes(attributes[IFA_LOCAL]),
                  .peer = Bytes(attributes[IFA_ADDRESS]),
                  .broadcast = Bytes(attributes[IFA_BROADCAST]),
                  .prefix_length = info->ifa_prefixlen,
                  .scope = info->ifa_scope,
                  .flags = Number<uint32_t>(attributes[IFA_FLAGS], info->ifa_flags),
                  .label = Text(attributes[IFA_LABEL]),
                  .metric = Number<uint32_t>(attributes[IFA_RT_PRIORITY], 0)};
  // Without a peer there is only one of the two (IPv6), or both are the same (IPv4).
  if (address.local.empty()) address.local = address.peer;
  if (address.local == address.peer) address.peer.clear();
  const auto lifetimes =
      Number<ifa_cacheinfo>(attributes[IFA_CACHEINFO],
                            {.ifa_prefered = UINT32_MAX, .ifa_valid = UINT32_MAX, .cstamp = 0, .tstamp = 0});
  address.valid_s = lifetimes.ifa_valid;
  address.preferred_s = lifetimes.ifa_prefered;
  addresses.push_back(std::move(address));
}

void ReadRoute(nlmsghdr* head, int index, std::vector<Route>& routes) {
  const auto* info = Fixed<rtmsg>(head);
  if (info == nullptr || head->nlmsg_type != RTM_NEWROUTE || info->rtm_protocol == RTPROT_KERNEL ||
      info->rtm_protocol == RTPROT_REDIRECT || (info->rtm_flags & RTM_F_CLONED) != 0) {
    return;
  }
  const auto attributes = Parse<rtmsg, RTA_MAX + 1>(head);
  if (Number<int>(attributes[RTA_OIF], 0) != index) return;
  routes.push_back({std::string(static_cast<const char*>(nlmsg_data(head)), nlmsg_datalen(head))});
}

// IPv4's settings of a device, which a message about links holds as an array.
void ReadPromotes(nlmsghdr* head, std::vector<bool>& found) {
  if (head->nlmsg_type != RTM_NEWLINK || Fixed<ifinfomsg>(head) == nullptr) return;
  const auto attributes = Parse<ifinfomsg, IFLA_MAX + 1>(head);
  if (attributes[IFLA_AF_SPEC] == nullptr) return;
  const nlattr* v4 = nla_find(static_cast<nlattr*>(nla_data(attributes[IFLA_AF_SPEC])),
                              nla_len(attributes[IFLA_AF_SPEC]), AF_INET);
  if (v4 == nullptr) return;
  const std::string values = Bytes(nla_find(static_cast<nlattr*>(nla_data(v4)), nla_len(v4), IFLA_INET_CONF));
  constexpr size_t kAt = (IPV4_DEVCONF_PROMOTE_SECONDARIES - 1) * sizeof(uint32_t);
  uint32_t value = 0;
  if (values.size() < kAt + sizeof value) return;
  memcpy(&value, values.data() + kAt, sizeof value);
  found.push_back(value != 0);
}

Result<Link> One(Result<std::vector<Link>> links, std::string_view object) {
  GCS_TRY(links);
  if (links->empty()) return MakeError(ENODEV, "find network device", object);
  return std::move((*links)[0]);
}

uint8_t PrefixLength(const Route& route) {
  rtmsg info;
  memcpy(&info, route.message.data(), sizeof info);
  return info.rtm_dst_len;
}

}  // namespace

Namespace::Namespace(Fd fd, std::unique_ptr<Socket> socket)
    : fd_(std::move(fd)), socket_(std::move(socket)) {}
Namespace::Namespace(Namespace&&) noexcept = default;
Namespace& Namespace::operator=(Namespace&&) noexcept = default;
Namespace::~Namespace() = default;

Result<Namespace> Namespace::Own() {
  GCS_ASSIGN(Fd fd, base::OpenFile("/proc/thread-self/ns/net", O_RDONLY));
  GCS_ASSIGN(std::unique_ptr<Netlink> netlink, Netlink::Open());
  return Namespace(std::move(fd), std::make_unique<Socket>(std::move(netlink)));
}

Result<Namespace> Namespace::Of(Fd namespace_fd) {
  GCS_ASSIGN(std::unique_ptr<Netlink> netlink, Netlink::OpenIn(namespace_fd.get()));
  return Namespace(std::move(namespace_fd), std::make_unique<Socket>(std::move(netlink)));
}

bool Namespace::Same(const Namespace& other) const {
  struct stat ours{}, theirs{};
  return fstat(fd(), &ours) == 0 && fstat(other.fd(), &theirs) == 0 && ours.st_dev == theirs.st_dev &&
         ours.st_ino == theirs.st_ino;
}

Result<Link> Namespace::FindLink(const std::string& name) {
  Message message = NewMessage(RTM_GETLINK, 0, ifinfomsg{.ifi_family = AF_UNSPEC});
  PutName(message, IFLA_IFNAME, name);
  return One(socket_->Ask<Link>(message, "find network device", name, ReadLink), name);
}

Result<Link> Namespace::FindLink(int index) {
  const Message message = NewMessage(RTM_GETLINK, 0, ifinfomsg{.ifi_family = AF_UNSPEC, .ifi_index = index});
  const std::string object = std::to_string(index);
  return One(socket_->Ask<Link>(message, "find network device", object, ReadLink), object);
}

Result<std::vector<Link>> Namespace::Links() {
  const Message message = NewMessage(RTM_GETLINK, NLM_F_DUMP, ifinfomsg{.ifi_family = AF_UNSPEC});
  return socket_->Ask<Link>(message, "list network devices", {}, ReadLink);
}

Result<> Namespace::SetUp(int index, bool up) {
  const ifinfomsg info{.ifi_family = AF_UNSPEC,
                       .ifi_index = index,
                       .ifi_flags = up ? static_cast<unsigned>(IFF_UP) : 0,
                       .ifi_change = IFF_UP};
  return socket_->Talk(NewMessage(RTM_NEWLINK, 0, info),
                       up ? "set network device up" : "set network device down", std::to_string(index));
}

Result<> Namespace::SetMtu(int index, uint32_t mtu) {
  Message message = NewMessage(RTM_NEWLINK, 0, ifinfomsg{.ifi_family = AF_UNSPEC, .ifi_index = index});
  PutNumber(message, IFLA_MTU, mtu);
  return socket_->Talk(message, "set MTU", std::to_string(index));
}

Result<> Namespace::Rename(int index, const std::string& name) {
  Message message = NewMessage(RTM_NEWLINK, 0, ifinfomsg{.ifi_family = AF_UNSPEC, .ifi_index = index});
  PutName(message, IFLA_IFNAME, name);
  return socket_->Talk(message, "rename network device", name);
}

Result<> Namespace::MoveLink(const Link& link, const Namespace& target, const std::string& name, int index) {
  Message message = NewMessage(RTM_NEWLINK, 0, ifinfomsg{.ifi_family = AF_UNSPEC, .ifi_index = link.index});
  PutNumber(message, IFLA_NET_NS_FD, static_cast<uint32_t>(target.fd()));
  PutNumber(message, kNewIndex, static_cast<uint32_t>(index));
  if (!name.empty()) PutName(message, IFLA_IFNAME, name);
  return socket_->Talk(message, "move network device", link.name);
}

Result<Fd> Namespace::WatchLinks() { return Netlink::WatchIn(fd(), RTMGRP_LINK); }

Result<std::vector<Address>> Namespace::Addresses(int index) {
  const Message message = NewMessage(
      RTM_GETADDR, NLM_F_DUMP, ifaddrmsg{.ifa_family = AF_UNSPEC, .ifa_index = static_cast<unsigned>(index)});
  GCS_ASSIGN(std::vector<Address> addresses,
             socket_->Ask<Address>(message, "list addresses", std::to_string(index),
                                   [&](nlmsghdr* head, auto& found) { ReadAddress(head, index, found); }));
  // The kernel puts a new IPv6 address before the others of its scope, an IPv4 one behind them.
  const auto v6 =
      std::ranges::stable_partition(addresses, [](const Address& each) { return each.family != AF_INET6; });
  std::ranges::reverse(v6);
  return addresses;
}

Result<> Namespace::AddAddress(int index, const Address& address) {
  return PutAddress(index, address, NLM_F_CREATE | NLM_F_EXCL, "add address");
}

Result<> Namespace::ChangeAddress(int index, const Address& address) {
  return PutAddress(index, address, NLM_F_REPLACE, "change address");
}

Result<> Namespace::RemoveAddress(int index, const Address& address) {
  const ifaddrmsg info{.ifa_family = static_cast<uint8_t>(address.family),
                       .ifa_prefixlen = address.prefix_length,
                       .ifa_index = static_cast<unsigned>(index)};
  Message message = NewMessage(RTM_DELADDR, 0, info);
  const std::string& peer = address.peer.empty() ? address.local : address.peer;
  Put(message, IFA_LOCAL, address.local.data(), address.local.size());
  Put(message, IFA_ADDRESS, peer.data(), peer.size());
  return socket_->Talk(message, "remove address", std::to_string(index));
}

Result<bool> Namespace::Promotes(int index) {
  const Message message = NewMessage(RTM_GETLINK, 0, ifinfomsg{.ifi_family = AF_UNSPEC, .ifi_index = index});
  GCS_ASSIGN(const std::vector<bool> found,
             socket_->Ask<bool>(message, "find network device", std::to_string(index), ReadPromotes));
  return !found.empty() && found[0];
}

Result<> Namespace::SetPromotes(int index, bool on) {
  Message message = NewMessage(RTM_NEWLINK, 0, ifinfomsg{.ifi_family = AF_UNSPEC, .ifi_index = index});
  // Three attributes in each other; what is added inside ends with the message.
  std::vector<nlattr*> nests;
  for (const int type : {int{IFLA_AF_SPEC}, AF_INET, int{IFLA_INET_CONF}}) {
    nlattr* nest = message ? nla_nest_start(message.get(), type) : nullptr;
    if (nest == nullptr) return MakeError(ENOMEM, "set network device", std::to_string(index));
    nests.push_back(nest);
  }
  PutNumber(message, IPV4_DEVCONF_PROMOTE_SECONDARIES, on ? 1 : 0);
  for (nlattr* nest : nests | std::views::reverse) {
    if (message) nla_nest_end(message.get(), nest);
  }
  return socket_->Talk(message, "set network device", std::to_string(index));
}

Result<> Namespace::PutAddress(int index, const Address& address, int flags, std::string_view step) {
  const ifaddrmsg info{.ifa_family = static_cast<uint8_t>(address.family),
                       .ifa_prefixlen = address.prefix_length,
                       .ifa_scope = address.scope,
                       .ifa_index = static_cast<unsigned>(index)};
  Message message = NewMessage(RTM_NEWADDR, flags, info);
  const std::string& peer = address.peer.empty() ? address.local : address.peer;
  Put(message, IFA_LOCAL, address.local.data(), address.local.size());
  Put(message, IFA_ADDRESS, peer.data(), peer.size());
  PutNumber(message, IFA_FLAGS, address.flags & kSettableFlags);
  if (!address.broadcast.empty())
    Put(message, IFA_BROADCAST, address.broadcast.data(), address.broadcast.size());
  if (!address.label.empty()) PutName(message, IFA_LABEL, address.label);
  if (address.metric != 0) PutNumber(message, IFA_RT_PRIORITY, address.metric);
  const ifa_cacheinfo lifetimes{
      .ifa_prefered = address.preferred_s, .ifa_valid = address.valid_s, .cstamp = 0, .tstamp = 0};
  Put(message, IFA_CACHEINFO, &lifetimes, sizeof lifetimes);
  return socket_->Talk(message, step, std::to_string(index));
}

Result<std::vector<Route>> Namespace::Routes(int index) {
  std::vector<Route> routes;
  for (const uint8_t family : {AF_INET, AF_INET6}) {
    const Message message = NewMessage(RTM_GETROUTE, NLM_F_DUMP, rtmsg{.rtm_family = family});
    GCS_ASSIGN(std::vector<Route> found,
               socket_->Ask<Route>(message, "list routes", std::to_string(index),
                                   [&](nlmsghdr* head, auto& all) { ReadRoute(head, index, all); }));
    std::ranges::move(found, std::back_inserter(routes));
  }
  std::ranges::stable_sort(routes, std::greater(), PrefixLength);
  return routes;
}

Result<> Namespace::AddRoute(const Route& route) {
  return PutRoute(route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, "add route");
}

Result<> Namespace::RemoveRoute(const Route& route) {
  return PutRoute(route, RTM_DELROUTE, 0, "remove route");
}

Result<> Namespace::PutRoute(const Route& route, int type, int flags, std::string_view step) {
  rtmsg info;
  memcpy(&info, route.message.data(), sizeof info);
  // The rest of the flags tell the state of the next hop.
  info.rtm_flags &= RTNH_F_ONLINK;
  Message message = NewMessage(type, flags, info);
  const auto* first = reinterpret_cast<const nlattr*>(route.message.data() + NLMSG_ALIGN(sizeof info));
  int left = static_cast<int>(route.message.size() - NLMSG_ALIGN(sizeof info));
  for (const nlattr* each = first; nla_ok(each, left) != 0; each = nla_next(each, &left)) {
    if (nla_type(each) != RTA_CACHEINFO) {
      Put(message, nla_type(each), nla_data(each), static_cast<size_t>(nla_len(each)));
    }
  }
  return socket_->Talk(message, step, {});
}

}  // namespace gcs::net
