// SPDX-License-Identifier: Apache-2.0
#include "base/paths.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/resolve.h"

namespace gcs::base {

int OpenInRoot(int root, const char* path, int flags, mode_t mode) noexcept {
  while (*path == '/') ++path;
  if (*path == '\0') path = ".";
  return OpenResolved(root, path, static_cast<unsigned>(flags), mode,
                      RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
}

int OpenEntry(int dir, const char* name, int flags) noexcept {
  if (strchr(name, '/') != nullptr) return -EINVAL;
  return OpenResolved(dir, name, static_cast<unsigned>(flags) | O_NOFOLLOW, 0,
                      RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);
}

namespace {

// Longest chain of dangling links that is followed, as the kernel has it for links that exist.
constexpr int kMaxLinks = 40;

// Puts what the symbolic link `name` in `dir` points at in its place: `path` is "<before>/<name>[/<rest>]"
// with `begin` and `end` around the name, and becomes "<before>/<target>/<rest>" or "<target>/<rest>". 0 or
// -errno.
int ReplaceLink(int dir, char* path, size_t begin, size_t end) noexcept {
  char target[PATH_MAX];
  char name[NAME_MAX + 1];
  if (end - begin > NAME_MAX) return -ENAMETOOLONG;
  memcpy(name, path + begin, end - begin);
  name[end - begin] = '\0';
  const ssize_t length = readlinkat(dir, name, target, sizeof target - 1);
  if (length < 0) return errno == EINVAL ? -ENOTDIR : -errno;
  const size_t rest = strlen(path + end);
  const size_t keep = target[0] == '/' ? 0 : begin;
  if (keep + length + rest + 1 > PATH_MAX) return -ENAMETOOLONG;
  memmove(path + keep + length, path + end, rest + 1);
  memcpy(path + keep, target, length);
  return 0;
}

// One pass over `path`. A directory's descriptor, -errno, or -ELOOP after `path` was changed because a
// dangling link was in the way.
int MkdirAllOnce(int root, char* path, mode_t mode) noexcept {
  int dir = OpenInRoot(root, "/", O_PATH | O_DIRECTORY);
  if (dir < 0) return dir;
  const size_t length = strlen(path);
  bool made = false;  // past the first directory of ours, look-ups are relative to its descriptor
  for (size_t at = 0; at < length;) {
    while (at < length && path[at] == '/') ++at;
    if (at == length) break;
    const size_t begin = at;
    while (at < length && path[at] != '/') ++at;
    const char saved = path[at];
    path[at] = '\0';
    const char* name = path + begin;
    int next = made ? -ENOENT : OpenInRoot(root, path, O_PATH | O_DIRECTORY);
    if (next == -ENOENT) {
      int err = strcmp(name, "..") == 0 ? EINVAL : 0;
      // Another creator may have been faster; what it made is verified by the open below.
      if (err == 0 && mkdirat(dir, name, mode) != 0 && errno != EEXIST) err = errno;
      if (err != 0) {
        close(dir);
        return -err;
      }
      next = OpenResolved(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0,
                          RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
      made = true;
    }
    path[at] = saved;
    if (next == -ELOOP || next == -ENOTDIR) {
      // A link to something that does not exist yet: images have them (/var/lock -> /run/lock), and they lead
      // somewhere in the root.
      const int replaced = ReplaceLink(dir, path, begin, at);
      close(dir);
      return replaced < 0 ? replaced : -ELOOP;
    }
    close(dir);
    if (next < 0) return next;
    dir = next;
  }
  return dir;
}

}  // namespace

int MkdirAllInRoot(int root, const char* path, mode_t mode) noexcept {
  int dir = OpenInRoot(root, path, O_PATH | O_DIRECTORY);
  if (dir != -ENOENT) return dir;
  char current[PATH_MAX];
  const size_t length = strnlen(path, sizeof current);
  if (length == sizeof current) return -ENAMETOOLONG;
  memcpy(current, path, length + 1);
  for (int i = 0; i < kMaxLinks; ++i) {
    dir = MkdirAllOnce(root, current, mode);
    if (dir != -ELOOP) return dir;
  }
  return -ELOOP;
}

int OpenParentInRoot(int root, const char* path, mode_t mkdir_mode, char* leaf) noexcept {
  char parent[PATH_MAX];
  size_t length = strnlen(path, sizeof parent);
  if (length == sizeof parent) return -ENAMETOOLONG;
  memcpy(parent, path, length + 1);
  while (length > 0 && parent[length - 1] == '/') parent[--length] = '\0';
  const char* slash = strrchr(parent, '/');
  const char* name = slash == nullptr ? parent : slash + 1;
  if (*name == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return -EINVAL;
  if (strlen(name) > NAME_MAX) return -ENAMETOOLONG;
  memcpy(leaf, name, strlen(name) + 1);
  parent[name - parent] = '\0';
  if (mkdir_mode != 0) return MkdirAllInRoot(root, parent, mkdir_mode);
  return OpenInRoot(root, parent, O_PATH | O_DIRECTORY);
}

int CreateFileInRoot(int root, const char* path, mode_t mode) noexcept {
  char current[PATH_MAX];
  const size_t length = strnlen(path, sizeof current);
  if (length == sizeof current) return -ENAMETOOLONG;
  memcpy(current, path, length + 1);
  int fd = OpenInRoot(root, current, O_PATH);
  for (int i = 0; fd == -ENOENT && i < kMaxLinks; ++i) {
    char leaf[NAME_MAX + 1];
    const int parent = OpenParentInRoot(root, current, 0755, leaf);
    if (parent < 0) return parent;
    fd = OpenResolved(parent, leaf, O_CREAT | O_EXCL | O_NOFOLLOW | O_RDONLY, mode,
                      RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    if (fd == -EEXIST || fd == -ELOOP) {
      // Made by somebody else meanwhile, or a link to something that does not exist yet (/etc/resolv.conf of
      // many images).
      fd = OpenInRoot(root, current, O_PATH);
      size_t end = strlen(current);
      while (end > 0 && current[end - 1] == '/') --end;
      if (fd == -ENOENT) {
        const int replaced = ReplaceLink(parent, current, end - strlen(leaf), end);
        if (replaced < 0) fd = replaced;
      }
    }
    close(parent);
  }
  if (fd < 0) return fd == -ENOENT ? -ELOOP : fd;
  struct stat st;
  const int err = fstat(fd, &st) != 0 ? errno : S_ISDIR(st.st_mode) ? EISDIR : 0;
  if (err != 0) {
    close(fd);
    return -err;
  }
  return fd;
}

Result<Fd> OpenFile(const std::string& path, int flags, mode_t mode) {
  return OpenFileAt(AT_FDCWD, path, flags, mode);
}

Result<Fd> OpenFileAt(int dir, const std::string& path, int flags, mode_t mode) {
  Fd fd(openat(dir, path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd) return ErrnoError("open", path);
  return fd;
}

Result<std::vector<std::string>> ListDir(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(path.c_str()), closedir);
  if (dir == nullptr) return ErrnoError("opendir", path);
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(dir.get());
    if (entry == nullptr) break;
    const std::string_view name(entry->d_name);
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) return ErrnoError("readdir", path);
  std::ranges::sort(names);
  return names;
}

Result<> MakeDirs(const std::string& path, mode_t mode) {
  for (size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at);
    const std::string part = path.substr(0, at);
    if (mkdir(part.c_str(), mode) != 0 && errno != EEXIST) return ErrnoError("mkdir", part);
    if (at != std::string::npos) ++at;
  }
  return {};
}

Result<std::string> ReadFd(int fd, const std::string& name, size_t limit) {
  std::string content;
  for (;;) {
    char buffer[4096];
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoError("read", name);
    }
    if (n == 0) return content;
    if (content.size() + n > limit) return MakeError(EFBIG, "read", name);
    content.append(buffer, n);
  }
}

Result<std::string> ReadFile(const std::string& path, size_t limit) {
  return ReadFileAt(AT_FDCWD, path, limit);
}

Result<std::string> ReadFileAt(int dir, const std::string& name, size_t limit) {
  GCS_ASSIGN(const Fd fd, OpenFileAt(dir, name, O_RDONLY));
  return ReadFd(fd.get(), name, limit);
}

Result<> WriteFile(const std::string& path, std::string_view value) {
  return WriteFileAt(AT_FDCWD, path, value);
}

Result<> WriteFileAt(int dir, const std::string& name, std::string_view value) {
  GCS_ASSIGN(const Fd fd, OpenFileAt(dir, name, O_WRONLY));
  ssize_t n = 0;
  do {
    n = write(fd.get(), value.data(), value.size());
  } while (n < 0 && errno == EINTR);
  if (n < 0) return ErrnoError("write", name, value.substr(0, 200));
  if (static_cast<size_t>(n) != value.size()) return MakeError(EIO, "write", name, "short write");
  return {};
}

Result<> ReplaceFile(const std::string& path, std::string_view content, mode_t mode, bool sync) {
  const std::string temporary = path + ".tmp." + std::to_string(getpid());
  GCS_ASSIGN(const Fd fd, OpenFile(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, mode));
  const auto fail = [&](std::string_view step) {
    auto error = ErrnoError(step, temporary);
    unlink(temporary.c_str());
    return error;
  };
  for (size_t done = 0; done < content.size();) {
    const ssize_t n = write(fd.get(), content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail("write");
    done += n;
  }
  if (sync && fsync(fd.get()) != 0) return fail("fsync");
  if (rename(temporary.c_str(), path.c_str()) != 0) return fail("rename");
  return {};
}

}  // namespace gcs::base
