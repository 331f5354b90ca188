// SPDX-License-Identifier: Apache-2.0
#include "engine/cli/sealed.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/fd.h"

#ifndef MFD_EXEC  // Linux 6.3
#define MFD_EXEC 0x0010U
#endif

namespace gcs::oci {

namespace {

using base::Fd;

int Execute(const Fd& program) noexcept {
  char name[sizeof kZygoteName];
  memcpy(name, kZygoteName, sizeof name);
  char* argv[] = {name, nullptr};
  char* envp[] = {nullptr};
  syscall(SYS_execveat, program.get(), "", argv, envp, AT_EMPTY_PATH);
  return -errno;
}

Fd MountDetached(const char* type, const char* key, const char* value) noexcept {
  const Fd context(static_cast<int>(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC)));
  if (!context ||
      (key != nullptr && syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_STRING, key, value, 0) != 0) ||
      syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return {};
  }
  return Fd(static_cast<int>(syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)));
}

// The program in a file system that is read-only for good: an overlay without an upper layer. It wants two
// lower ones, so an empty one goes with it. Invalid if that can't be had here.
Fd OpenInOverlay(const Fd& self) noexcept {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length <= 0) return {};
  path[length] = '\0';
  // Neither may be in an option's value as it is.
  if (strpbrk(path, ":\\,") != nullptr) return {};
  char* const slash = strrchr(path, '/');
  if (slash == nullptr || slash == path) return {};
  *slash = '\0';
  const Fd empty = MountDetached("tmpfs", nullptr, nullptr);
  if (!empty) return {};
  char layers[PATH_MAX + 64];
  snprintf(layers, sizeof layers, "%s:/proc/self/fd/%d", path, empty.get());
  const Fd overlay = MountDetached("overlay", "lowerdir", layers);
  if (!overlay) return {};
  Fd program(openat(overlay.get(), slash + 1, O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  // Still the program that runs here: it may have been replaced on disk.
  struct stat ours;
  struct stat theirs;
  if (!program || fstat(self.get(), &ours) != 0 || fstat(program.get(), &theirs) != 0 ||
      ours.st_size != theirs.st_size || ours.st_mtim.tv_sec != theirs.st_mtim.tv_sec ||
      ours.st_mtim.tv_nsec != theirs.st_mtim.tv_nsec || ours.st_ctim.tv_sec != theirs.st_ctim.tv_sec ||
      ours.st_ctim.tv_nsec != theirs.st_ctim.tv_nsec) {
    return {};
  }
  return program;
}

}  // namespace

int BecomeSealedZygote(int) noexcept {
  const Fd self(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  if (!self) return -errno;
  if (const Fd program = OpenInOverlay(self); program.valid()) return Execute(program);
  Fd copy(memfd_create("gcs-oci", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC));
  if (!copy && errno == EINVAL) copy = Fd(memfd_create("gcs-oci", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!copy) return -errno;
  for (;;) {
    const ssize_t n = sendfile(copy.get(), self.get(), nullptr, 1 << 30);
    if (n == 0) break;
    if (n < 0 && errno != EINTR) return -errno;
  }
  constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (fcntl(copy.get(), F_ADD_SEALS, kSeals) != 0) return -errno;
  return Execute(copy);
}

}  // namespace gcs::oci
