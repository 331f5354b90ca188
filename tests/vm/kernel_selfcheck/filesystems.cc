// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/mount.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

Result<> Registered(const char* type) {
  GCS_ASSIGN(const std::string types, ReadFile("/proc/filesystems"));
  if (!HasWord(types, type)) return MakeError(ENODEV, "find", type, "not in /proc/filesystems");
  return {};
}

Result<> OverlayCopiesUp() {
  GCS_TRY(FreshTmp());
  for (const char* dir : {"/tmp/a", "/tmp/b", "/tmp/upper", "/tmp/work", "/tmp/merged"}) mkdir(dir, 0755);
  GCS_TRY(WriteFile("/tmp/a/file", "lower"));
  GCS_TRY(WriteFile("/tmp/b/gone", "lower"));
  if (mount("overlay", "/tmp/merged", "overlay", 0,
            "lowerdir=/tmp/a:/tmp/b,upperdir=/tmp/upper,workdir=/tmp/work") != 0) {
    return ErrnoError("mount", "overlay");
  }
  GCS_TRY(WriteFile("/tmp/merged/file", "upper"));
  if (unlink("/tmp/merged/gone") != 0) return ErrnoError("unlink", "/tmp/merged/gone");
  GCS_ASSIGN(const std::string lower, ReadFile("/tmp/a/file"));
  GCS_ASSIGN(const std::string upper, ReadFile("/tmp/upper/file"));
  if (lower != "lower" || upper != "upper")
    return MakeError(EIO, "copy up", "/tmp/merged/file", lower + upper);
  struct stat whiteout = {};
  if (lstat("/tmp/upper/gone", &whiteout) != 0) return ErrnoError("lstat whiteout", "/tmp/upper/gone");
  if (!S_ISCHR(whiteout.st_mode) || whiteout.st_rdev != 0)
    return MakeError(EIO, "whiteout", "/tmp/upper/gone");
  return {};
}

Result<> TmpfsKeepsXattrs() {
  GCS_TRY(FreshTmp());
  GCS_TRY(WriteFile("/tmp/file", "x"));
  for (const char* name : {"user.a", "trusted.b", "security.c"}) {
    if (setxattr("/tmp/file", name, "v", 1, 0) != 0) return ErrnoError("setxattr on tmpfs", name);
  }
  return {};
}

// The kernel must open the conversation on the descriptor with Tversion 9P2000.L; closing it fails the mount.
Result<> NinePSendsVersion() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return ErrnoError("socketpair");
  Fd server(ends[0]);
  Fd client(ends[1]);
  const pid_t pid = fork();
  if (pid < 0) return ErrnoError("fork");
  if (pid == 0) {
    server.Reset();
    const std::string number = std::to_string(client.get());
    const std::string options =
        "trans=fd,rfdno=" + number + ",wfdno=" + number + ",version=9p2000.L,msize=65536";
    const int failed = mount("share", "/mnt", "9p", 0, options.c_str());
    _exit(failed != 0 ? errno : 0);
  }
  client.Reset();
  const timeval limit{.tv_sec = 5, .tv_usec = 0};
  setsockopt(server.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  unsigned char message[64] = {};
  const ssize_t n = recv(server.get(), message, sizeof message, 0);
  const int receive_errno = errno;
  server.Reset();
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return ErrnoError("waitpid");
  errno = receive_errno;
  if (n < 0) return ErrnoError("receive Tversion", "9p trans=fd");
  if (n == 0) return MakeError(WEXITSTATUS(status), "mount", "9p trans=fd", "failed without a message");
  // size[4] Tversion=100 tag[2] msize[4] version[s]
  const bool version = n == 21 && message[0] == 21 && message[4] == 100 && message[11] == 8 &&
                       std::memcmp(message + 13, "9P2000.L", 8) == 0;
  if (!version)
    return MakeError(EPROTO, "receive Tversion", "9p trans=fd", std::to_string(n) + " bytes of other kind");
  return {};
}

Result<> FuseSendsInit() {
  const Fd device(open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device) return ErrnoError("open", "/dev/fuse");
  const std::string options = "fd=" + std::to_string(device.get()) + ",rootmode=40000,user_id=0,group_id=0";
  if (mount("selfcheck", "/mnt", "fuse", 0, options.c_str()) != 0) return ErrnoError("mount", "fuse");
  pollfd waiter{.fd = device.get(), .events = POLLIN, .revents = 0};
  if (poll(&waiter, 1, 5000) != 1) return MakeError(ETIMEDOUT, "wait for FUSE_INIT", "/dev/fuse");
  alignas(fuse_in_header) char buffer[FUSE_MIN_READ_BUFFER];
  const ssize_t n = read(device.get(), buffer, sizeof buffer);
  if (n < 0) return ErrnoError("read", "/dev/fuse");
  const auto* header = reinterpret_cast<const fuse_in_header*>(buffer);
  if (header->opcode != FUSE_INIT) return MakeError(EPROTO, "read FUSE_INIT", "/dev/fuse");
  return {};
}

// fsopen, fsconfig, fsmount, an id-mapped mount of it, move_mount.
Result<> MountApiWithIdmap() {
  const Fd context(static_cast<int>(syscall(SYS_fsopen, "tmpfs", 1 /* FSOPEN_CLOEXEC */)));
  if (!context) return ErrnoError("fsopen", "tmpfs");
  if (syscall(SYS_fsconfig, context.get(), 6 /* FSCONFIG_CMD_CREATE */, nullptr, nullptr, 0) != 0) {
    return ErrnoError("fsconfig", "tmpfs");
  }
  const Fd tree(static_cast<int>(syscall(SYS_fsmount, context.get(), 1 /* FSMOUNT_CLOEXEC */, 0)));
  if (!tree) return ErrnoError("fsmount", "tmpfs");

  int ready[2];
  int hold[2];
  if (pipe2(ready, O_CLOEXEC) != 0 || pipe2(hold, O_CLOEXEC) != 0) return ErrnoError("pipe2");
  const pid_t pid = fork();
  if (pid < 0) return ErrnoError("fork");
  if (pid == 0) {
    close(hold[1]);
    const char ok = unshare(CLONE_NEWUSER) == 0 ? 'y' : 'n';
    char byte = 0;
    if (write(ready[1], &ok, 1) == 1) (void)!read(hold[0], &byte, 1);
    _exit(0);
  }
  char ok = 0;
  if (read(ready[0], &ok, 1) != 1 || ok != 'y')
    return MakeError(EPERM, "unshare", "user namespace for the id map");
  const std::string proc = "/proc/" + std::to_string(pid);
  GCS_TRY(WriteFile(proc + "/uid_map", "0 100000 65536"));
  GCS_TRY(WriteFile(proc + "/gid_map", "0 100000 65536"));
  const Fd userns(open((proc + "/ns/user").c_str(), O_RDONLY | O_CLOEXEC));
  if (!userns) return ErrnoError("open", proc + "/ns/user");
  mount_attr attr = {};
  attr.attr_set = 0x00100000;  // MOUNT_ATTR_IDMAP
  attr.userns_fd = static_cast<uint64_t>(userns.get());
  if (syscall(SYS_mount_setattr, tree.get(), "", AT_EMPTY_PATH, &attr, sizeof attr) != 0) {
    return ErrnoError("mount_setattr", "MOUNT_ATTR_IDMAP on tmpfs");
  }
  close(hold[1]);
  if (waitpid(pid, nullptr, 0) != pid) return ErrnoError("waitpid");
  if (syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, "/mnt", 4 /* MOVE_MOUNT_F_EMPTY_PATH */) != 0) {
    return ErrnoError("move_mount", "/mnt");
  }
  // Root of the file system, id 0 on disk, is 100000 through the mount.
  struct stat info = {};
  if (stat("/mnt", &info) != 0) return ErrnoError("stat", "/mnt");
  if (info.st_uid != 100000)
    return MakeError(EIO, "id map", "/mnt", "owner is " + std::to_string(info.st_uid));
  return {};
}

Result<> MqueueMounts() {
  if (mount("mqueue", "/mnt", "mqueue", 0, nullptr) != 0) return ErrnoError("mount", "mqueue");
  const Fd queue(open("/mnt/queue", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!queue) return ErrnoError("create queue", "/mnt/queue");
  if (unlink("/mnt/queue") != 0) return ErrnoError("unlink", "/mnt/queue");
  return {};
}

Result<> BinfmtMiscMounts() {
  if (mount("binfmt_misc", "/mnt", "binfmt_misc", 0, nullptr) != 0) return ErrnoError("mount", "binfmt_misc");
  return WriteFile("/mnt/register", ":selfcheck:M::\\x01\\x02\\x03selfcheck::/bin/none:");
}

const Item kItems[] = {
    {"fs-ext4", [] { return Registered("ext4"); }},
    {"fs-ext2-by-ext4", [] { return Registered("ext2"); }},
    {"fs-xfs", [] { return Registered("xfs"); }},
    {"fs-squashfs", [] { return Registered("squashfs"); }},
    // On q35 the command line forbids erofs, see MachineItems.
    {"fs-erofs", [] { return Registered("erofs"); }, Where::kMicrovm},
    {"fs-virtiofs", [] { return Registered("virtiofs"); }},
    {"fs-hugetlbfs", [] { return Registered("hugetlbfs"); }},
    {"fs-bpf", [] { return Registered("bpf"); }},
    {"fs-overlay-on-tmpfs", OverlayCopiesUp},
    {"fs-tmpfs-xattr", TmpfsKeepsXattrs},
    {"fs-9p-over-descriptor", NinePSendsVersion},
    {"fs-fuse", FuseSendsInit},
    {"fs-mqueue", MqueueMounts},
    {"fs-binfmt-misc", BinfmtMiscMounts},
    {"mount-api-idmap", MountApiWithIdmap},
};

}  // namespace

std::span<const Item> FilesystemItems() { return kItems; }

}  // namespace gcs::selfcheck
