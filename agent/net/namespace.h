// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::net {

// A network device.
struct Link {
  int index = 0;
  std::string name;
  bool up = false;  // as configured; whether it has a carrier is another matter
  uint32_t mtu = 0;
};

// An address of a device (rtnetlink(7), RTM_NEWADDR). Addresses are in network byte order, 4 or 16 bytes.
struct Address {
  int family = 0;  // AF_INET, AF_INET6
  std::string local;
  std::string peer;       // of a point-to-point link; else empty
  std::string broadcast;  // IPv4; empty: none
  uint8_t prefix_length = 0;
  uint8_t scope = 0;    // RT_SCOPE_*
  uint32_t flags = 0;   // IFA_F_*
  std::string label;    // IPv4: the device's name, or that with ":something" behind it
  uint32_t metric = 0;  // of the route to its prefix; 0: the kernel's
  uint32_t valid_s = UINT32_MAX, preferred_s = UINT32_MAX;  // from now; UINT32_MAX: for ever
};

// A route through one device, as the kernel tells it.
struct Route {
  std::string message;  // rtmsg and its attributes
};

// One network namespace. For one thread at a time; calls take as long as the kernel holds its own lock.
// Errors have the kernel's errno; `object` is a device's name or index.
class Namespace {
 public:
  // The calling thread's.
  static base::Result<Namespace> Own();
  static base::Result<Namespace> Of(base::Fd namespace_fd);
  Namespace(Namespace&&) noexcept;
  Namespace& operator=(Namespace&&) noexcept;
  ~Namespace();

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool Same(const Namespace& other) const;

  // ENODEV if there is none.
  base::Result<Link> FindLink(const std::string& name);
  base::Result<Link> FindLink(int index);
  base::Result<std::vector<Link>> Links();
  base::Result<> SetUp(int index, bool up);
  base::Result<> SetMtu(int index, uint32_t mtu);
  // To `target`, as `index` (EBUSY if it is taken there) and, if `name` is not empty, under that name, in
  // which the kernel puts a number for "%d". EEXIST if the name is taken: an error after which the device may
  // have been moved without being renamed.
  base::Result<> MoveLink(const Link& link, const Namespace& target, const std::string& name, int index);

  // In the order in which adding them gives the same order again.
  base::Result<std::vector<Address>> Addresses(int index);
  base::Result<> AddAddress(int index, const Address& address);
  // Flags, metric and lifetimes of one that is there.
  base::Result<> ChangeAddress(int index, const Address& address);

  // Those that were not made by the kernel with a device's addresses, and that have no other device; the most
  // specific first.
  base::Result<std::vector<Route>> Routes(int index);
  base::Result<> AddRoute(const Route& route);

 private:
  class Socket;
  Namespace(base::Fd fd, std::unique_ptr<Socket> socket);
  base::Result<> PutAddress(int index, const Address& address, int flags, std::string_view step);
  base::Fd fd_;
  std::unique_ptr<Socket> socket_;
};

}  // namespace gcs::net
