// SPDX-License-Identifier: Apache-2.0
#include "net/interface_text.h"

#include <arpa/inet.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>

#include <array>
#include <cctype>
#include <charconv>
#include <cstring>
#include <set>
#include <string_view>
#include <utility>

#include "net/namespace_socket.h"

namespace gcs::net {

using base::MakeError;
using base::Result;

namespace {

constexpr std::string_view kStep = "check interface";
constexpr size_t kMaxAddresses = 256;
constexpr size_t kMaxEntries = 4096;
constexpr uint32_t kMetricV6 = 1024;  // IP6_RT_PRIO_USER, what the kernel takes for 0

std::string ParseAddress(const std::string& text) {
  std::string bytes(sizeof(in6_addr), '\0');
  if (text.find('\0') != std::string::npos) return {};
  if (inet_pton(AF_INET, text.c_str(), bytes.data()) == 1) return bytes.substr(0, sizeof(in_addr));
  return inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1 ? bytes : std::string();
}

// The address of one host: not "any" nor that of a group. Empty: it is none.
std::string ParseHost(const std::string& text) {
  std::string bytes = ParseAddress(text);
  if (bytes.find_first_not_of('\0') == std::string::npos) return {};
  const auto first = static_cast<uint8_t>(bytes[0]);
  const bool group = bytes.size() == sizeof(in_addr) ? first >> 4 == 0xe : first == 0xff;
  return group ? std::string() : bytes;
}

// No address: it is none.
Prefix ParsePrefix(const std::string& text) {
  const size_t slash = text.find('/');
  if (slash == std::string::npos) return {};
  Prefix prefix{.address = ParseAddress(text.substr(0, slash))};
  const std::string_view digits = std::string_view(text).substr(slash + 1);
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), prefix.length);
  const bool number = error == std::errc() && end == digits.end() && (digits.size() == 1 || digits[0] != '0');
  return number && prefix.length <= 8 * prefix.address.size() ? prefix : Prefix{};
}

bool HasHostBits(const Prefix& prefix) {
  for (size_t bit = prefix.length; bit < 8 * prefix.address.size(); ++bit) {
    if ((static_cast<uint8_t>(prefix.address[bit / 8]) >> (7 - (bit % 8)) & 1) != 0) return true;
  }
  return false;
}

std::string At(const char* list, size_t i, const char* field) {
  return std::string(list) + "[" + std::to_string(i) + "]." + field;
}

Result<RouteFields> ParseRoute(const RouteText& text, size_t i) {
  const auto bad = [&](const char* field, const char* why) {
    return MakeError(EINVAL, kStep, At("routes", i, field), why);
  };
  RouteFields route{.destination = ParsePrefix(text.destination),
                    .metric = text.metric,
                    .table = text.table == 0 ? static_cast<uint32_t>(RT_TABLE_MAIN) : text.table};
  const size_t size = route.destination.address.size();
  if (size == 0) return bad("destination", "no network like 10.0.0.0/8");
  if (HasHostBits(route.destination)) return bad("destination", "has bits beyond its prefix length");
  if (!text.gateway.empty()) {
    route.gateway = ParseHost(text.gateway);
    if (route.gateway.size() != size) return bad("gateway", "no address of the destination's family");
  }
  if (!text.source.empty()) {
    route.source = ParseHost(text.source);
    if (route.source.size() != size) return bad("source", "no address of the destination's family");
  }
  if (route.table == RT_TABLE_LOCAL) return bad("table", "is the kernel's");
  if (size == sizeof(in6_addr) && route.metric == 0) route.metric = kMetricV6;
  return route;
}

// What the kernel, or a neighbour table, has room for only once is an error the second time.
Result<> Once(std::set<std::string>& seen, std::string key, const char* list, size_t i, const char* field) {
  if (seen.insert(std::move(key)).second) return {};
  return MakeError(EINVAL, kStep, At(list, i, field), "is there twice");
}

// IPv4 has an address with several prefixes, IPv6 has it once.
std::string KeyOf(const Prefix& prefix) {
  return prefix.address.size() == sizeof(in_addr) ? PrefixText(prefix) : prefix.address;
}

// A table has one route to a destination with the same metric.
std::string KeyOf(const RouteFields& route) {
  return PrefixText(route.destination) + " " + std::to_string(route.metric) + " " +
         std::to_string(route.table);
}

}  // namespace

Result<InterfacePlan> ParseConfig(const InterfaceConfig& config) {
  InterfacePlan plan;
  std::set<std::string> seen_addresses, seen_routes, seen_neighbors;
  if (config.addresses.size() > kMaxAddresses) return MakeError(E2BIG, kStep, "addresses", "more than 256");
  if (config.routes.size() > kMaxEntries) return MakeError(E2BIG, kStep, "routes", "more than 4096");
  if (config.neighbors.size() > kMaxEntries) return MakeError(E2BIG, kStep, "neighbors", "more than 4096");
  for (size_t i = 0; i < config.addresses.size(); ++i) {
    Prefix prefix = ParsePrefix(config.addresses[i]);
    if (ParseHost(AddressText(prefix.address)).empty())
      return MakeError(EINVAL, kStep, At("addresses", i, "cidr"), "no address like 10.0.0.2/24");
    GCS_TRY(Once(seen_addresses, KeyOf(prefix), "addresses", i, "cidr"));
    plan.addresses.push_back(std::move(prefix));
  }
  for (size_t i = 0; i < config.routes.size(); ++i) {
    GCS_ASSIGN(RouteFields route, ParseRoute(config.routes[i], i));
    GCS_TRY(Once(seen_routes, KeyOf(route), "routes", i, "destination"));
    plan.routes.push_back(std::move(route));
  }
  for (size_t i = 0; i < config.neighbors.size(); ++i) {
    Neighbor neighbor{ParseHost(config.neighbors[i].address), ParseMac(config.neighbors[i].mac_address)};
    if (neighbor.address.empty())
      return MakeError(EINVAL, kStep, At("neighbors", i, "address"), "no IP address");
    if (neighbor.mac_address.empty())
      return MakeError(EINVAL, kStep, At("neighbors", i, "mac_address"), "no address like 02:15:5d:00:00:01");
    GCS_TRY(Once(seen_neighbors, neighbor.address, "neighbors", i, "address"));
    plan.neighbors.push_back(std::move(neighbor));
  }
  // A table of its own is for what comes from the interface's addresses.
  std::set<std::pair<std::string, uint32_t>> seen_rules;
  for (const RouteFields& route : plan.routes) {
    if (route.table == RT_TABLE_MAIN || route.table == RT_TABLE_DEFAULT) continue;
    for (const Prefix& address : plan.addresses) {
      if (address.address.size() != route.destination.address.size()) continue;
      if (!seen_rules.emplace(address.address, route.table).second) continue;
      plan.rules.push_back({address.address, route.table});
    }
    if (plan.rules.size() > kMaxEntries)
      return MakeError(E2BIG, kStep, "routes", "more than 4096 rules for their tables");
  }
  return plan;
}

std::string ParseMac(const std::string& text) {
  constexpr size_t kBytes = 6;
  if (text.size() != 3 * kBytes - 1) return {};
  std::string bytes;
  for (size_t at = 0; at < text.size(); at += 3) {
    uint8_t byte = 0;
    const char* begin = text.data() + at;
    const auto [end, error] = std::from_chars(begin, begin + 2, byte, 16);
    if (error != std::errc() || end != begin + 2 || (at + 2 < text.size() && begin[2] != ':')) return {};
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

std::string ParseGuid(const std::string& text) {
  constexpr std::string_view kForm = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
  std::string guid = text;
  if (guid.starts_with('{') && guid.ends_with('}')) guid = guid.substr(1, guid.size() - 2);
  if (guid.size() != kForm.size()) return {};
  for (size_t i = 0; i < guid.size(); ++i) {
    const auto c = static_cast<unsigned char>(guid[i]);
    if (kForm[i] == '-' ? c != '-' : isxdigit(c) == 0) return {};
    guid[i] = static_cast<char>(tolower(c));
  }
  return guid;
}

std::string MacText(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    if (!text.empty()) text += ':';
    text += kDigits[static_cast<uint8_t>(byte) >> 4];
    text += kDigits[static_cast<uint8_t>(byte) & 15];
  }
  return text;
}

std::string AddressText(const std::string& bytes) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  const int family = bytes.size() == sizeof(in_addr) ? AF_INET : AF_INET6;
  if (bytes.size() != sizeof(in_addr) && bytes.size() != sizeof(in6_addr)) return {};
  return inet_ntop(family, bytes.data(), text.data(), text.size()) == nullptr ? std::string() : text.data();
}

std::string PrefixText(const Prefix& prefix) {
  return AddressText(prefix.address) + "/" + std::to_string(prefix.length);
}

Route MakeRoute(const RouteFields& fields, int index, bool onlink) {
  const bool v6 = fields.destination.address.size() == sizeof(in6_addr);
  rtmsg info{
      .rtm_family = static_cast<uint8_t>(v6 ? AF_INET6 : AF_INET),
      .rtm_dst_len = fields.destination.length,
      .rtm_table = RT_TABLE_UNSPEC,
      .rtm_protocol = RTPROT_STATIC,
      .rtm_scope = static_cast<uint8_t>(fields.gateway.empty() && !v6 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE),
      .rtm_type = RTN_UNICAST,
      .rtm_flags = onlink ? static_cast<unsigned>(RTNH_F_ONLINK) : 0};
  Message message = NewMessage(RTM_NEWROUTE, 0, info);
  const auto put = [&](int attribute, const std::string& bytes) {
    if (!bytes.empty()) Put(message, attribute, bytes.data(), bytes.size());
  };
  if (fields.destination.length > 0) put(RTA_DST, fields.destination.address);
  put(RTA_GATEWAY, fields.gateway);
  put(RTA_PREFSRC, fields.source);
  PutNumber(message, RTA_OIF, static_cast<uint32_t>(index));
  PutNumber(message, RTA_TABLE, fields.table);
  if (fields.metric != 0) PutNumber(message, RTA_PRIORITY, fields.metric);
  if (!message) return {};
  nlmsghdr* head = nlmsg_hdr(message.get());
  return {std::string(static_cast<const char*>(nlmsg_data(head)), static_cast<size_t>(nlmsg_datalen(head)))};
}

RouteFields ReadRoute(const Route& route) {
  rtmsg info{};
  if (route.message.size() < sizeof info) return {};
  memcpy(&info, route.message.data(), sizeof info);
  if (info.rtm_type != RTN_UNICAST || (info.rtm_family != AF_INET && info.rtm_family != AF_INET6)) return {};
  const size_t size = info.rtm_family == AF_INET ? sizeof(in_addr) : sizeof(in6_addr);
  RouteFields fields{.destination = {std::string(size, '\0'), info.rtm_dst_len}, .table = info.rtm_table};
  const auto* first = reinterpret_cast<const nlattr*>(route.message.data() + NLMSG_ALIGN(sizeof info));
  int left = static_cast<int>(route.message.size() - NLMSG_ALIGN(sizeof info));
  for (const nlattr* each = first; nla_ok(each, left) != 0; each = nla_next(each, &left)) {
    switch (nla_type(each)) {
      case RTA_DST:
        fields.destination.address = Bytes(each);
        break;
      case RTA_GATEWAY:
        fields.gateway = Bytes(each);
        break;
      case RTA_PREFSRC:
        fields.source = Bytes(each);
        break;
      case RTA_PRIORITY:
        fields.metric = Number<uint32_t>(each, 0);
        break;
      case RTA_TABLE:
        fields.table = Number<uint32_t>(each, 0);
        break;
      default:
        break;
    }
  }
  return fields;
}

RouteText ToText(const RouteFields& fields) {
  return {.destination = PrefixText(fields.destination),
          .gateway = AddressText(fields.gateway),
          .metric = fields.metric,
          .source = AddressText(fields.source),
          .table = fields.table == RT_TABLE_MAIN ? 0 : fields.table};
}

bool Contains(const Prefix& prefix, const std::string& address) {
  if (prefix.address.size() != address.size()) return false;
  const size_t whole = prefix.length / 8;
  if (prefix.address.compare(0, whole, address, 0, whole) != 0) return false;
  if (prefix.length % 8 == 0) return true;
  const int difference = static_cast<uint8_t>(prefix.address[whole]) ^ static_cast<uint8_t>(address[whole]);
  return difference >> (8 - prefix.length % 8) == 0;
}

}  // namespace gcs::net
