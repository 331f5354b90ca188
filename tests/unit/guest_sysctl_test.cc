// SPDX-License-Identifier: Apache-2.0
#include "guest/sysctl.h"

#include <doctest/doctest.h>

#include <string>

namespace {

using gcs::guest::SysctlPath;

TEST_CASE("a sysctl's name is a path, or has dots for slashes: the first of the two decides") {
  CHECK(SysctlPath("net.ipv4.ip_forward") == "net/ipv4/ip_forward");
  CHECK(SysctlPath("net/ipv4/ip_forward") == "net/ipv4/ip_forward");
  CHECK(SysctlPath("net/ipv4/conf/eth0.100/forwarding") == "net/ipv4/conf/eth0.100/forwarding");
  CHECK(SysctlPath("net.ipv4.conf.eth0/100.forwarding") == "net/ipv4/conf/eth0.100/forwarding");
  CHECK(SysctlPath("single") == "single");
  CHECK(SysctlPath(std::string(255, 'x')).has_value());
}

TEST_CASE("a name that could lead elsewhere is refused and named") {
  for (const std::string& name :
       {std::string(), std::string("/kernel/version"), std::string("kernel/../version"), std::string(".."),
        std::string("kernel//version"), std::string("kernel..version"), std::string("kernel."),
        std::string("kernel/"), std::string("./kernel"), std::string("kernel/./version"),
        std::string("net.ipv4.//.x"), std::string("kernel.a b"), std::string("kernel.\xc3\xa4"),
        std::string("kernel.a\0b", 10), std::string("kernel\nversion")}) {
    CAPTURE(name);
    const auto path = SysctlPath(name);
    REQUIRE_FALSE(path);
    CHECK(path.error().err == EINVAL);
    CHECK(path.error().object == name);
  }
  CHECK(SysctlPath(std::string(256, 'x')).error().err == EINVAL);
}

TEST_CASE("values of two lines, too long ones and too many names are refused before anything is opened") {
  int changes = 0;
  gcs::guest::Sysctls sysctls([&] { ++changes; });
  for (const std::string& value : {std::string("1\n2"), std::string("1\0", 2), std::string(4095, '1')}) {
    const auto applied = sysctls.Apply({{"net.ipv4.ip_forward", value}}, {});
    REQUIRE_FALSE(applied);
    CHECK(applied.error().err == EINVAL);
    CHECK(applied.error().object == "net.ipv4.ip_forward");
  }
  CHECK(sysctls.Apply({}, std::vector<std::string>(257, "kernel.version")).error().err == EINVAL);
  CHECK(changes == 0);
}

}  // namespace
