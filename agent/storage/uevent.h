// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::storage {

// A uevent of the kernel (lib/kobject_uevent.c):
// "add@/devices/...\0ACTION=add\0DEVPATH=...\0SUBSYSTEM=block\0...". The views point into the parsed message;
// a key that the message lacks is empty.
struct Uevent {
  std::string_view action;     // "add", "remove", "change", "bind", ...
  std::string_view devpath;    // "/devices/..."
  std::string_view subsystem;  // "block"
  std::string_view devname;    // "sda"
  std::string_view devtype;    // "disk", "partition"
};

// Nothing for what is no kernel uevent (udev's own messages begin with "libudev").
std::optional<Uevent> ParseUevent(std::string_view message);

// A subscription to the kernel's uevents. Messages from anyone but the kernel are dropped.
class UeventSocket {
 public:
  static base::Result<UeventSocket> Open();

  [[nodiscard]] int fd() const { return fd_.get(); }

  // Reads all that is queued without blocking and calls `each` for every event. False: events were lost.
  base::Result<bool> Drain(const std::function<void(const Uevent&)>& each);
  // Reads all that is queued without blocking: true if an event of a block device was among it, or if events
  // were lost.
  base::Result<bool> DrainForBlock();

 private:
  explicit UeventSocket(base::Fd fd) : fd_(std::move(fd)) {}

  base::Fd fd_;
};

}  // namespace gcs::storage
