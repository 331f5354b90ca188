// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "net/namespace.h"

namespace gcs::net {

// What the kernel takes as a device's name: at most 15 bytes, not "." or "..", without "/", ":" and space.
bool ValidDeviceName(std::string_view name);
// The same for a new name, which may have one "%d" in it, for a number of the kernel's choice.
bool ValidDeviceTemplate(std::string_view name);

// Moves a device, under a new name if that is not empty, as `index` if that is free there: else that becomes
// another one. EEXIST if the name is taken: an error after which it may have been moved without its new name.
base::Result<> Relocate(Namespace& from, Namespace& to, const Link& link, const std::string& name,
                        int& index);

// Adds an address that the device has had elsewhere or before.
base::Result<> Readd(Namespace& to, int index, const Address& address);

// Network devices on their way from the calling thread's namespace into another one, which is held until this
// object ends, so that they can be taken back from there even when nobody is in it any more.
class DeviceMoves {
 public:
  // EINVAL if `target` is the thread's own namespace.
  static base::Result<DeviceMoves> Begin(base::Fd target);

  // Moves a device, under a new name if that is not empty, with the addresses that are permanent and of
  // global scope, and sets it up. EEXIST if the name is taken there. After an error the device may be on
  // either side, until TakeBack.
  base::Result<Link> Move(const std::string& name, const std::string& new_name);
  // The same, but the device arrives as the kernel moves it: down, without addresses.
  base::Result<Link> MoveBare(const std::string& name, const std::string& new_name);

  // Every device that has been moved gets back its place: name, index, addresses, state, routes. What can't
  // be had again is logged.
  void TakeBack();

 private:
  struct Moved {
    Link link;  // as it was
    std::vector<Address> addresses;
    std::vector<Route> routes;
    int index = 0;  // in the target
  };
  DeviceMoves(Namespace own, Namespace target) : own_(std::move(own)), target_(std::move(target)) {}
  base::Result<Link> Leave(Moved& moved, const std::string& name, const std::string& new_name);
  base::Result<> TakeBack(const Moved& moved);

  Namespace own_, target_;
  std::vector<Moved> moved_;
};

}  // namespace gcs::net
