// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

// After the C library's headers, which these know how to complement.
#include <linux/genetlink.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

// A netlink message under construction; attributes nest by Open and Close.
class Message {
 public:
  Message(uint16_t type, uint16_t flags) { Append(nlmsghdr{0, type, flags, 1, 0}); }

  template <typename T>
  Message& Append(const T& header) {
    data_.append(reinterpret_cast<const char*>(&header), sizeof header);
    return Pad();
  }
  Message& Attribute(uint16_t type, std::string_view value) {
    const nlattr header{static_cast<uint16_t>(NLA_HDRLEN + value.size()), type};
    data_.append(reinterpret_cast<const char*>(&header), sizeof header);
    data_.append(value);
    return Pad();
  }
  Message& Text(uint16_t type, const char* value) { return Attribute(type, {value, std::strlen(value) + 1}); }
  Message& Number(uint16_t type, uint32_t value) {
    return Attribute(type, {reinterpret_cast<const char*>(&value), sizeof value});
  }
  size_t Open(uint16_t type) {
    const size_t start = data_.size();
    Attribute(static_cast<uint16_t>(type | NLA_F_NESTED), "");
    return start;
  }
  void Close(size_t start) {
    const auto size = static_cast<uint16_t>(data_.size() - start);
    std::memcpy(data_.data() + start, &size, sizeof size);
  }
  std::string Finish() {
    const auto size = static_cast<uint32_t>(data_.size());
    std::memcpy(data_.data(), &size, sizeof size);
    return data_;
  }

 private:
  Message& Pad() {
    data_.resize((data_.size() + 3) & ~size_t{3});
    return *this;
  }
  std::string data_;
};

// Sends the messages and reads until the first acknowledgement or error.
Result<> Transact(int protocol, const std::string& messages, const std::string& object) {
  const Fd netlink(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
  if (!netlink) return ErrnoError("socket", "AF_NETLINK");
  const timeval limit{.tv_sec = 5, .tv_usec = 0};
  setsockopt(netlink.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (send(netlink.get(), messages.data(), messages.size(), 0) != static_cast<ssize_t>(messages.size())) {
    return ErrnoError("send netlink message", object);
  }
  for (;;) {
    alignas(nlmsghdr) char buffer[16384];
    const ssize_t n = recv(netlink.get(), buffer, sizeof buffer, 0);
    if (n < 0) return ErrnoError("receive netlink answer", object);
    const auto* header = reinterpret_cast<const nlmsghdr*>(buffer);
    if (header->nlmsg_type != NLMSG_ERROR) continue;
    const int error = -reinterpret_cast<const nlmsgerr*>(NLMSG_DATA(header))->error;
    if (error != 0) return MakeError(error, "netlink request", object);
    return {};
  }
}

struct Link {
  const char* kind;
  uint16_t id_attribute = 0;  // of the kind's data: VLAN id, VNI
  uint16_t id_size = 0;
  bool on_parent = false;
};

Result<> AddLink(const Link& link, const char* name, unsigned parent) {
  Message message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
  message.Append(ifinfomsg{}).Text(IFLA_IFNAME, name);
  if (link.on_parent) message.Number(IFLA_LINK, parent);
  const size_t info = message.Open(IFLA_LINKINFO);
  message.Text(IFLA_INFO_KIND, link.kind);
  if (link.id_attribute != 0) {
    const size_t data = message.Open(IFLA_INFO_DATA);
    const uint32_t id = 42;
    message.Attribute(link.id_attribute, {reinterpret_cast<const char*>(&id), link.id_size});
    message.Close(data);
  }
  message.Close(info);
  return Transact(NETLINK_ROUTE, message.Finish(), link.kind);
}

// Makes an interface of the kind in a new network namespace.
Result<> LinkKindWorks(const Link& link) {
  if (unshare(CLONE_NEWNET) != 0) return ErrnoError("unshare", "net");
  unsigned parent = 0;
  if (link.on_parent) {
    GCS_TRY(AddLink({"dummy"}, "parent", 0));
    parent = if_nametoindex("parent");
  }
  GCS_TRY(AddLink(link, "probe", parent));
  if (if_nametoindex("probe") == 0) return ErrnoError("if_nametoindex", link.kind);
  return {};
}

Result<> TunWorks() {
  if (unshare(CLONE_NEWNET) != 0) return ErrnoError("unshare", "net");
  const Fd tun(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  if (!tun) return ErrnoError("open", "/dev/net/tun");
  ifreq request = {};
  std::strncpy(request.ifr_name, "tun7", IFNAMSIZ - 1);
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (ioctl(tun.get(), TUNSETIFF, &request) != 0) return ErrnoError("TUNSETIFF", "tun7");
  if (if_nametoindex("tun7") == 0) return ErrnoError("if_nametoindex", "tun7");
  return {};
}

// A table and a base chain of the nat type, in one nft transaction.
Result<> NftablesWorks() {
  if (unshare(CLONE_NEWNET) != 0) return ErrnoError("unshare", "net");
  const auto group = [](uint8_t family, uint16_t resource) {
    return nfgenmsg{.nfgen_family = family, .version = NFNETLINK_V0, .res_id = htons(resource)};
  };
  constexpr uint16_t kNft = NFNL_SUBSYS_NFTABLES << 8;
  Message begin(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST);
  begin.Append(group(AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
  Message table(kNft | NFT_MSG_NEWTABLE, NLM_F_REQUEST | NLM_F_CREATE);
  table.Append(group(NFPROTO_INET, 0)).Text(NFTA_TABLE_NAME, "selfcheck");
  Message chain(kNft | NFT_MSG_NEWCHAIN, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK);
  chain.Append(group(NFPROTO_INET, 0)).Text(NFTA_CHAIN_TABLE, "selfcheck").Text(NFTA_CHAIN_NAME, "post");
  const size_t hook = chain.Open(NFTA_CHAIN_HOOK);
  chain.Number(NFTA_HOOK_HOOKNUM, htonl(4 /* NF_INET_POST_ROUTING */)).Number(NFTA_HOOK_PRIORITY, htonl(100));
  chain.Close(hook);
  chain.Text(NFTA_CHAIN_TYPE, "nat");
  Message end(NFNL_MSG_BATCH_END, NLM_F_REQUEST);
  end.Append(group(AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
  return Transact(NETLINK_NETFILTER, begin.Finish() + table.Finish() + chain.Finish() + end.Finish(),
                  "nat chain");
}

Result<> IptablesTablesExist(int family, int level, int option) {
  if (unshare(CLONE_NEWNET) != 0) return ErrnoError("unshare", "net");
  const Fd raw(socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
  if (!raw) return ErrnoError("socket", "SOCK_RAW");
  for (const char* table : {"filter", "nat", "mangle", "raw"}) {
    // struct ip6t_getinfo has the same layout.
    ipt_getinfo info = {};
    std::strncpy(info.name, table, sizeof info.name - 1);
    socklen_t size = sizeof info;
    if (getsockopt(raw.get(), level, option, &info, &size) != 0) return ErrnoError("IPT_SO_GET_INFO", table);
  }
  return {};
}

// NLM_F_ACK with CTRL_CMD_GETFAMILY: a family that does not exist is ENOENT.
Result<> GenericFamilyExists(const char* family) {
  Message message(GENL_ID_CTRL, NLM_F_REQUEST | NLM_F_ACK);
  message.Append(genlmsghdr{.cmd = CTRL_CMD_GETFAMILY, .version = 1, .reserved = 0})
      .Text(CTRL_ATTR_FAMILY_NAME, family);
  return Transact(NETLINK_GENERIC, message.Finish(), family);
}

// A set of the kind that kube-proxy makes.
Result<> IpsetWorks() {
  if (unshare(CLONE_NEWNET) != 0) return ErrnoError("unshare", "net");
  constexpr uint16_t kCreate = (NFNL_SUBSYS_IPSET << 8) | 2;  // IPSET_CMD_CREATE
  Message message(kCreate, NLM_F_REQUEST | NLM_F_ACK);
  message.Append(nfgenmsg{.nfgen_family = AF_INET, .version = NFNETLINK_V0, .res_id = 0});
  const auto byte = [](uint8_t value) { return std::string(1, static_cast<char>(value)); };
  message.Attribute(1 /* PROTOCOL */, byte(6))
      .Text(2 /* SETNAME */, "selfcheck")
      .Text(3 /* TYPENAME */, "hash:ip,port");
  message.Attribute(4 /* REVISION */, byte(5)).Attribute(5 /* FAMILY */, byte(AF_INET));
  message.Close(message.Open(7 /* DATA */));
  return Transact(NETLINK_NETFILTER, message.Finish(), "hash:ip,port");
}

Result<> AddQdisc(const char* kind) {
  if (unshare(CLONE_NEWNET) != 0) return ErrnoError("unshare", "net");
  GCS_TRY(AddLink({"dummy"}, "probe", 0));
  Message message(RTM_NEWQDISC, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
  tcmsg header = {};
  header.tcm_ifindex = static_cast<int>(if_nametoindex("probe"));
  header.tcm_parent = kind == std::string_view("ingress") ? TC_H_INGRESS : TC_H_ROOT;
  message.Append(header).Text(TCA_KIND, kind);
  return Transact(NETLINK_ROUTE, message.Finish(), kind);
}

const Item kItems[] = {
    {"link-dummy", [] { return LinkKindWorks({"dummy"}); }},
    {"link-veth", [] { return LinkKindWorks({"veth"}); }},
    {"link-bridge", [] { return LinkKindWorks({"bridge"}); }},
    {"link-ifb", [] { return LinkKindWorks({"ifb"}); }},
    {"link-macvlan", [] { return LinkKindWorks({.kind = "macvlan", .on_parent = true}); }},
    {"link-ipvlan", [] { return LinkKindWorks({.kind = "ipvlan", .on_parent = true}); }},
    {"link-vlan", [] { return LinkKindWorks({"vlan", IFLA_VLAN_ID, 2, true}); }},
    {"link-vxlan", [] { return LinkKindWorks({"vxlan", IFLA_VXLAN_ID, 4}); }},
    {"link-tun", TunWorks},
    {"nftables", NftablesWorks},
    {"iptables", [] { return IptablesTablesExist(AF_INET, IPPROTO_IP, IPT_SO_GET_INFO); }},
    {"ip6tables", [] { return IptablesTablesExist(AF_INET6, IPPROTO_IPV6, IPT_SO_GET_INFO); }},
    {"ipset", IpsetWorks},
    {"ipvs", [] { return GenericFamilyExists("IPVS"); }},
    {"taskstats", [] { return GenericFamilyExists("TASKSTATS"); }},
    {"qdisc-fq-codel", [] { return AddQdisc("fq_codel"); }},
    {"qdisc-ingress", [] { return AddQdisc("ingress"); }},
};

}  // namespace

std::span<const Item> NetworkItems() { return kItems; }

}  // namespace gcs::selfcheck
