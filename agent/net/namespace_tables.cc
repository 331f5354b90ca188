// SPDX-License-Identifier: Apache-2.0
// Neighbours and policy rules.
#include <linux/fib_rules.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include "net/namespace.h"
#include "net/namespace_socket.h"
#include "net/netlink.h"

namespace gcs::net {

using base::Result;

namespace {

constexpr uint8_t kRuleProtocol =
    0x67;  // FRA_PROTOCOL: whose rule it is; the kernel and others have lower ones
constexpr uint32_t kRulePriority = 1000;

uint8_t FamilyOf(const std::string& address) { return address.size() == 4 ? AF_INET : AF_INET6; }

void ReadNeighbor(nlmsghdr* head, int index, std::vector<Neighbor>& neighbors) {
  const auto* info = Fixed<ndmsg>(head);
  if (info == nullptr || head->nlmsg_type != RTM_NEWNEIGH || info->ndm_ifindex != index ||
      info->ndm_state != NUD_PERMANENT || (info->ndm_family != AF_INET && info->ndm_family != AF_INET6)) {
    return;
  }
  const auto attributes = Parse<ndmsg, NDA_MAX + 1>(head);
  Neighbor neighbor{Bytes(attributes[NDA_DST]), Bytes(attributes[NDA_LLADDR])};
  if (!neighbor.address.empty() && !neighbor.mac_address.empty()) neighbors.push_back(std::move(neighbor));
}

void ReadRule(nlmsghdr* head, std::vector<Rule>& rules) {
  const auto* info = Fixed<fib_rule_hdr>(head);
  if (info == nullptr || head->nlmsg_type != RTM_NEWRULE) return;
  const auto attributes = Parse<fib_rule_hdr, FRA_MAX + 1>(head);
  if (Number<uint8_t>(attributes[FRA_PROTOCOL], 0) != kRuleProtocol) return;
  rules.push_back({Bytes(attributes[FRA_SRC]), Number<uint32_t>(attributes[FRA_TABLE], info->table)});
}

Message NeighborMessage(int type, int flags, int index, const Neighbor& neighbor) {
  Message message = NewMessage(
      type, flags,
      ndmsg{.ndm_family = FamilyOf(neighbor.address), .ndm_ifindex = index, .ndm_state = NUD_PERMANENT});
  Put(message, NDA_DST, neighbor.address.data(), neighbor.address.size());
  return message;
}

}  // namespace

Result<std::vector<Neighbor>> Namespace::Neighbors(int index) {
  std::vector<Neighbor> neighbors;
  for (const uint8_t family : {AF_INET, AF_INET6}) {
    const Message message = NewMessage(RTM_GETNEIGH, NLM_F_DUMP, ndmsg{.ndm_family = family});
    GCS_ASSIGN(std::vector<Neighbor> found,
               socket_->Ask<Neighbor>(message, "list neighbours", std::to_string(index),
                                      [&](nlmsghdr* head, auto& all) { ReadNeighbor(head, index, all); }));
    neighbors.insert(neighbors.end(), found.begin(), found.end());
  }
  return neighbors;
}

Result<> Namespace::AddNeighbor(int index, const Neighbor& neighbor) {
  Message message = NeighborMessage(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, index, neighbor);
  Put(message, NDA_LLADDR, neighbor.mac_address.data(), neighbor.mac_address.size());
  return socket_->Talk(message, "add neighbour", std::to_string(index));
}

Result<> Namespace::RemoveNeighbor(int index, const Neighbor& neighbor) {
  return socket_->Talk(NeighborMessage(RTM_DELNEIGH, 0, index, neighbor), "remove neighbour",
                       std::to_string(index));
}

Result<std::vector<Rule>> Namespace::Rules() {
  std::vector<Rule> rules;
  for (const uint8_t family : {AF_INET, AF_INET6}) {
    const Message message = NewMessage(RTM_GETRULE, NLM_F_DUMP, fib_rule_hdr{.family = family});
    auto found = socket_->Ask<Rule>(message, "list rules", {}, ReadRule);
    // A kernel without policy routing has none.
    if (!found && (found.error().err == EAFNOSUPPORT || found.error().err == EOPNOTSUPP)) continue;
    GCS_TRY(found);
    rules.insert(rules.end(), found->begin(), found->end());
  }
  return rules;
}

Result<> Namespace::AddRule(const Rule& rule) {
  return PutRule(rule, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, "add rule");
}

Result<> Namespace::RemoveRule(const Rule& rule) { return PutRule(rule, RTM_DELRULE, 0, "remove rule"); }

Result<> Namespace::PutRule(const Rule& rule, int type, int flags, std::string_view step) {
  Message message = NewMessage(type, flags,
                               fib_rule_hdr{.family = FamilyOf(rule.source),
                                            .src_len = static_cast<uint8_t>(8 * rule.source.size()),
                                            .action = FR_ACT_TO_TBL});
  Put(message, FRA_SRC, rule.source.data(), rule.source.size());
  PutNumber(message, FRA_TABLE, rule.table);
  PutNumber(message, FRA_PRIORITY, kRulePriority);
  Put(message, FRA_PROTOCOL, &kRuleProtocol, sizeof kRuleProtocol);
  return socket_->Talk(message, step, std::to_string(rule.table));
}

}  // namespace gcs::net
