// SPDX-License-Identifier: Apache-2.0
#include "guest/device_events.h"

#include <sys/epoll.h>

#include <string>
#include <utility>

#include "base/log.h"
#include "storage/disk.h"

namespace gcs::guest {

base::Result<std::unique_ptr<DeviceEvents>> DeviceEvents::Start(base::Loop* loop, Journal* journal) {
  GCS_ASSIGN(storage::UeventSocket socket, storage::UeventSocket::Open());
  std::unique_ptr<DeviceEvents> events(new DeviceEvents(loop, journal, std::move(socket)));
  GCS_TRY(loop->Add(events->socket_.fd(), EPOLLIN, [self = events.get()](uint32_t) { self->OnReadable(); }));
  return events;
}

DeviceEvents::~DeviceEvents() { loop_.Remove(socket_.fd()); }

void DeviceEvents::OnReadable() {
  const auto whole = socket_.Drain([this](const storage::Uevent& event) {
    const bool added = event.action == "add";
    if (event.subsystem != "block" || (!added && event.action != "remove")) return;
    if (event.devtype != "disk" || !storage::IsDiskName(event.devname)) return;
    journal_.Append({}, {}, DeviceChanged{added, "/dev/" + std::string(event.devname)});
  });
  if (!whole) {
    base::LogError("device events", whole.error());
  } else if (!*whole) {
    base::Log(base::Level::kWarn, "device events were lost");
  }
}

}  // namespace gcs::guest
