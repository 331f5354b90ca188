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
  bool loopback = false;
  std::string mac_address;  // bytes
  std::string parent;       // the bus's name of the device behind it; empty: none, or a kernel before 5.14
  bool enslaved = false;    // part of another one, like the VF of a Hyper-V device
  uint64_t received_bytes = 0, sent_bytes = 0;  // since it was made
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

// A permanent entry of a neighbour table.
struct Neighbor {
  std::string address;      // bytes, 4 or 16
  std::string mac_address;  // bytes
  bool operator==(const Neighbor&) const = default;
};

// A policy rule of ours: what comes from `source` is routed by `table`.
struct Rule {
  std::string source;  // bytes, 4 or 16
  uint32_t table = 0;
  bool operator==(const Rule&) const = default;
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
  base::Result<> Rename(int index, const std::string& name);
  // To `target`, as `index` (EBUSY if it is taken there) and, if `name` is not empty, under that name, in
  // which the kernel puts a number for "%d". EEXIST if the name is taken: an error after which the device may
  // have been moved without being renamed.
  base::Result<> MoveLink(const Link& link, const Namespace& target, const std::string& name, int index);

  // A socket that becomes readable when a device comes or changes. What it says is of no use; it may be an
  // error (ENOBUFS) where much has changed.
  base::Result<base::Fd> WatchLinks();

  // In the order in which adding them gives the same order again.
  base::Result<std::vector<Address>> Addresses(int index);
  base::Result<> AddAddress(int index, const Address& address);
  base::Result<> RemoveAddress(int index, const Address& address);
  // Whether an IPv4 address is outlived by the secondary ones of its prefix.
  base::Result<bool> Promotes(int index);
  base::Result<> SetPromotes(int index, bool on);
  // Flags, metric and lifetimes of one that is there.
  base::Result<> ChangeAddress(int index, const Address& address);

  // Those that were not made by the kernel with a device's addresses, and that have no other device; the most
  // specific first.
  base::Result<std::vector<Route>> Routes(int index);
  base::Result<> AddRoute(const Route& route);
  base::Result<> RemoveRoute(const Route& route);

  base::Result<std::vector<Neighbor>> Neighbors(int index);
  base::Result<> AddNeighbor(int index, const Neighbor& neighbor);  // or changes it
  base::Result<> RemoveNeighbor(int index, const Neighbor& neighbor);

  // Only those that AddRule has made, in whatever life of the program: they carry a protocol number of their
  // own.
  base::Result<std::vector<Rule>> Rules();
  base::Result<> AddRule(const Rule& rule);
  base::Result<> RemoveRule(const Rule& rule);

 private:
  class Socket;
  Namespace(base::Fd fd, std::unique_ptr<Socket> socket);
  base::Result<> PutRoute(const Route& route, int type, int flags, std::string_view step);
  base::Result<> PutRule(const Rule& rule, int type, int flags, std::string_view step);
  base::Result<> PutAddress(int index, const Address& address, int flags, std::string_view step);
  base::Fd fd_;
  std::unique_ptr<Socket> socket_;
};

}  // namespace gcs::net
