// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <iterator>

#include "base/paths.h"
#include "base/resolve.h"
#include "engine/child.h"
#include "engine/verify.h"

#ifndef DEVPTS_SUPER_MAGIC
#define DEVPTS_SUPER_MAGIC 0x1cd1
#endif

namespace gcs::engine {

namespace {

struct Link {
  const char* path;
  const char* target;
};
// runtime-linux.md, "Dev symbolic links"; ptmx belongs to the default devices.
constexpr Link kDeviceLinks[] = {{"/dev/fd", "/proc/self/fd"},
                                 {"/dev/stdin", "/proc/self/fd/0"},
                                 {"/dev/stdout", "/proc/self/fd/1"},
                                 {"/dev/stderr", "/proc/self/fd/2"},
                                 {"/dev/ptmx", "pts/ptmx"}};

// Directory of the zygote's root that the container's root is attached to before the pivot.
constexpr char kRootPoint[] = "/root";
// Those of a user namespace's procfs and sysfs of the VM, and of its device nodes.
constexpr const char* kVisiblePoints[] = {"proc", "sys"};
constexpr char kDevicesPoint[] = "dev";

int OpenTree(int dir, const char* path, unsigned flags) noexcept {
  return static_cast<int>(syscall(SYS_open_tree, dir, path, flags | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
}

int Attach(int tree, int target) noexcept {
  return static_cast<int>(
      syscall(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
}

bool IsDirectory(const Child& child, int fd, Step step, uint32_t index) noexcept {
  struct stat st;
  child.Must(fstat(fd, &st), step, index);
  return S_ISDIR(st.st_mode);
}

void AttachRoot(Child& child) noexcept {
  const PlanHeader& plan = *child.plan;
  child.zygote_root = child.Must(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), Step::kAttachRoot);
  const char* point = kRootPoint;
  if (plan.create_hooks.count != 0 || plan.start_hooks.count != 0) {
    child.null = child.Must(open("/null", O_RDWR | O_CLOEXEC), Step::kAttachRoot);
  }
  if (plan.runtime_fd >= 0) {
    // Hooks see the VM's files, and the container's root where the configuration has it. The root directory
    // is changed without a pivot, because what covers masked paths comes from the zygote's.
    child.Must(syscall(SYS_move_mount, child.fds[plan.runtime_fd], "", AT_FDCWD, kRootPoint,
                       MOVE_MOUNT_F_EMPTY_PATH),
               Step::kRuntimeTree);
    child.Must(chdir(kRootPoint), Step::kRuntimeTree);
    child.Must(chroot("."), Step::kRuntimeTree);
    point = child.Text(plan.runtime_root);
  }
  child.Must(syscall(SYS_move_mount, child.fds[plan.root_fd], "", AT_FDCWD, point, MOVE_MOUNT_F_EMPTY_PATH),
             Step::kAttachRoot);
  child.root = child.fds[plan.root_fd];
  child.temporaries = std::max({child.zygote_root, child.null, *std::ranges::max_element(child.fds)}) + 1;
  for (size_t i = 0; i < std::size(kVisiblePoints); ++i) {
    if (plan.visible_fds[i] < 0) continue;
    child.Must(syscall(SYS_move_mount, child.fds[plan.visible_fds[i]], "", child.zygote_root,
                       kVisiblePoints[i], MOVE_MOUNT_F_EMPTY_PATH),
               Step::kAttachRoot);
  }
}

size_t DirectoryLength(const char* path) noexcept {
  const char* slash = strrchr(path, '/');
  return slash == nullptr ? 0 : static_cast<size_t>(slash - path) + 1;
}

bool InLastDirectory(const Child& child, const char* path) noexcept {
  const LastDirectory& last = child.last;
  return last.fd >= 0 && DirectoryLength(path) == last.length && memcmp(path, last.path, last.length) == 0;
}

// In the tmpfs that was mounted last, in which there is nothing but what the child has made.
bool InEmpty(const Child& child, const char* path) noexcept {
  const size_t length = strlen(child.empty);
  return length != 0 && DirectoryLength(path) == length + 1 && memcmp(path, child.empty, length) == 0;
}

// The directory of `path`, made if missing; the name in it goes to `leaf` (NAME_MAX + 1 bytes). The
// descriptor is not the caller's. -errno.
int OpenParent(Child& child, const char* path, char* leaf) noexcept {
  const size_t length = DirectoryLength(path);
  const char* name = path + length;
  const bool plain =
      *name != '\0' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strlen(name) <= NAME_MAX;
  const bool top = strspn(path, "/") == length;
  if (plain && (top || InLastDirectory(child, path))) {
    memcpy(leaf, name, strlen(name) + 1);
    return top ? child.root : child.last.fd;
  }
  const int fd = base::OpenParentInRoot(child.root, path, 0755, leaf);
  child.last = {};
  if (fd >= 0 && plain) child.last = {.path = path, .length = length, .fd = fd};
  return fd;
}

// procfs and sysfs go on a real directory only: through a symbolic link of the image, labels and sysctls
// could be written to files of its choice (CVE-2023-27561).
int OpenRealDirectory(Child& child, const char* path) noexcept {
  char leaf[NAME_MAX + 1];
  const int parent = OpenParent(child, path, leaf);
  if (parent < 0) return parent;
  const auto open_it = [&] {
    return base::OpenResolved(parent, leaf, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0,
                              RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
  };
  const int fd = open_it();
  if (fd != -ENOENT) return fd;
  return mkdirat(parent, leaf, 0755) == 0 || errno == EEXIST ? open_it() : -errno;
}

// A link into a mounted procfs would get round the compiler's check of destinations below /proc. 0 or -errno.
int RefuseProcfs(int fd, const char* path) noexcept {
  const bool own = strncmp(path, "/proc/", 6) == 0;
  return own ? 0 : VerifyInode(fd, {.other_filesystem = PROC_SUPER_MAGIC, .otherwise = EPERM});
}

// A directory in one that is at hand, where there is nothing more to it: no link, no mount. -errno otherwise.
int OpenNearby(Child& child, const char* path) noexcept {
  const bool known = InLastDirectory(child, path);
  char leaf[NAME_MAX + 1];
  const int parent = OpenParent(child, path, leaf);
  if (parent < 0) return parent;
  if (const int err = known ? 0 : RefuseProcfs(parent, path); err != 0) return err;
  // Whether it worked or there was no need is seen by opening it.
  mkdirat(parent, leaf, 0755);
  return base::OpenEntry(parent, leaf, O_PATH | O_DIRECTORY);
}

// Where a mount goes; what is missing is made. The descriptor is a temporary.
int OpenTarget(Child& child, const PlanMount& mount, bool directory) noexcept {
  const char* path = child.Text(mount.target);
  const char* type = mount.fs_type != 0 ? child.Text(mount.fs_type) : "";
  if (strcmp(type, "proc") == 0 || strcmp(type, "sysfs") == 0) {
    const int fd = OpenRealDirectory(child, path);
    child.last = {};
    return fd;
  }
  int fd = -ENOENT;
  if (directory) {
    if (path[strspn(path, "/")] != '\0' && DirectoryLength(path) == strspn(path, "/")) {
      // On the root's own mount, so in no other file system.
      fd = base::OpenEntry(child.root, path + strspn(path, "/"), O_PATH | O_DIRECTORY);
      child.last = {};
      if (fd >= 0) return fd;
    }
    if (!InEmpty(child, path) && !InLastDirectory(child, path))
      fd = base::OpenInRoot(child.root, path, O_PATH | O_DIRECTORY);
    if (fd == -ENOENT) fd = OpenNearby(child, path);
    if (fd >= 0 && InLastDirectory(child, path)) return fd;
    if (fd < 0) fd = base::MkdirAllInRoot(child.root, path, 0755);
  } else {
    fd = base::CreateFileInRoot(child.root, path, 0644);
  }
  // What is mounted there may hide the directory that was at hand.
  child.last = {};
  if (fd < 0) return fd;
  const int err = RefuseProcfs(fd, path);
  return err == 0 ? fd : err;
}

void SetOptions(const Child& child, const PlanMount& mount, int context) noexcept {
  const auto* options = child.Items<PlanOption>(mount.options);
  for (uint32_t i = 0; i < mount.options.count; ++i) {
    const char* key = child.Text(options[i].key);
    const long rc = options[i].value == 0 ? syscall(SYS_fsconfig, context, FSCONFIG_SET_FLAG, key, nullptr, 0)
                                          : syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, key,
                                                    child.Text(options[i].value), 0);
    child.Must(rc, Step::kConfigureFilesystem, mount.index);
  }
}

bool HasOption(const Child& child, const PlanMount& mount, const char* key) noexcept {
  const auto* options = child.Items<PlanOption>(mount.options);
  for (uint32_t i = 0; i < mount.options.count; ++i) {
    if (strcmp(child.Text(options[i].key), key) == 0) return true;
  }
  return false;
}

// A tmpfs without a mode is like the directory that it covers, as runc has it; images rely on that for /tmp.
bool TakesModeOfTarget(const Child& child, const PlanMount& mount) noexcept {
  return strcmp(child.Text(mount.fs_type), "tmpfs") == 0 && !HasOption(child, mount, "mode");
}

// A new file system, detached.
int MakeFilesystem(const Child& child, const PlanMount& mount, int target) noexcept {
  const char* type = child.Text(mount.fs_type);
  const int context =
      child.Must(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC), Step::kOpenFilesystem, mount.index);
  SetOptions(child, mount, context);
  if (TakesModeOfTarget(child, mount)) {
    struct stat st;
    child.Must(fstat(target, &st), Step::kConfigureFilesystem, mount.index);
    char mode[16];
    snprintf(mode, sizeof mode, "%o", st.st_mode & 07777);
    child.Must(syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "mode", mode, 0),
               Step::kConfigureFilesystem, mount.index);
  }
  child.Must(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0), Step::kMount,
             mount.index);
  return child.Must(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, mount.attributes), Step::kMount,
                    mount.index);
}

// The same by mount(2), on the very directory that was opened: it is made the working directory. False: not
// so, for whatever reason.
bool MountSimply(const Child& child, const PlanMount& mount, int target) noexcept {
  const char* type = child.Text(mount.fs_type);
  const char* data = mount.data != 0 ? child.Text(mount.data) : nullptr;
  char with_mode[kMaxSimpleData + 16];
  if (TakesModeOfTarget(child, mount)) {
    struct stat st;
    if (fstat(target, &st) != 0) return false;
    snprintf(with_mode, sizeof with_mode, "%s%smode=%o", data != nullptr ? data : "",
             data != nullptr ? "," : "", st.st_mode & 07777);
    data = with_mode;
  }
  const char* source = mount.source != 0 ? child.Text(mount.source) : type;
  return fchdir(target) == 0 && ::mount(source, ".", type, mount.flags, data) == 0;
}

// Changes the mount at the target: its attributes, and the file system's options if there are any.
void Remount(const Child& child, const PlanMount& mount) noexcept {
  const int target = child.MustResult(base::OpenInRoot(child.root, child.Text(mount.target), O_PATH),
                                      Step::kOpenMountTarget, mount.index);
  mount_attr attr{.attr_set = mount.attributes, .attr_clr = mount.clear, .propagation = mount.propagation};
  child.Must(syscall(SYS_mount_setattr, target, "", AT_EMPTY_PATH | mount.flags, &attr, sizeof attr),
             Step::kMount, mount.index);
  if (mount.options.count != 0) {
    const int context =
        child.Must(syscall(SYS_fspick, target, "", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH | FSPICK_NO_AUTOMOUNT),
                   Step::kOpenFilesystem, mount.index);
    SetOptions(child, mount, context);
    child.Must(syscall(SYS_fsconfig, context, FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr, 0), Step::kMount,
               mount.index);
    close(context);
  }
  close(target);
}

void MakeLink(const Child& child, const PlanMount& mount) noexcept {
  char leaf[NAME_MAX + 1];
  const int parent =
      child.MustResult(base::OpenParentInRoot(child.root, child.Text(mount.target), 0755, leaf),
                       Step::kOpenMountTarget, mount.index);
  if (symlinkat(child.Text(mount.link), parent, leaf) != 0 && errno != EEXIST) {
    child.Fail(Step::kAttachMount, errno, mount.index);
  }
  close(parent);
}

// Before the new file system is attached, so that nobody sees half of it.
void CopyUp(const Child& child, const PlanMount& mount, int target, int tree) noexcept {
  const int from =
      child.Must(openat(target, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), Step::kCopyUp, mount.index);
  const int to =
      child.Must(openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), Step::kCopyUp, mount.index);
  child.MustResult(CopyTree(from, to), Step::kCopyUp, mount.index);
  close(from);
  close(to);
}

// Attaches the tree to a directory that is made for it in the new tmpfs, where nobody else can put anything.
// False: not so.
bool AttachInEmpty(Child& child, const PlanMount& mount) noexcept {
  const char* path = child.Text(mount.target);
  if (!InEmpty(child, path)) return false;
  char leaf[NAME_MAX + 1];
  const int parent = OpenParent(child, path, leaf);
  return parent >= 0 && mkdirat(parent, leaf, 0755) == 0 &&
         syscall(SYS_move_mount, child.fds[mount.fd], "", parent, leaf, MOVE_MOUNT_F_EMPTY_PATH) == 0;
}

void AttachMounts(Child& child) noexcept {
  const auto* mounts = child.Items<PlanMount>(child.plan->mounts);
  for (uint32_t i = 0; i < child.plan->mounts.count; ++i) {
    const PlanMount& mount = mounts[i];
    if (mount.remount != 0 || mount.link != 0) {
      mount.remount != 0 ? Remount(child, mount) : MakeLink(child, mount);
      continue;
    }
    child.BeginStep();
    const bool fresh = mount.fs_type != 0;
    const bool directory = fresh || mount.is_directory != 0 ||
                           IsDirectory(child, child.fds[mount.fd], Step::kOpenMountTarget, mount.index);
    if (!fresh && mount.is_directory != 0 && AttachInEmpty(child, mount)) continue;
    const int target =
        child.MustResult(OpenTarget(child, mount, directory), Step::kOpenMountTarget, mount.index);
    // What is wrong is found out, and told, by the longer way.
    if (mount.simple != 0 && MountSimply(child, mount, target)) {
      if (strcmp(child.Text(mount.fs_type), "tmpfs") == 0) child.empty = child.Text(mount.target);
      continue;
    }
    const int tree = fresh ? MakeFilesystem(child, mount, target) : child.fds[mount.fd];
    if (mount.copy_up != 0) CopyUp(child, mount, target, tree);
    child.Must(Attach(tree, target), Step::kAttachMount, mount.index);
    if (mount.propagation != 0) {
      mount_attr attr{.propagation = mount.propagation};
      child.Must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr), Step::kPropagation,
                 mount.index);
    }
    if (strcmp(child.Text(mount.target), "/") == 0) {
      // What follows goes into the mount that has taken the root's place.
      child.Must(dup3(tree, child.root, O_CLOEXEC), Step::kAttachMount, mount.index);
    }
  }
}

void MakeDevice(Child& child, const PlanDevice& device, uint32_t index) noexcept {
  char leaf[NAME_MAX + 1];
  const int parent = child.MustResult(OpenParent(child, child.Text(device.path), leaf), Step::kDevice, index);
  const dev_t number = makedev(device.major, device.minor);
  if (mknodat(parent, leaf, device.mode, number) == 0) {
    // Ownership only of what we made: an existing node may belong to somebody.
    if (device.chown != 0) {
      child.Must(fchownat(parent, leaf, device.uid, device.gid, AT_SYMLINK_NOFOLLOW), Step::kDevice, index);
    }
  } else if (errno == EEXIST) {
    const int existing =
        child.Must(openat(parent, leaf, O_PATH | O_NOFOLLOW | O_CLOEXEC), Step::kDevice, index);
    const mode_t type = device.mode & S_IFMT;
    const Inode same{.type = type, .device = S_ISFIFO(type) ? 0 : number, .otherwise = EEXIST};
    child.MustResult(VerifyInode(existing, same), Step::kDevice, index);
    close(existing);
  } else {
    child.Fail(Step::kDevice, errno, index);
  }
}

// Nodes can't be made in a user namespace: those of the daemon's are bound in their places.
void BindDevices(Child& child) noexcept {
  if (child.plan->devices.count == 0) return;
  child.Must(syscall(SYS_move_mount, child.fds[child.plan->devices_fd], "", child.zygote_root, kDevicesPoint,
                     MOVE_MOUNT_F_EMPTY_PATH),
             Step::kDevice);
  const int nodes =
      child.Must(openat(child.zygote_root, kDevicesPoint, O_PATH | O_DIRECTORY | O_CLOEXEC), Step::kDevice);
  const auto* devices = child.Items<PlanDevice>(child.plan->devices);
  for (uint32_t i = 0; i < child.plan->devices.count; ++i) {
    char name[16];
    snprintf(name, sizeof name, "%u", i);
    const int target = child.MustResult(base::CreateFileInRoot(child.root, child.Text(devices[i].path), 0666),
                                        Step::kDevice, i);
    const int tree = child.Must(OpenTree(nodes, name, 0), Step::kDevice, i);
    child.Must(Attach(tree, target), Step::kDevice, i);
    close(tree);
    close(target);
  }
}

void MakeDevices(Child& child) noexcept {
  const auto* devices = child.Items<PlanDevice>(child.plan->devices);
  if ((child.plan->flags & kPlanUserNamespace) != 0) {
    BindDevices(child);
  } else {
    for (uint32_t i = 0; i < child.plan->devices.count; ++i) {
      child.BeginStep();
      MakeDevice(child, devices[i], i);
    }
  }
  if ((child.plan->flags & kPlanDefaultDevices) != 0) {
    for (const Link& link : kDeviceLinks) {
      char leaf[NAME_MAX + 1];
      const int parent = child.MustResult(OpenParent(child, link.path, leaf), Step::kDeviceLink);
      if (symlinkat(link.target, parent, leaf) != 0 && errno != EEXIST) child.Fail(Step::kDeviceLink, errno);
    }
  }
}

// The pty peer itself becomes /dev/console, whatever its name in /dev/pts is by now (CVE-2025-52565).
void MountConsole(Child& child) noexcept {
  const int target =
      child.MustResult(base::CreateFileInRoot(child.root, "/dev/console", 0600), Step::kConsole);
  const int tree = child.Must(OpenTree(child.terminal, "", AT_EMPTY_PATH), Step::kConsole);
  child.Must(Attach(tree, target), Step::kConsole);
}

void CoverPaths(Child& child) noexcept {
  const auto* readonly_paths = child.Items<StringRef>(child.plan->readonly_paths);
  for (uint32_t i = 0; i < child.plan->readonly_paths.count; ++i) {
    child.BeginStep();
    const int target = base::OpenInRoot(child.root, child.Text(readonly_paths[i]), O_PATH);
    if (target == -ENOENT) continue;
    child.MustResult(target, Step::kReadonlyPath, i);
    const int tree = child.Must(OpenTree(target, "", AT_EMPTY_PATH | AT_RECURSIVE), Step::kReadonlyPath, i);
    mount_attr attr{.attr_set = MOUNT_ATTR_RDONLY};
    child.Must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr),
               Step::kReadonlyPath, i);
    child.Must(Attach(tree, target), Step::kReadonlyPath, i);
  }
  const auto* masked_paths = child.Items<StringRef>(child.plan->masked_paths);
  for (uint32_t i = 0; i < child.plan->masked_paths.count; ++i) {
    child.BeginStep();
    const int target = base::OpenInRoot(child.root, child.Text(masked_paths[i]), O_PATH);
    if (target == -ENOENT || target == -ENOTDIR) continue;
    child.MustResult(target, Step::kMaskedPath, i);
    // The cover comes from the zygote's own root, never from a /dev/null that the image could have replaced
    // (CVE-2025-31133).
    const char* cover = IsDirectory(child, target, Step::kMaskedPath, i) ? "empty" : "null";
    const int tree = child.Must(OpenTree(child.zygote_root, cover, 0), Step::kMaskedPath, i);
    child.Must(Attach(tree, target), Step::kMaskedPath, i);
  }
}

}  // namespace

void Child::BeginStep() noexcept {
  constexpr int kSteps = 32;
  if (++steps <= kSteps) return;
  syscall(SYS_close_range, temporaries, ~0U, 0);
  last = {};
  steps = 0;
}

void OpenConsole(Child& child, int root) noexcept {
  const int master =
      child.MustResult(base::OpenInRoot(root, "/dev/pts/ptmx", O_RDWR | O_NOCTTY), Step::kConsole);
  const Inode ptmx{
      .filesystem = DEVPTS_SUPER_MAGIC, .type = S_IFCHR, .device = makedev(5, 2), .otherwise = ENOTTY};
  child.MustResult(VerifyInode(master, ptmx), Step::kConsole);
  int unlock = 0;
  child.Must(ioctl(master, TIOCSPTLCK, &unlock), Step::kConsole);
  child.terminal = child.Must(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), Step::kConsole);
  if (child.plan->rows != 0 || child.plan->columns != 0) {
    const winsize size{
        .ws_row = child.plan->rows, .ws_col = child.plan->columns, .ws_xpixel = 0, .ws_ypixel = 0};
    child.Must(ioctl(master, TIOCSWINSZ, &size), Step::kConsole);
  }
  // The group stays what devpts gave it: the tty group need not exist for the user.
  child.Must(fchown(child.terminal, child.plan->uid, static_cast<gid_t>(-1)), Step::kConsole);
  child.Send(Report::kConsole, master);
  close(master);
}

void WriteSysctls(Child& child) noexcept {
  if (child.plan->sysctls.count == 0) return;
  // Whose sysctls they are is decided by the namespaces of the process that opens them.
  const int proc = child.fds[child.plan->proc_fd];
  const auto* sysctls = child.Items<PlanSysctl>(child.plan->sysctls);
  for (uint32_t i = 0; i < child.plan->sysctls.count; ++i) {
    const int fd = child.MustResult(OpenProcFile(proc, child.Text(sysctls[i].path), false), Step::kSysctl, i);
    const char* value = child.Text(sysctls[i].value);
    ssize_t written = 0;
    do {
      written = write(fd, value, strlen(value));
    } while (written < 0 && errno == EINTR);
    child.Must(written, Step::kSysctl, i);
    close(fd);
  }
}

void BuildRootfs(Child& child) noexcept {
  const PlanHeader& plan = *child.plan;
  AttachRoot(child);
  BecomeSetupUser(child);
  AttachMounts(child);
  MakeDevices(child);
  if ((plan.flags & kPlanTerminal) != 0) {
    OpenConsole(child, child.root);
    child.temporaries = child.terminal + 1;
    if ((plan.flags & kPlanDefaultDevices) != 0) MountConsole(child);
  }
  if ((plan.flags & kPlanRuntimeHooks) != 0) {
    child.Send(Report::kHooks);
    child.AwaitDaemon();
  }
  if (plan.create_hooks.count != 0) {
    child.Must(chdir("/"), Step::kCreateContainerHook);
    RunHooks(child, plan.create_hooks, child.null, Step::kCreateContainerHook);
  }
  CoverPaths(child);
  if (plan.runtime_fd >= 0) {
    child.Must(fchdir(child.zygote_root), Step::kPivotRoot);
    child.Must(chroot("."), Step::kPivotRoot);
  }
  child.Must(fchdir(child.root), Step::kPivotRoot);
  child.Must(syscall(SYS_pivot_root, ".", "."), Step::kPivotRoot);
  child.Must(umount2(".", MNT_DETACH), Step::kPivotRoot);
  WriteSysctls(child);
  if ((plan.flags & kPlanRootReadonly) != 0) {
    mount_attr attr{.attr_set = MOUNT_ATTR_RDONLY};
    child.Must(syscall(SYS_mount_setattr, child.root, "", AT_EMPTY_PATH, &attr, sizeof attr),
               Step::kRootReadonly);
  }
  if (plan.root_propagation != 0) {
    mount_attr attr{.propagation = plan.root_propagation};
    child.Must(syscall(SYS_mount_setattr, child.root, "", AT_EMPTY_PATH, &attr, sizeof attr),
               Step::kRootPropagation);
  }
}

}  // namespace gcs::engine
