// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <initializer_list>

#include "engine/zygote_root.h"

namespace gcs::engine {

int EnterZygoteRoot() noexcept {
  if (unshare(CLONE_NEWNS) != 0) return -errno;
  mount_attr private_tree{.propagation = MS_PRIVATE};
  if (syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &private_tree, sizeof private_tree) != 0)
    return -errno;
  const auto context = static_cast<int>(syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
  if (context < 0) return -errno;
  const bool configured = syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "mode", "0555", 0) == 0 &&
                          syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", "4096", 0) == 0 &&
                          syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "nr_inodes", "16", 0) == 0 &&
                          syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0;
  if (!configured) return -errno;
  const auto tree =
      static_cast<int>(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC));
  if (tree < 0) return -errno;
  umask(0);
  for (const char* name : {"root", "empty", "proc", "sys", "dev"}) {
    if (mkdirat(tree, name, 0555) != 0) return -errno;
  }
  if (mknodat(tree, "null", S_IFCHR | 0666, makedev(1, 3)) != 0) return -errno;
  // Read-only as a file system, not only as a mount: copies of the mount can't be made writable again.
  if (syscall(SYS_fsconfig, context, FSCONFIG_SET_FLAG, "ro", nullptr, 0) != 0 ||
      syscall(SYS_fsconfig, context, FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr, 0) != 0) {
    return -errno;
  }
  close(context);
  // Any directory serves as the mount point that pivot_root(2) needs; /proc is everywhere.
  if (syscall(SYS_move_mount, tree, "", AT_FDCWD, "/proc", MOVE_MOUNT_F_EMPTY_PATH) != 0) return -errno;
  if (fchdir(tree) != 0 || syscall(SYS_pivot_root, ".", ".") != 0 || umount2(".", MNT_DETACH) != 0 ||
      chdir("/") != 0) {
    return -errno;
  }
  close(tree);
  return 0;
}

}  // namespace gcs::engine
