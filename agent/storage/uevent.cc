// SPDX-License-Identifier: Apache-2.0
#include "storage/uevent.h"

#include <linux/netlink.h>
#include <sys/socket.h>

#include <array>
#include <utility>

namespace gcs::storage {

namespace {

constexpr uint32_t kKernelGroup = 1;  // udev repeats the events in group 2
// UEVENT_BUFFER_SIZE (2048) plus the head line bounds a message of the kernel.
constexpr size_t kMessageSize = 8192;

// Cuts the next NUL-terminated string off `rest`. The last one may lack its terminator.
std::string_view NextString(std::string_view& rest) {
  const size_t end = rest.find('\0');
  const std::string_view head = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return head;
}

}  // namespace

std::optional<Uevent> ParseUevent(std::string_view message) {
  const std::string_view head = NextString(message);
  const size_t at = head.find('@');
  if (at == std::string_view::npos || at == 0 || at + 1 == head.size() || head[at + 1] != '/')
    return std::nullopt;

  Uevent event;
  const std::array<std::pair<std::string_view, std::string_view*>, 5> keys{{
      {"ACTION", &event.action},
      {"DEVPATH", &event.devpath},
      {"SUBSYSTEM", &event.subsystem},
      {"DEVNAME", &event.devname},
      {"DEVTYPE", &event.devtype},
  }};
  while (!message.empty()) {
    const std::string_view pair = NextString(message);
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos) continue;
    for (const auto& [key, value] : keys) {
      if (pair.substr(0, equals) == key) *value = pair.substr(equals + 1);
    }
  }
  // The head repeats what the keys say; a message in which they differ is not the kernel's.
  if (event.action != head.substr(0, at) || event.devpath != head.substr(at + 1)) return std::nullopt;
  return event;
}

base::Result<UeventSocket> UeventSocket::Open() {
  base::Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT));
  if (!fd) return base::ErrnoError("socket", "NETLINK_KOBJECT_UEVENT");
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = kKernelGroup;
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return base::ErrnoError("bind", "NETLINK_KOBJECT_UEVENT");
  }
  return UeventSocket(std::move(fd));
}

base::Result<bool> UeventSocket::DrainForBlock() {
  bool block = false;
  GCS_ASSIGN(const bool whole, Drain([&block](const Uevent& event) {
               if (event.subsystem == "block") block = true;
             }));
  return block || !whole;  // of what was lost the caller has to look whatever it said
}

base::Result<bool> UeventSocket::Drain(const std::function<void(const Uevent&)>& each) {
  bool whole = true;
  for (;;) {
    std::array<char, kMessageSize> buffer;
    sockaddr_nl from{};
    socklen_t from_size = sizeof from;
    const ssize_t n =
        recvfrom(fd_.get(), buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &from_size);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return whole;
      if (errno == ENOBUFS) {
        whole = false;
        continue;
      }
      return base::ErrnoError("recvfrom", "NETLINK_KOBJECT_UEVENT");
    }
    if (from.nl_pid != 0) continue;  // not the kernel
    const auto event = ParseUevent({buffer.data(), static_cast<size_t>(n)});
    if (event) each(*event);
  }
}

}  // namespace gcs::storage
