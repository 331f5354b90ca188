// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::net {

// What an interface is to look like and looks like, in the words of gcs/v1/network.proto. Texts that can't be
// read are EINVAL, object: the field ("addresses[1].cidr", "routes[0].gateway").

struct InterfaceSelect {
  // Of kVmbusGuid the value is a part of the path of /sys/class/net/<name>/device. MAC addresses and GUIDs in
  // any case, these with or without braces.
  enum class By : uint8_t { kName, kMacAddress, kVmbusGuid };
  By by = By::kName;
  std::string value;
};

struct RouteText {
  std::string destination;  // "0.0.0.0/0"
  std::string gateway;      // empty: on link
  uint32_t metric = 0;      // 0: the kernel's default
  std::string source;       // empty: none
  uint32_t table = 0;       // 0: main
  bool operator==(const RouteText&) const = default;
};

struct NeighborText {
  std::string address;
  std::string mac_address;
  bool operator==(const NeighborText&) const = default;
};

struct InterfaceConfig {
  std::string name;                    // in its namespace; empty: unchanged
  uint32_t mtu = 0;                    // 0: unchanged
  std::vector<std::string> addresses;  // "10.0.0.2/24"; at most 256
  std::vector<RouteText> routes;       // at most 4096, like the next
  std::vector<NeighborText> neighbors;
};

struct InterfaceState {
  std::string name;
  uint32_t index = 0;
  std::string mac_address;  // empty for one without
  uint32_t mtu = 0;
  bool up = false;
  std::vector<std::string> addresses;
  std::vector<RouteText> routes;
  std::vector<NeighborText> neighbors;
  uint64_t received_bytes = 0, sent_bytes = 0;
  bool hardware = false;  // a device of a bus is behind it: not one that a container can have made
};

struct Patience {
  int64_t deadline_ns = 0;
  int cancel_fd = -1;  // readable: the caller has gone
};

// Makes an interface look as described in `target` (a network namespace; invalid: the caller's own), with
// nothing that is not described but link-local addresses and what the kernel adds to an address by itself. It
// is looked for there, then in the caller's own, from where it is moved, and waited for if it is in neither.
// What is there already stays untouched. After an error it is where and as it was.
//
// ETIMEDOUT, ECANCELED: it has not come. ENOTUNIQ: there are two with this MAC address. EEXIST: the new name
// is taken. E2BIG: too many of something.
base::Result<InterfaceState> ConfigureInterface(const InterfaceSelect& select, const base::Fd& target,
                                                const InterfaceConfig& config, const Patience& patience);

// Takes away what ConfigureInterface gave it, sets it down and moves it from `from` to the caller's own
// namespace, if that is another. ENODEV if it is not there.
base::Result<> RemoveInterface(const InterfaceSelect& select, const base::Fd& from);

// By index.
base::Result<std::vector<InterfaceState>> ListInterfaces(const base::Fd& in);

}  // namespace gcs::net
