// SPDX-License-Identifier: Apache-2.0
#include <dirent.h>
#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <climits>
#include <cstring>

#include "engine/child.h"

namespace gcs::engine {

namespace {

constexpr int kMaxDepth = 64;  // each level holds two descriptors and some kilobytes of stack

// As getdents64(2) writes it.
struct Entry {
  uint64_t inode;
  int64_t offset;
  unsigned short length;
  unsigned char type;
  char name[];
};

// A file system that knows no attributes of that kind keeps none.
int CopyAttributes(int from, int to) noexcept {
  char names[4096];
  const ssize_t length = flistxattr(from, names, sizeof names);
  if (length < 0) return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -errno;
  for (const char* name = names; name < names + length; name += strlen(name) + 1) {
    char value[4096];
    const ssize_t size = fgetxattr(from, name, value, sizeof value);
    if (size < 0) return -errno;
    if (fsetxattr(to, name, value, static_cast<size_t>(size), 0) != 0 && errno != EOPNOTSUPP &&
        errno != EPERM) {
      return -errno;
    }
  }
  return 0;
}

int CopyBytes(int from, int to) noexcept {
  for (;;) {
    const ssize_t n = sendfile(to, from, nullptr, 1 << 30);
    if (n == 0) return 0;
    if (n < 0 && errno != EINTR) return -errno;
  }
}

// Owner, mode and times of the open file `to`. The mode comes after the owner, which takes set-id bits away.
int CopyMetadata(const struct stat& st, int from, int to) noexcept {
  if (fchown(to, st.st_uid, st.st_gid) != 0 || fchmod(to, st.st_mode & 07777) != 0) return -errno;
  const int rc = CopyAttributes(from, to);
  if (rc < 0) return rc;
  const timespec times[2] = {st.st_atim, st.st_mtim};
  return futimens(to, times) == 0 ? 0 : -errno;
}

int CopyDirectory(int from, int to, int depth) noexcept;

int CopyEntry(int from, int to, const char* name, int depth) noexcept {
  struct stat st;
  if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) != 0) return -errno;
  if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) {
    const bool directory = S_ISDIR(st.st_mode);
    const int source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (source < 0) return -errno;
    // What was looked at may have been exchanged: the type counts that was opened.
    int rc = fstat(source, &st) != 0 ? -errno : 0;
    if (rc == 0 && (S_ISDIR(st.st_mode) != directory || (!directory && !S_ISREG(st.st_mode)))) rc = -ESTALE;
    if (rc == 0 && directory && mkdirat(to, name, 0700) != 0) rc = -errno;
    const int copy = rc != 0 ? -1
                             : openat(to, name,
                                      directory ? O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
                                                : O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                                      0600);
    if (rc == 0 && copy < 0) rc = -errno;
    if (rc == 0) rc = directory ? CopyDirectory(source, copy, depth) : CopyBytes(source, copy);
    if (rc == 0) rc = CopyMetadata(st, source, copy);
    if (copy >= 0) close(copy);
    close(source);
    return rc;
  }
  if (S_ISLNK(st.st_mode)) {
    char target[PATH_MAX];
    const ssize_t length = readlinkat(from, name, target, sizeof target - 1);
    if (length < 0) return -errno;
    target[length] = '\0';
    if (symlinkat(target, to, name) != 0) return -errno;
  } else if (mknodat(to, name, st.st_mode, st.st_rdev) != 0) {
    return -errno;
  }
  return fchownat(to, name, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : -errno;
}

int CopyDirectory(int from, int to, int depth) noexcept {
  if (depth == 0) return -ELOOP;
  alignas(Entry) char buffer[4096];
  for (;;) {
    const long length = syscall(SYS_getdents64, from, buffer, sizeof buffer);
    if (length < 0) return -errno;
    if (length == 0) return 0;
    for (long at = 0; at < length;) {
      const auto* entry = reinterpret_cast<const Entry*>(buffer + at);
      at += entry->length;
      if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) continue;
      const int rc = CopyEntry(from, to, entry->name, depth - 1);
      if (rc < 0) return rc;
    }
  }
}

}  // namespace

int CopyTree(int from, int to) noexcept { return CopyDirectory(from, to, kMaxDepth); }

}  // namespace gcs::engine
