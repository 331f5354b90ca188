// SPDX-License-Identifier: Apache-2.0
// What the agent does to the VM as a whole on the host's word.
#include <string>

#include "vm/vm_support.h"

namespace gcs::test {
namespace {

host::CallResult<v1::SysctlResponse> SetSysctl(const std::string& name, const std::string& value) {
  v1::SysctlRequest request;
  (*request.mutable_set())[name] = value;
  request.add_get(name);
  return TestVm::Get().client().Call(request);
}

TEST_CASE("a sysctl of the VM's network is what containers made afterwards begin with") {
  constexpr char kName[] = "net.ipv4.conf.default.log_martians";
  // The pool has namespaces from before the change.
  const std::vector<std::string> show = {"cat", "/proc/sys/net/ipv4/conf/default/log_martians"};
  CHECK(RunToEnd(show).out == "0\n");
  for (const char* value : {"1", "0"}) {
    const auto set = SetSysctl(kName, value);
    REQUIRE_MESSAGE(set, Why(set));
    CHECK(set->values().at(kName) == value);
    for (int i = 0; i < 3; ++i) CHECK(RunToEnd(show).out == std::string(value) + "\n");
  }
}

TEST_CASE("a sysctl that can't be set is named, and those before it are as they were") {
  v1::SysctlRequest request;
  (*request.mutable_set())["kernel.panic"] = "77";
  (*request.mutable_set())["net.ipv4.ip_default_ttl"] = "999";
  const auto set = TestVm::Get().client().Call(request);
  REQUIRE_FALSE(set);
  CHECK(set.error().code == 3);  // INVALID_ARGUMENT
  CHECK(set.error().ToString().find("net.ipv4.ip_default_ttl") != std::string::npos);
  v1::SysctlRequest read;
  read.add_get("kernel.panic");
  const auto values = TestVm::Get().client().Call(read);
  REQUIRE_MESSAGE(values, Why(values));
  CHECK(values->values().at("kernel.panic") != "77");
}

}  // namespace
}  // namespace gcs::test
