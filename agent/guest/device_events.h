// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "base/error.h"
#include "base/loop.h"
#include "guest/journal.h"
#include "storage/uevent.h"

namespace gcs::guest {

// Tells the journal of disks that come and go, from the kernel's uevents.
class DeviceEvents {
 public:
  // On the loop's thread, or before it runs. Both outlive the object.
  static base::Result<std::unique_ptr<DeviceEvents>> Start(base::Loop* loop, Journal* journal);
  ~DeviceEvents();
  DeviceEvents(const DeviceEvents&) = delete;
  DeviceEvents& operator=(const DeviceEvents&) = delete;

 private:
  DeviceEvents(base::Loop* loop, Journal* journal, storage::UeventSocket socket)
      : loop_(*loop), journal_(*journal), socket_(std::move(socket)) {}
  void OnReadable();

  base::Loop& loop_;
  Journal& journal_;
  storage::UeventSocket socket_;
};

}  // namespace gcs::guest
