// SPDX-License-Identifier: Apache-2.0
// Kernel parameters, of namespaces of the test's own, and what their change means to spare network
// namespaces.
#include <doctest/doctest.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <exception>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "engine/network_pool.h"
#include "guest/sysctl.h"

namespace gcs::test {
namespace {

using guest::Sysctls;

// In namespaces that end with the thread.
void InNamespaces(const std::function<void()>& act) {
  std::exception_ptr failed;  // of a REQUIRE, which ends the test case and not the program
  std::thread([&] {
    try {
      REQUIRE(unshare(CLONE_NEWNET | CLONE_NEWUTS) == 0);
      act();
    } catch (...) {
      failed = std::current_exception();
    }
  }).join();
  if (failed) std::rethrow_exception(failed);
}

TEST_CASE("sysctls are set, then read, by either kind of name") {
  InNamespaces([] {
    int changes = 0;
    Sysctls sysctls([&] { ++changes; });
    const auto values =
        sysctls.Apply({{"kernel.hostname", "by-sysctl"}}, {"kernel/hostname", "kernel.ostype"});
    REQUIRE_MESSAGE(values, values.error().ToString());
    CHECK(*values ==
          std::map<std::string, std::string>{{"kernel/hostname", "by-sysctl"}, {"kernel.ostype", "Linux"}});
    CHECK(changes == 0);
    const auto forward = sysctls.Apply({{"net/ipv4/ip_forward", "1"}}, {"net.ipv4.ip_forward"});
    REQUIRE_MESSAGE(forward, forward.error().ToString());
    CHECK(forward->at("net.ipv4.ip_forward") == "1");
    CHECK(changes == 1);
  });
}

TEST_CASE("an empty value is a value") {
  InNamespaces([] {
    Sysctls sysctls([] {});
    REQUIRE(sysctls.Apply({{"kernel.domainname", "example.org"}}, {}));
    const auto values = sysctls.Apply({{"kernel.domainname", ""}}, {"kernel.domainname"});
    REQUIRE_MESSAGE(values, values.error().ToString());
    CHECK(values->at("kernel.domainname").empty());
  });
}

TEST_CASE("a set that fails half way leaves the former values, and names the one that failed") {
  InNamespaces([] {
    int changes = 0;
    Sysctls sysctls([&] { ++changes; });
    REQUIRE(sysctls.Apply({{"kernel.hostname", "former"}, {"net.ipv4.conf.all.log_martians", "1"}}, {}));
    changes = 0;
    const auto failed = sysctls.Apply({{"kernel.hostname", "later"},
                                       {"net.ipv4.conf.all.log_martians", "0"},
                                       {"net.ipv4.ip_default_ttl", "999"},
                                       {"net.ipv4.ip_forward", "1"}},
                                      {});
    REQUIRE_FALSE(failed);
    CHECK(failed.error().err == EINVAL);
    CHECK(failed.error().object == "net.ipv4.ip_default_ttl");
    CHECK(failed.error().message.empty());
    CHECK(changes == 1);  // namespaces made meanwhile have what was written back
    const auto values =
        sysctls.Apply({}, {"kernel.hostname", "net.ipv4.conf.all.log_martians", "net.ipv4.ip_forward"});
    REQUIRE_MESSAGE(values, values.error().ToString());
    CHECK(values->at("kernel.hostname") == "former");
    CHECK(values->at("net.ipv4.conf.all.log_martians") == "1");
    CHECK(values->at("net.ipv4.ip_forward") == "0");
  });
}

TEST_CASE("nothing is set if one of the names is none, or can't be written") {
  InNamespaces([] {
    Sysctls sysctls([] {});
    REQUIRE(sysctls.Apply({{"kernel.hostname", "former"}}, {}));
    const auto missing = sysctls.Apply({{"kernel.hostname", "later"}}, {"kernel.no_such"});
    REQUIRE_FALSE(missing);
    CHECK(missing.error().err == ENOENT);
    CHECK(missing.error().object == "kernel.no_such");
    const auto fixed = sysctls.Apply({{"kernel.hostname", "later"}, {"kernel.ostype", "Other"}}, {});
    REQUIRE_FALSE(fixed);
    CHECK(fixed.error().err == EACCES);
    CHECK(fixed.error().object == "kernel.ostype");
    const auto directory = sysctls.Apply({{"kernel.hostname", "later"}}, {"kernel"});
    REQUIRE_FALSE(directory);
    CHECK(directory.error().err == EISDIR);
    CHECK(sysctls.Apply({}, {"kernel.hostname"})->at("kernel.hostname") == "former");
  });
}

TEST_CASE("what is write-only is set, though it has no former value") {
  InNamespaces([] {
    Sysctls sysctls([] {});
    // Of this network namespace: it has no routes to forget.
    const auto set = sysctls.Apply({{"net.ipv4.route.flush", "1"}}, {});
    CHECK_MESSAGE(set, set.error().ToString());
    const auto read = sysctls.Apply({}, {"net.ipv4.route.flush"});
    REQUIRE_FALSE(read);
    CHECK(read.error().object == "net.ipv4.route.flush");
  });
}

int64_t MadeAtNs(const base::Fd& network) {
  struct stat st{};
  REQUIRE(fstat(network.get(), &st) == 0);
  return st.st_ctim.tv_sec * 1'000'000'000 + st.st_ctim.tv_nsec;
}

TEST_CASE("after Clear no spare network namespace is older") {
  engine::NetworkPool pool(8);
  const auto take = [&] {
    for (int i = 0; i < 1000; ++i) {
      if (base::Fd taken = pool.Take()) return taken;
      usleep(10'000);
    }
    FAIL("no spare network namespace within 10 s");
    return base::Fd();
  };
  take();
  usleep(200'000);  // the pool is full again, and older than the clock's grain
  timespec now{};
  REQUIRE(clock_gettime(CLOCK_REALTIME_COARSE, &now) == 0);
  pool.Clear();
  for (int i = 0; i < 8; ++i) CHECK(MadeAtNs(take()) >= now.tv_sec * 1'000'000'000 + now.tv_nsec);
}

}  // namespace
}  // namespace gcs::test
