// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

namespace gcs::host::vsock {

namespace {

base::Result<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  if (path.size() >= sizeof address.sun_path) return base::MakeError(ENAMETOOLONG, "unix socket", path);
  memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

}  // namespace

base::Result<base::Fd> ListenUnix(const std::string& path, int backlog) {
  GCS_ASSIGN(const sockaddr_un address, Address(path));
  base::Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return base::ErrnoError("socket", path);
  struct stat st;
  if (lstat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) unlink(path.c_str());
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return base::ErrnoError("bind", path);
  }
  if (listen(fd.get(), backlog) != 0) return base::ErrnoError("listen", path);
  return fd;
}

base::Result<base::Fd> ConnectUnix(const std::string& path) {
  GCS_ASSIGN(const sockaddr_un address, Address(path));
  base::Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return base::ErrnoError("socket", path);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return base::ErrnoError("connect", path);
  }
  return fd;
}

}  // namespace gcs::host::vsock
