// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <poll.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

// getppid of another process is answered by us.
Result<> SeccompNotifies() {
  int channel[2];
  if (pipe2(channel, O_CLOEXEC) != 0) return ErrnoError("pipe2");
  const pid_t pid = fork();
  if (pid < 0) return ErrnoError("fork");
  if (pid == 0) {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog program{.len = 4, .filter = filter};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    const int listener = static_cast<int>(
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
    const int answer = listener < 0 ? -errno : listener;
    (void)!write(channel[1], &answer, sizeof answer);
    _exit(listener >= 0 && syscall(SYS_getppid) == 4242 ? 0 : 1);
  }
  int number = 0;
  if (read(channel[0], &number, sizeof number) != sizeof number) return ErrnoError("read", "listener");
  if (number < 0) return MakeError(-number, "seccomp", "SECCOMP_FILTER_FLAG_NEW_LISTENER");
  const Fd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  const Fd listener(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), number, 0)));
  if (!listener) return ErrnoError("pidfd_getfd", "seccomp listener");
  seccomp_notif request = {};
  if (ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_RECV, &request) != 0)
    return ErrnoError("SECCOMP_IOCTL_NOTIF_RECV");
  seccomp_notif_resp response = {};
  response.id = request.id;
  response.val = 4242;
  if (ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_SEND, &response) != 0)
    return ErrnoError("SECCOMP_IOCTL_NOTIF_SEND");
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return ErrnoError("waitpid");
  if (status != 0) return MakeError(EBADMSG, "getppid", {}, "was not answered with our value");
  return {};
}

// One no-op through the rings.
Result<> IoUringWorks() {
  io_uring_params params = {};
  const Fd ring(static_cast<int>(syscall(SYS_io_uring_setup, 4, &params)));
  if (!ring) return ErrnoError("io_uring_setup");
  const auto map = [&ring](size_t size, uint64_t offset) {
    return static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                                   ring.get(), static_cast<off_t>(offset)));
  };
  const size_t submissions = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  const size_t completions = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  char* rings = map(std::max(submissions, completions), IORING_OFF_SQ_RING);  // IORING_FEAT_SINGLE_MMAP, 5.4
  char* entries = map(params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
  if (rings == MAP_FAILED || entries == MAP_FAILED) return ErrnoError("mmap", "io_uring");
  auto* entry = reinterpret_cast<io_uring_sqe*>(entries);
  entry->opcode = IORING_OP_NOP;
  entry->user_data = 77;
  *reinterpret_cast<unsigned*>(rings + params.sq_off.array) = 0;
  reinterpret_cast<std::atomic<unsigned>*>(rings + params.sq_off.tail)->store(1, std::memory_order_release);
  if (syscall(SYS_io_uring_enter, ring.get(), 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0) != 1) {
    return ErrnoError("io_uring_enter");
  }
  const auto* done = reinterpret_cast<const io_uring_cqe*>(rings + params.cq_off.cqes);
  if (done->user_data != 77 || done->res != 0)
    return MakeError(EBADMSG, "compare completion", "IORING_OP_NOP");
  return {};
}

Result<> FanotifyReportsOpen() {
  GCS_TRY(FreshTmp());
  GCS_TRY(WriteFile("/tmp/file", "x"));
  const Fd group(fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY));
  if (!group) return ErrnoError("fanotify_init");
  // A permission event needs CONFIG_FANOTIFY_ACCESS_PERMISSIONS; the plain one is what arrives here.
  if (fanotify_mark(group.get(), FAN_MARK_ADD, FAN_OPEN | FAN_ACCESS_PERM, AT_FDCWD, "/tmp/file") != 0) {
    return ErrnoError("fanotify_mark", "/tmp/file");
  }
  const Fd file(open("/tmp/file", O_RDONLY | O_CLOEXEC));
  fanotify_event_metadata event = {};
  if (read(group.get(), &event, sizeof event) != sizeof event) return ErrnoError("read", "fanotify");
  const Fd reported(event.fd);
  if ((event.mask & FAN_OPEN) == 0) return MakeError(EBADMSG, "read", "fanotify", "not an open event");
  return {};
}

Result<> LandlockConfines() {
  GCS_TRY(FreshTmp());
  GCS_TRY(WriteFile("/tmp/file", "x"));
  landlock_ruleset_attr attr = {};
  attr.handled_access_fs = LANDLOCK_ACCESS_FS_READ_FILE;
  const Fd ruleset(static_cast<int>(syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0)));
  if (!ruleset) return ErrnoError("landlock_create_ruleset");
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) return ErrnoError("landlock_restrict_self");
  return MustFail(open("/tmp/file", O_RDONLY | O_CLOEXEC), EACCES, "open under landlock", "/tmp/file");
}

Result<> Openat2StaysInRoot() {
  GCS_TRY(FreshTmp());
  if (symlink("/proc/version", "/tmp/link") != 0) return ErrnoError("symlink", "/tmp/link");
  const Fd root(open("/tmp", O_PATH | O_DIRECTORY | O_CLOEXEC));
  open_how how = {};
  how.flags = O_RDONLY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT;
  return MustFail(syscall(SYS_openat2, root.get(), "link", &how, sizeof how), ENOENT, "openat2",
                  "RESOLVE_IN_ROOT");
}

Result<> InotifyReportsWrite() {
  GCS_TRY(FreshTmp());
  const Fd watch(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!watch) return ErrnoError("inotify_init1");
  if (inotify_add_watch(watch.get(), "/tmp", IN_CREATE) < 0) return ErrnoError("inotify_add_watch", "/tmp");
  GCS_TRY(WriteFile("/tmp/file", "x"));
  alignas(inotify_event) char buffer[512];
  if (read(watch.get(), buffer, sizeof buffer) <= 0) return ErrnoError("read", "inotify");
  return {};
}

Result<> SharedMemoryAndQueues() {
  const int segment = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
  if (segment < 0) return ErrnoError("shmget");
  if (shmctl(segment, IPC_RMID, nullptr) != 0) return ErrnoError("shmctl");
  const mqd_t queue = mq_open("/selfcheck", O_CREAT | O_RDWR, 0600, nullptr);
  if (queue < 0) return ErrnoError("mq_open");
  mq_close(queue);
  if (mq_unlink("/selfcheck") != 0) return ErrnoError("mq_unlink");
  return {};
}

Result<> KeyringHoldsKey() {
  // KEY_SPEC_THREAD_KEYRING
  if (syscall(SYS_add_key, "user", "selfcheck", "x", 1, -1) < 0) return ErrnoError("add_key");
  return {};
}

Result<> MemfdSeals() {
  const Fd memory(memfd_create("selfcheck", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory) return ErrnoError("memfd_create");
  if (fcntl(memory.get(), F_ADD_SEALS, F_SEAL_WRITE) != 0) return ErrnoError("F_ADD_SEALS");
  return MustFail(write(memory.get(), "x", 1), EPERM, "write to a sealed memfd");
}

Result<> AioExists() {
  unsigned long context = 0;
  if (syscall(SYS_io_setup, 4, &context) != 0) return ErrnoError("io_setup");
  syscall(SYS_io_destroy, context);
  return {};
}

const Item kItems[] = {
    {"seccomp-notify", SeccompNotifies},
    {"io-uring", IoUringWorks},
    {"fanotify", FanotifyReportsOpen},
    {"inotify", InotifyReportsWrite},
    {"landlock", LandlockConfines},
    {"openat2-in-root", Openat2StaysInRoot},
    {"sysv-ipc-and-mqueue", SharedMemoryAndQueues},
    {"keyring", KeyringHoldsKey},
    {"memfd-seals", MemfdSeals},
    {"aio", AioExists},
};

}  // namespace

std::span<const Item> SyscallItems() { return kItems; }

}  // namespace gcs::selfcheck
