// SPDX-License-Identifier: Apache-2.0
#include "base/resolve.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace gcs::base {

namespace {

// RESOLVE_IN_ROOT answers EAGAIN when a rename elsewhere raced with "..": openat2(2) says to try again.
constexpr int kTries = 128;

}  // namespace

int OpenResolved(int dir, const char* path, uint64_t flags, uint64_t mode, uint64_t resolve) noexcept {
  open_how how{.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
  for (int i = 0; i < kTries; ++i) {
    const long fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
    if (fd >= 0) return static_cast<int>(fd);
    if (errno != EAGAIN && errno != EINTR) return -errno;
  }
  return -EAGAIN;
}

}  // namespace gcs::base
