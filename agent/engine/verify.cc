// SPDX-License-Identifier: Apache-2.0
#include "engine/verify.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>

#include "base/resolve.h"

namespace gcs::engine {

int VerifyInode(int fd, const Inode& expected) noexcept {
  if (expected.type != 0 || expected.device != 0) {
    struct stat st;
    if (fstat(fd, &st) != 0) return -errno;
    if ((expected.type != 0 && (st.st_mode & S_IFMT) != expected.type) ||
        (expected.device != 0 && st.st_rdev != expected.device)) {
      return -expected.otherwise;
    }
  }
  if (expected.filesystem != 0 || expected.other_filesystem != 0) {
    struct statfs fs;
    if (fstatfs(fd, &fs) != 0) return -errno;
    const auto type = static_cast<unsigned long>(fs.f_type);
    if ((expected.filesystem != 0 && type != expected.filesystem) ||
        (expected.other_filesystem != 0 && type == expected.other_filesystem)) {
      return -expected.otherwise;
    }
  }
  return 0;
}

int OpenProcFile(int proc, const char* path, bool links) noexcept {
  return base::OpenResolved(
      proc, path, O_WRONLY, 0,
      RESOLVE_BENEATH | RESOLVE_NO_XDEV | (links ? RESOLVE_NO_MAGICLINKS : RESOLVE_NO_SYMLINKS));
}

}  // namespace gcs::engine
