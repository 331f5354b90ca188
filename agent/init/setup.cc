// SPDX-License-Identifier: Apache-2.0
#include "init/setup.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstring>

#include "base/fd.h"
#include "base/paths.h"
#include "init/klog.h"

namespace gcs::init {

namespace {

// Passes a failure on when its row says so.
base::Result<> Judge(base::Result<> result, OnFailure on_failure) {
  if (result || on_failure == OnFailure::kFatal) return result;
  if (on_failure == OnFailure::kLog) LogError("set-up goes on", result.error());
  return {};
}

base::Result<> ApplyLink(const LinkRow& row) {
  if (symlink(row.target, row.path) != 0 && errno != EEXIST) return base::ErrnoError("symlink", row.path);
  return {};
}

base::Result<> ApplyMount(const MountRow& row) {
  if (row.make != 0) GCS_TRY(base::MakeDirs(row.target, row.make));
  // EBUSY: the kernel has mounted it already (devtmpfs, on a root of its own), and says so for the same thing
  // only.
  if (mount(row.source, row.target, row.type, row.flags, row.data) != 0 && errno != EBUSY) {
    return base::ErrnoError("mount", row.target, row.type);
  }
  return {};
}

}  // namespace

base::Result<> ApplyMounts(std::span<const MountRow> rows) {
  for (const MountRow& row : rows) GCS_TRY(Judge(ApplyMount(row), row.on_failure));
  return {};
}

base::Result<> ApplyDirectories(std::span<const DirectoryRow> rows) {
  for (const DirectoryRow& row : rows) GCS_TRY(base::MakeDirs(row.path, row.mode));
  return {};
}

base::Result<> ApplyLinks(std::span<const LinkRow> rows) {
  for (const LinkRow& row : rows) GCS_TRY(Judge(ApplyLink(row), row.on_failure));
  return {};
}

void ApplyLimits(std::span<const LimitRow> rows) {
  for (const LimitRow& row : rows) {
    const rlimit limit{.rlim_cur = row.soft, .rlim_max = row.hard};
    if (setrlimit(row.resource, &limit) != 0) {
      LogError("set-up goes on", base::ErrnoError("setrlimit", row.name).error());
    }
  }
}

base::Result<> ApplySettings(std::span<const SettingRow> rows) {
  for (const SettingRow& row : rows) {
    GCS_TRY(Judge(base::WriteFile(row.path, row.value), row.on_failure));
  }
  return {};
}

void ProtectFromOom() {
  const auto result = base::WriteFile("/proc/self/oom_score_adj", "-1000");
  if (!result) LogError("set-up goes on", result.error());
}

base::Result<> SetHostname(const std::string& name) {
  if (sethostname(name.data(), name.size()) != 0) return base::ErrnoError("sethostname", name);
  return {};
}

base::Result<> BringUpLoopback() {
  const base::Fd socket_fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket_fd) return base::ErrnoError("socket", "AF_INET");
  ifreq request{};
  strcpy(request.ifr_name, "lo");
  if (ioctl(socket_fd.get(), SIOCGIFFLAGS, &request) != 0) return base::ErrnoError("SIOCGIFFLAGS", "lo");
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  if (ioctl(socket_fd.get(), SIOCSIFFLAGS, &request) != 0) return base::ErrnoError("SIOCSIFFLAGS", "lo");
  return {};
}

base::Result<> LeaveInitramfsRoot() {
  struct statfs root{};
  if (statfs("/", &root) != 0) return base::ErrnoError("statfs", "/");
  if (root.f_type != TMPFS_MAGIC && root.f_type != RAMFS_MAGIC) return {};
  // A copy into a tmpfs, as switch_root programs do it, would cost the image's size in time and, for a
  // moment, in memory. A second mount of the same file system costs nothing, and being mounted on the
  // initramfs is all that pivot_root asks for.
  const base::Fd tree(
      static_cast<int>(syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
  if (!tree) return base::ErrnoError("open_tree", "/");
  if (syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) != 0) {
    return base::ErrnoError("move_mount", "/");
  }
  if (fchdir(tree.get()) != 0) return base::ErrnoError("fchdir", "/");
  if (chroot(".") != 0) return base::ErrnoError("chroot", "/");
  return {};
}

base::Result<> SealRoot() {
  if (mount(nullptr, "/", nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0) {
    return base::ErrnoError("mount", "/", "remount read-only");
  }
  return {};
}

}  // namespace gcs::init
