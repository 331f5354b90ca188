// SPDX-License-Identifier: Apache-2.0
// Texts of an interface's configuration, and of resolv.conf.
#include <doctest/doctest.h>
#include <linux/rtnetlink.h>

#include <cerrno>
#include <functional>

#include "net/interface_text.h"
#include "net/resolv_conf.h"

namespace gcs::test {
namespace {

using net::InterfaceConfig;
using net::InterfacePlan;
using net::RouteFields;
using net::RouteText;
using Texts = std::vector<std::string>;

constexpr const char* kMac = "02:15:5d:00:00:01";

std::string Nul(const char* text, const char* rest) { return std::string(text) + '\0' + rest; }

template <typename T>
void CheckError(const base::Result<T>& result, int err, const std::string& object) {
  REQUIRE_FALSE(result);
  CHECK(result.error().err == err);
  CHECK(result.error().object == object);
  CHECK(!result.error().step.empty());
}

void CheckBad(const InterfaceConfig& config, const std::string& object, int err = EINVAL) {
  CheckError(net::ParseConfig(config), err, object);
}

TEST_CASE("addresses are read strictly") {
  const auto plan = net::ParseConfig({.addresses = {"10.0.0.2/24", "10.0.0.2/32", "255.255.255.255/0",
                                                    "fd00::2/64", "::1.2.3.4/128", "FE80::1/10"}});
  REQUIRE(plan);
  REQUIRE(plan->addresses.size() == 6);
  CHECK(plan->addresses[0].address == std::string("\x0a\0\0\x02", 4));
  CHECK(plan->addresses[0].length == 24);
  CHECK(plan->addresses[2].length == 0);
  CHECK(plan->addresses[3].address == "\xfd" + std::string(14, '\0') + "\x02");
  CHECK(net::PrefixText(plan->addresses[5]) == "fe80::1/10");
  for (const std::string& bad : {std::string(),
                                 std::string("/"),
                                 std::string("10.0.0.2"),
                                 std::string("10.0.0.2/"),
                                 std::string("/24"),
                                 std::string("10.0.0.2/33"),
                                 std::string("10.0.0.2/024"),
                                 std::string("10.0.0.2/00"),
                                 std::string("10.0.0.2/+24"),
                                 std::string("10.0.0.2/-1"),
                                 std::string("10.0.0.2/ 24"),
                                 std::string("10.0.0.2/24 "),
                                 std::string(" 10.0.0.2/24"),
                                 std::string("10.0.0.2/0x18"),
                                 std::string("10.0.0.2/256"),
                                 std::string("10.0.0.2/99999999999999999999"),
                                 std::string("10.0.0.2/24/24"),
                                 std::string("10.0.0.2/255.255.255.0"),
                                 std::string("10.0.0/24"),
                                 std::string("10.0.0.256/24"),
                                 std::string("10.0.0.02/24"),
                                 std::string("0x0a.0.0.2/24"),
                                 std::string("localhost/8"),
                                 std::string("fd00::2/129"),
                                 std::string("fd00::2%eth0/64"),
                                 std::string("fd00:::2/64"),
                                 std::string("[fd00::2]/64"),
                                 std::string("fd00::2/64\n"),
                                 Nul("10.0.0.2", "/24"),
                                 Nul("10.0.0.2/24", ""),
                                 Nul("10.0.0.2/2", "4"),
                                 std::string("0.0.0.0/0"),
                                 std::string("::/0"),
                                 std::string("224.0.0.1/24"),
                                 std::string("239.1.2.3/32"),
                                 std::string("ff02::1/64")}) {
    CAPTURE(bad);
    CheckBad({.addresses = {"10.9.9.9/24", bad}}, "addresses[1].cidr");
  }
  CheckBad({.addresses = {"10.0.0.2/24", "10.0.0.3/24", "10.0.0.2/24"}}, "addresses[2].cidr");
  // What IPv6 has once, in whatever way it is written.
  CheckBad({.addresses = {"fd00::2/64", "fd00:0::2/128"}}, "addresses[1].cidr");
}

TEST_CASE("routes are read strictly") {
  const auto plan =
      net::ParseConfig({.addresses = {"10.0.0.2/24", "10.0.0.3/24", "fd00::2/64"},
                        .routes = {{.destination = "0.0.0.0/0", .gateway = "10.0.0.1"},
                                   {.destination = "10.128.0.0/9", .metric = 5, .source = "10.0.0.2"},
                                   {.destination = "::/0", .gateway = "fe80::1"},
                                   {.destination = "0.0.0.0/0", .metric = 1},
                                   {.destination = "0.0.0.0/0", .table = 100},
                                   {.destination = "10.1.0.0/16", .table = 100},
                                   {.destination = "::/0", .table = 4294967295}}});
  REQUIRE(plan);
  REQUIRE(plan->routes.size() == 7);
  CHECK(plan->routes[0] == RouteFields{.destination = {std::string(4, '\0'), 0},
                                       .gateway = std::string("\x0a\0\0\x01", 4),
                                       .table = RT_TABLE_MAIN});
  CHECK(plan->routes[1].metric == 5);
  CHECK(plan->routes[1].source == std::string("\x0a\0\0\x02", 4));
  CHECK(plan->routes[2].metric == 1024);
  CHECK(plan->rules == std::vector<net::Rule>{{std::string("\x0a\0\0\x02", 4), 100},
                                              {std::string("\x0a\0\0\x03", 4), 100},
                                              {"\xfd" + std::string(14, '\0') + "\x02", 4294967295}});
  const auto bad = [](const RouteText& route, const char* field) {
    CAPTURE(route.destination);
    CAPTURE(route.gateway);
    CAPTURE(route.source);
    CheckBad({.routes = {{.destination = "10.1.0.0/16"}, route}}, std::string("routes[1].") + field);
  };
  for (const char* destination : {"", "default", "10.0.0.0", "10.0.0.1/24", "11.0.0.0/7", "0.0.0.1/0",
                                  "fd00::1/64", "fd00::/7", "10.0.0.0/08", "10.1.0.0/33"}) {
    bad({.destination = destination}, "destination");
  }
  for (const char* gateway :
       {"10.0.0", "10.0.0.1/32", "gateway", "fd00::1", "0.0.0.0", "224.0.0.1", " 10.0.0.1"}) {
    bad({.destination = "0.0.0.0/0", .gateway = gateway}, "gateway");
  }
  for (const char* gateway : {"10.0.0.1", "::", "ff02::2", "fe80::1%eth0"}) {
    bad({.destination = "::/0", .gateway = gateway}, "gateway");
  }
  bad({.destination = "0.0.0.0/0", .gateway = Nul("10.0.0.1", "x")}, "gateway");
  for (const char* source : {"fd00::1", "10.0.0.1/32", "0.0.0.0", "x"}) {
    bad({.destination = "0.0.0.0/0", .source = source}, "source");
  }
  bad({.destination = "0.0.0.0/0", .table = RT_TABLE_LOCAL}, "table");
  // A table has room for one of two routes that differ in where they lead only.
  bad({.destination = "10.1.0.0/16", .gateway = "10.0.0.1"}, "destination");
  bad({.destination = "10.1.0.0/16", .table = RT_TABLE_MAIN}, "destination");
  CHECK(net::ParseConfig(
      {.routes = {{.destination = "10.1.0.0/16"}, {.destination = "10.1.0.0/16", .metric = 1}}}));
  CheckBad({.routes = {{.destination = "::/0"}, {.destination = "::/0", .metric = 1024}}},
           "routes[1].destination");
}

TEST_CASE("neighbours are read strictly") {
  const auto plan = net::ParseConfig({.neighbors = {{"10.0.0.9", kMac}, {"fd00::9", "0A:0b:FF:00:00:01"}}});
  REQUIRE(plan);
  CHECK(plan->neighbors[1].mac_address == std::string("\x0a\x0b\xff\0\0\x01", 6));
  for (const char* address : {"", "10.0.0.9/32", "10.0.0", "x", "0.0.0.0", "::", "ff02::1", "224.0.0.1"}) {
    CAPTURE(address);
    CheckBad({.neighbors = {{"10.0.0.1", kMac}, {address, kMac}}}, "neighbors[1].address");
  }
  for (const char* mac : {"", "02:15:5d:00:00", "02:15:5d:00:00:01:02", "2:15:5d:00:00:01",
                          "02-15-5d-00-00-01", "02:15:5d:00:00:0g", "02:15:5d:00:00:0x", "02:15:5d:00:00: 1",
                          "02:15:5d:00:00:-1", "02155d000001", "02:15:5d:00:00:01 ", "02:15:5d:00:00:+1"}) {
    CAPTURE(mac);
    CheckBad({.neighbors = {{"10.0.0.1", mac}}}, "neighbors[0].mac_address");
    CHECK(net::ParseMac(mac).empty());
  }
  CheckBad({.neighbors = {{"fd00::9", kMac}, {"fd00:0::9", "02:00:00:00:00:02"}}}, "neighbors[1].address");
}

TEST_CASE("there are limits") {
  const auto fill = [](auto& list, size_t count, const auto& make) {
    for (size_t i = 0; i < count; ++i) list.push_back(make(i));
  };
  const auto number = [](size_t i) { return std::to_string(i / 256) + "." + std::to_string(i % 256); };
  const auto address = [&](size_t i) { return "10.0." + number(i) + "/32"; };
  const auto route = [&](size_t i) { return RouteText{.destination = "10.1." + number(i) + "/32"}; };
  const auto neighbor = [&](size_t i) { return net::NeighborText{"10.2." + number(i), kMac}; };
  InterfaceConfig most;
  fill(most.addresses, 256, address);
  fill(most.routes, 4096, route);
  fill(most.neighbors, 4096, neighbor);
  CHECK(net::ParseConfig(most));
  InterfaceConfig config = most;
  config.addresses.push_back(address(256));
  CheckBad(config, "addresses", E2BIG);
  config = most;
  config.routes.push_back(route(4096));
  CheckBad(config, "routes", E2BIG);
  config = most;
  config.neighbors.push_back(neighbor(4096));
  CheckBad(config, "neighbors", E2BIG);
  // Each address gets a rule for each table.
  config = most;
  for (uint32_t i = 0; i < 16; ++i) config.routes[i].table = 1000 + i;
  CHECK(net::ParseConfig(config));
  for (uint32_t i = 0; i < 4096; ++i) config.routes[i].table = 1000 + i;
  CheckBad(config, "routes", E2BIG);
}

TEST_CASE("a route says the same after it was put into a message") {
  const auto plan = net::ParseConfig(
      {.routes = {{.destination = "0.0.0.0/0", .gateway = "10.0.0.1"},
                  {.destination = "10.128.0.0/9", .metric = 5, .source = "10.0.0.2", .table = 1000},
                  {.destination = "fd00::/8", .gateway = "fe80::1", .metric = 4294967295}}});
  REQUIRE(plan);
  for (const RouteFields& each : plan->routes) {
    CHECK(net::ReadRoute(net::MakeRoute(each, 3, false)) == each);
    CHECK(net::ReadRoute(net::MakeRoute(each, 4, true)) == each);
  }
  CHECK(net::ToText(plan->routes[1]) ==
        RouteText{.destination = "10.128.0.0/9", .metric = 5, .source = "10.0.0.2", .table = 1000});
  CHECK(net::ToText(plan->routes[0]).table == 0);
  CHECK(net::ReadRoute({}).destination.address.empty());
}

TEST_CASE("MAC addresses, GUIDs and prefixes") {
  CHECK(net::MacText(net::ParseMac("02:15:5D:00:00:Ff")) == "02:15:5d:00:00:ff");
  CHECK(net::MacText("").empty());
  constexpr const char* kGuid = "f8615163-df3e-46c5-913f-f2d2f965ed0e";
  for (const char* good :
       {kGuid, "{f8615163-df3e-46c5-913f-f2d2f965ed0e}", "F8615163-DF3E-46C5-913F-F2D2F965ED0E"}) {
    CHECK(net::ParseGuid(good) == kGuid);
  }
  for (const char* bad :
       {"", "{}", "f8615163-df3e-46c5-913f-f2d2f965ed0", "f8615163-df3e-46c5-913f-f2d2f965ed0eb",
        "{f8615163-df3e-46c5-913f-f2d2f965ed0e", "f8615163-df3e-46c5-913f-f2d2f965ed0g",
        "f8615163ddf3e-46c5-913f-f2d2f965ed0e", "{{f8615163-df3e-46c5-913f-f2d2f965ed0e}}"}) {
    CAPTURE(bad);
    CHECK(net::ParseGuid(bad).empty());
  }
  const std::string address("\x0a\x81\x02\x03", 4);
  CHECK(net::Contains({std::string("\x0a\x80\0\0", 4), 9}, address));
  CHECK_FALSE(net::Contains({std::string("\x0a\0\0\0", 4), 9}, address));
  CHECK(net::Contains({std::string(4, '\0'), 0}, address));
  CHECK(net::Contains({address, 32}, address));
  CHECK_FALSE(net::Contains({std::string("\x0a\x81\x02\x02", 4), 32}, address));
  CHECK_FALSE(net::Contains({std::string(16, '\0'), 0}, address));
  CHECK(net::AddressText(std::string(5, 'x')).empty());
}

TEST_CASE("resolv.conf has a line for each server, one for the domains and one for the options") {
  CHECK(net::ResolvConf({}, {}, {}) == "");
  CHECK(net::ResolvConf({"10.0.0.53", "fd00::53", "fe80::1%eth0"}, {"example.com", "a.b", "."},
                        {"ndots:5", "edns0"}) ==
        "nameserver 10.0.0.53\nnameserver fd00::53\nnameserver fe80::1%eth0\n"
        "search example.com a.b .\noptions ndots:5 edns0\n");
}

TEST_CASE("nothing gets into resolv.conf that is more than one word") {
  for (const std::string& bad :
       {std::string(), std::string("localhost"), std::string("10.0.0"), std::string("10.0.0.53\noptions x"),
        std::string("10.0.0.53 "), std::string("10.0.0.53#"), std::string("10.0.0.53%eth0"),
        std::string("fe80::1%"), std::string("fe80::1%a b"), std::string("fe80::1%a\nb"),
        std::string("fe80::1%sixteen_bytes_xx"), std::string("fd00::53/64"), Nul("10.0.0.53", ""),
        Nul("fe80::1%e", "x")}) {
    CAPTURE(bad);
    CheckError(net::ResolvConf({"10.0.0.1", bad}, {}, {}), EINVAL, "name_servers[1]");
  }
  for (const std::string& bad :
       {std::string(), std::string("a b"), std::string("a\nnameserver 10.6.6.6"), std::string("a\r"),
        std::string("a\t"), std::string("#a"), std::string("a;b"), std::string("\x7f"),
        std::string("\xc3\xa4"), std::string(256, 'a'), Nul("a", "b")}) {
    CAPTURE(bad);
    CheckError(net::ResolvConf({}, {"a", "b", bad}, {}), EINVAL, "search_domains[2]");
    CheckError(net::ResolvConf({}, {}, {bad}), EINVAL, "options[0]");
  }
  CHECK(net::ResolvConf(Texts(64, "10.0.0.1"), Texts(64, "a"), Texts(64, "o")));
  CheckError(net::ResolvConf(Texts(65, "10.0.0.1"), {}, {}), E2BIG, "name_servers");
  CheckError(net::ResolvConf({}, Texts(65, "a"), {}), E2BIG, "search_domains");
  CheckError(net::ResolvConf({}, {}, Texts(65, "o")), E2BIG, "options");
}

}  // namespace
}  // namespace gcs::test
