// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/fd.h"
#include "net/namespace.h"

namespace gcs::test {

// The calling thread is in a network namespace of its own for as long as this lives, so that nothing of the
// machine's network changes. This machine's kernel has no dummy devices; devices here are ends of veth pairs.
class PrivateNetwork {
 public:
  PrivateNetwork() : home_(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
    REQUIRE(home_.valid());
    REQUIRE(unshare(CLONE_NEWNET) == 0);
  }
  ~PrivateNetwork() { CHECK(setns(home_.get(), CLONE_NEWNET) == 0); }
  PrivateNetwork(const PrivateNetwork&) = delete;
  PrivateNetwork& operator=(const PrivateNetwork&) = delete;

 private:
  base::Fd home_;
};

// What a shell prints whose `ip` is busybox's.
inline std::string Shell(const std::string& script) {
  FILE* pipe = popen(("ip() { busybox ip \"$@\"; }; set -e; { " + script + "; } 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string text;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) text.append(buffer, n);
  const int status = pclose(pipe);
  CHECK_MESSAGE(status == 0, script << ": " << text);
  return text;
}

// The devices, addresses and routes of the thread's namespace. Whether a device has a carrier, and what the
// kernel makes of its own accord with that, is told later than the call that changed it returns: both are
// left out.
inline std::string NetworkState() {
  return Shell(
      "ip link | sed 's/NO-CARRIER,//; s/,LOWER_UP//; s/,M-DOWN//'; ip -4 addr | sed /mtu/d; ip -4 route;"
      "ip -6 addr show scope global | sed /mtu/d; ip -6 route | sed '/fe80/d; /ff00/d' | sort");
}

// Waits until the kernel has looked for duplicates of IPv6 addresses.
inline void SettleNetwork() {
  for (int i = 0; i < 500 && Shell("ip -6 addr").find("tentative") != std::string::npos; ++i) usleep(10'000);
}

// A pair whose ends are `name` and veth0, or the next number that is free.
inline void MakeDevice(const std::string& name) { Shell("ip link add " + name + " type veth"); }

// The thread's network namespace.
inline base::Fd OwnFd() { return base::Fd(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)); }

// Two namespaces: the thread is in the first.
struct Two {
  base::Fd second_fd;
  PrivateNetwork first;
  Two() {
    {
      const PrivateNetwork second;
      second_fd = OwnFd();
    }
  }
  [[nodiscard]] base::Fd Second() const { return base::Fd(fcntl(second_fd.get(), F_DUPFD_CLOEXEC, 3)); }
  // What `act` returns in the second.
  template <typename Act>
  auto There(Act act) const {
    const base::Fd here = OwnFd();
    REQUIRE(setns(second_fd.get(), CLONE_NEWNET) == 0);
    auto result = act();
    REQUIRE(setns(here.get(), CLONE_NEWNET) == 0);
    return result;
  }
  [[nodiscard]] std::string ShellThere(const std::string& script) const {
    return There([&] { return Shell(script); });
  }
};

template <typename T>
T Good(base::Result<T> result) {
  REQUIRE_MESSAGE(result, result.error().ToString());
  return std::move(*result);
}

}  // namespace gcs::test
