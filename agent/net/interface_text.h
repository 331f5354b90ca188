// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "net/interface.h"
#include "net/namespace.h"

// Between the texts of interface.h and what rtnetlink has. Addresses are bytes in network order, 4 or 16.
namespace gcs::net {

struct Prefix {
  std::string address;
  uint8_t length = 0;
  bool operator==(const Prefix&) const = default;
};

// A unicast route of one interface.
struct RouteFields {
  Prefix destination;
  std::string gateway;  // empty: on link
  uint32_t metric = 0;
  std::string source;
  uint32_t table = 0;
  bool operator==(const RouteFields&) const = default;
};

// What ConfigureInterface is to bring about.
struct InterfacePlan {
  std::vector<Prefix> addresses;
  std::vector<RouteFields> routes;
  std::vector<Neighbor> neighbors;
  std::vector<Rule> rules;
};
// Checks all of it but the name and the MTU: EINVAL, E2BIG as in interface.h; also for what is there twice.
base::Result<InterfacePlan> ParseConfig(const InterfaceConfig& config);

// "02:15:5d:00:00:01" → 6 bytes; empty if it is none.
std::string ParseMac(const std::string& text);
// In lower case and without the braces it may have; empty if it is none.
std::string ParseGuid(const std::string& text);
std::string MacText(const std::string& bytes);
std::string AddressText(const std::string& bytes);
std::string PrefixText(const Prefix& prefix);

// `onlink`: the gateway is taken to be reachable whatever the addresses say.
Route MakeRoute(const RouteFields& fields, int index, bool onlink);
// Empty destination address: not a route that MakeRoute could make.
RouteFields ReadRoute(const Route& route);
RouteText ToText(const RouteFields& fields);

// Whether the address lies in the prefix.
bool Contains(const Prefix& prefix, const std::string& address);

}  // namespace gcs::net
