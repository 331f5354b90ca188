// SPDX-License-Identifier: Apache-2.0
#include "net/device.h"

#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <ranges>

#include "base/log.h"

namespace gcs::net {

using base::Fd;
using base::MakeError;
using base::Result;

namespace {

// IPv4's labels begin with the name of the device.
std::string Relabel(const std::string& label, const std::string& name, const std::string& new_name) {
  if (label == name || !label.starts_with(name + ":")) return label == name ? new_name : label;
  std::string relabelled = new_name + label.substr(name.size());
  return relabelled.size() < IFNAMSIZ ? relabelled : new_name;
}

}  // namespace

bool ValidDeviceName(std::string_view name) {
  return !name.empty() && name.size() < IFNAMSIZ && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/: \t\n\v\f\r\0", 9)) == std::string_view::npos;
}

bool ValidDeviceTemplate(std::string_view name) {
  if (!ValidDeviceName(name)) return false;
  const size_t at = name.find('%');
  return at == std::string_view::npos ||
         (name.substr(at).starts_with("%d") && name.find('%', at + 1) == std::string_view::npos);
}

// The index is chosen beforehand: afterwards the device is known by nothing else. It keeps the one it has, if
// that is free.
Result<> Relocate(Namespace& from, Namespace& to, const Link& link, const std::string& name, int& index) {
  constexpr int kAttempts = 10;
  for (int attempt = 1;; ++attempt) {
    auto moved = from.MoveLink(link, to, name, index);
    if (moved || moved.error().err != EBUSY || attempt == kAttempts) return moved;
    GCS_ASSIGN(const std::vector<Link> links, to.Links());
    if (!links.empty()) index = std::ranges::max(links, {}, &Link::index).index + 1;
  }
}

// IPv6 is kept from looking for duplicates of it: the address
// has been this device's all the time, and would be of no use meanwhile. The flag for that is not the
// address's own.
Result<> Readd(Namespace& to, int index, const Address& address) {
  constexpr uint32_t kUnsure = IFA_F_NODAD | IFA_F_TENTATIVE | IFA_F_DADFAILED;
  if (address.family != AF_INET6 || (address.flags & kUnsure) != 0) return to.AddAddress(index, address);
  Address sure = address;
  sure.flags |= IFA_F_NODAD;
  GCS_TRY(to.AddAddress(index, sure));
  return to.ChangeAddress(index, address);
}

Result<DeviceMoves> DeviceMoves::Begin(Fd target) {
  GCS_ASSIGN(Namespace own, Namespace::Own());
  GCS_ASSIGN(Namespace other, Namespace::Of(std::move(target)));
  if (own.Same(other)) {
    return MakeError(EINVAL, "move network device", {}, "the network namespace is the runtime's own");
  }
  return DeviceMoves(std::move(own), std::move(other));
}

Result<Link> DeviceMoves::Leave(Moved& moved, const std::string& name, const std::string& new_name) {
  GCS_ASSIGN(moved.link, own_.FindLink(name));
  moved.index = moved.link.index;
  GCS_ASSIGN(moved.addresses, own_.Addresses(moved.index));
  GCS_ASSIGN(moved.routes, own_.Routes(moved.index));
  const std::string& wanted = new_name.empty() ? moved.link.name : new_name;
  if (target_.FindLink(wanted)) {
    return MakeError(EEXIST, "move network device", name, wanted + " exists in the network namespace");
  }
  auto relocated = Relocate(own_, target_, moved.link, new_name, moved.index);
  // One that could not be renamed has left nevertheless.
  if (relocated || !own_.FindLink(moved.link.index)) moved_.push_back(moved);
  GCS_TRY(relocated);
  return target_.FindLink(moved.index);
}

Result<Link> DeviceMoves::MoveBare(const std::string& name, const std::string& new_name) {
  Moved moved;
  return Leave(moved, name, new_name);
}

Result<Link> DeviceMoves::Move(const std::string& name, const std::string& new_name) {
  Moved moved;
  GCS_ASSIGN(Link there, Leave(moved, name, new_name));
  for (const Address& address : moved.addresses) {
    if ((address.flags & IFA_F_PERMANENT) == 0 || address.scope != RT_SCOPE_UNIVERSE) continue;
    Address kept = address;
    kept.label = Relabel(kept.label, moved.link.name, there.name);
    GCS_TRY(Readd(target_, there.index, kept));
  }
  GCS_TRY(target_.SetUp(there.index, true));
  there.up = true;
  return there;
}

Result<> DeviceMoves::TakeBack(const Moved& moved) {
  GCS_ASSIGN(const Link there, target_.FindLink(moved.index));
  int index = moved.link.index;
  GCS_TRY(Relocate(target_, own_, there, moved.link.name, index));
  Result<> first;
  const auto note = [&](const Result<>& result) {
    if (!result && first) first = result;
  };
  for (const Address& address : moved.addresses) {
    // The kernel makes temporary ones itself, and link-local ones (before we do, or not at all).
    if ((address.flags & IFA_F_TEMPORARY) != 0 && address.family == AF_INET6) continue;
    const auto added = Readd(own_, index, address);
    if (!added && added.error().err != EEXIST) note(added);
  }
  if (moved.link.up) note(own_.SetUp(index, true));
  if (index != moved.link.index) {
    if (!moved.routes.empty()) note(MakeError(EBUSY, "add route", moved.link.name, "the index has changed"));
    return first;
  }
  for (const Route& route : moved.routes) {
    const auto added = own_.AddRoute(route);
    if (!added && added.error().err != EEXIST) note(added);
  }
  return first;
}

void DeviceMoves::TakeBack() {
  for (const Moved& moved : moved_ | std::views::reverse) {
    const auto back = TakeBack(moved);
    if (!back) {
      base::Log(base::Level::kWarn, "a network device did not come back as it was",
                {{"device", moved.link.name}, {"error", back.error().ToString()}});
    }
  }
  moved_.clear();
}

}  // namespace gcs::net
