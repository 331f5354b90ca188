// SPDX-License-Identifier: Apache-2.0
#include "engine/send_fd.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>

#include "base/fd.h"

namespace gcs::engine {

base::Result<> SendDescriptor(const std::string& path, std::string_view text, int fd, std::string_view step) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return base::MakeError(ENAMETOOLONG, step, path);
  memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const base::Fd connection(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!connection.valid() ||
      connect(connection.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return base::ErrnoError(step, path, "connect");
  }
  bool first = true;
  while (!text.empty()) {
    iovec iov{const_cast<char*>(text.data()), text.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    if (first) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(sizeof(int));
      memcpy(CMSG_DATA(part), &fd, sizeof fd);
    }
    const ssize_t n = sendmsg(connection.get(), &message, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::ErrnoError(step, path, "send");
    first = false;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

}  // namespace gcs::engine
