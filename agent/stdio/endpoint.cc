// SPDX-License-Identifier: Apache-2.0
#include "stdio/endpoint.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/paths.h"

namespace gcs::stdio {
namespace {

constexpr int kBusyPipeBytes = 1 << 20;
constexpr unsigned kNullMajor = 1;
constexpr unsigned kNullMinor = 3;

}  // namespace

base::Result<> Endpoint::Watch(uint32_t events) {
  GCS_TRY(host_->loop()->Add(fd_.get(), events | EPOLLET, [this](uint32_t got) {
    if ((got & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) can_read = true;
    if ((got & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0) can_write = true;
    if ((got & EPOLLERR) != 0) failed = true;
    host_->Pump();
  }));
  watched_ = true;
  return {};
}

void Endpoint::Close() {
  can_read = can_write = false;
  if (!fd_.valid()) return;
  if (watched_) host_->loop()->Remove(fd_.get());
  watched_ = false;
  fd_.Reset();
  host_->Closed(part_);
}

bool Endpoint::Recheck(bool read, bool write) {
  pollfd poll_fd{.fd = fd_.get(), .events = 0, .revents = 0};
  if (read) poll_fd.events |= POLLIN;
  if (write) poll_fd.events |= POLLOUT;
  if (poll(&poll_fd, 1, 0) < 0) return false;
  const bool over = (poll_fd.revents & (POLLHUP | POLLERR)) != 0;
  bool cleared = false;
  if (read && (poll_fd.revents & POLLIN) == 0 && !over) {
    can_read = false;
    cleared = true;
  }
  if (write && (poll_fd.revents & POLLOUT) == 0 && !over) {
    can_write = false;
    cleared = true;
  }
  return cleared;
}

base::Result<> MakeNonBlocking(int fd, std::string_view object) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return base::ErrnoError("fcntl F_GETFL", object);
  if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return base::ErrnoError("fcntl F_SETFL", object);
  if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) return base::ErrnoError("fcntl F_SETFD", object);
  return {};
}

base::Result<base::FdPair> MakeStage(std::string_view object) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return base::ErrnoError("pipe2", object);
  return base::FdPair{base::Fd(ends[0]), base::Fd(ends[1])};
}

base::Result<base::FdPair> MakePipe(uid_t uid, gid_t gid, std::string_view object) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoError("pipe2", object);
  base::FdPair pipe{base::Fd(ends[0]), base::Fd(ends[1])};
  // Both ends share one inode. Opening /dev/stdout goes through /proc/self/fd and checks its owner and mode
  // (0600).
  if ((uid != geteuid() || gid != getegid()) && fchown(ends[0], uid, gid) != 0) {
    return base::ErrnoError("fchown", object, "pipe to the process's user");
  }
  return pipe;
}

base::Result<base::Fd> OpenNull() {
  GCS_ASSIGN(base::Fd null, base::OpenFile("/dev/null", O_RDWR | O_CLOEXEC));
  struct stat info{};
  if (fstat(null.get(), &info) != 0) return base::ErrnoError("fstat", "/dev/null");
  if (!S_ISCHR(info.st_mode) || info.st_rdev != makedev(kNullMajor, kNullMinor)) {
    return base::MakeError(ENODEV, "check device", "/dev/null", "not character device 1:3");
  }
  return null;
}

void EnlargePipe(int fd) {
  // Refused when pipe-max-size is lower for this user; the default size works as well, only slower.
  [[maybe_unused]] const int size = fcntl(fd, F_SETPIPE_SZ, kBusyPipeBytes);
}

}  // namespace gcs::stdio
