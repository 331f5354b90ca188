// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "storage/uevent.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view message(reinterpret_cast<const char*>(data), size);
  const auto event = gcs::storage::ParseUevent(message);
  if (!event) return 0;
  // Every part lies inside the message, and the two that the head repeats are never empty.
  for (const auto part : {event->action, event->devpath, event->subsystem, event->devname}) {
    if (part.empty()) continue;
    if (part.data() < message.data() || part.data() + part.size() > message.data() + message.size()) abort();
    if (part.find('\0') != std::string_view::npos) abort();
  }
  if (event->action.empty() || event->devpath.empty()) abort();
  return 0;
}
