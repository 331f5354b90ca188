// SPDX-License-Identifier: Apache-2.0
// The floor that the engine is compared with: a small resident process that does for each container just the
// system calls which the configuration of `runc spec` (terminal false) asks for, with nothing to parse, check
// or report, and no pools.
//
//   bench_floor ROOTFS PROGRAM CGROUP_DIR...
//
// One directory is of cgroup2, several are of v1 hierarchies whose mount points are named as their
// controllers (see machine.h). Each line "COUNT [filter]" on stdin runs COUNT containers, one after the
// other; with "filter" they get a device filter like the one of runc and crun. The answer is COUNT times 8
// bytes on stdout: ns of each.
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// The capabilities of `runc spec`: CAP_AUDIT_WRITE, CAP_KILL, CAP_NET_BIND_SERVICE.
#define KEPT_CAPS (1ULL << 29 | 1ULL << 5 | 1ULL << 10)

static int last_cap;
static const char* program;

static struct {
  char name[32];
  int fd;
} hierarchies[16];
static int hierarchy_count;  // 0: cgroup2

#define MUST(call)                                                 \
  do {                                                             \
    if ((call) < 0) {                                              \
      dprintf(2, "bench_floor: %s: %s\n", #call, strerror(errno)); \
      _exit(2);                                                    \
    }                                                              \
  } while (0)

static void mask(const char* path) {
  if (mount("/dev/null", path, NULL, MS_BIND, NULL) == 0 || errno == ENOENT) return;
  if (errno != ENOTDIR) MUST(-1);
  MUST(mount("tmpfs", path, "tmpfs", MS_RDONLY, NULL));
}

static void make_readonly(const char* path) {
  if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) != 0) {
    if (errno == ENOENT) return;
    MUST(-1);
  }
  MUST(mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
}

static void mount_all(void) {
  const unsigned long restricted = MS_NOSUID | MS_NOEXEC | MS_NODEV;
  MUST(mount("/root", "/mnt", NULL, MS_BIND | MS_REC, NULL));
  MUST(chdir("/mnt"));
  MUST(mount("proc", "proc", "proc", 0, NULL));
  MUST(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
  MUST(mkdir("dev/pts", 0755));
  MUST(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
             "newinstance,ptmxmode=0666,mode=0620,gid=5"));
  MUST(mkdir("dev/shm", 0755));
  MUST(mount("shm", "dev/shm", "tmpfs", restricted, "mode=1777,size=65536k"));
  MUST(mkdir("dev/mqueue", 0755));
  MUST(mount("mqueue", "dev/mqueue", "mqueue", restricted, NULL));
  MUST(mount("sysfs", "sys", "sysfs", restricted | MS_RDONLY, NULL));
  if (hierarchy_count == 0) {
    MUST(mount("cgroup", "sys/fs/cgroup", "cgroup2", restricted | MS_RELATIME | MS_RDONLY, NULL));
  } else {
    MUST(mount("cgroup", "sys/fs/cgroup", "tmpfs", restricted | MS_RELATIME, "mode=755"));
    for (int i = 0; i < hierarchy_count; ++i) {
      char path[1024];
      snprintf(path, sizeof path, "sys/fs/cgroup/%s", hierarchies[i].name);
      MUST(mkdir(path, 0755));
      MUST(mount("cgroup", path, "cgroup", restricted | MS_RELATIME | MS_RDONLY, hierarchies[i].name));
    }
    MUST(mount(NULL, "sys/fs/cgroup", NULL, MS_REMOUNT | MS_BIND | restricted | MS_RELATIME | MS_RDONLY,
               NULL));
  }
  MUST(mknod("dev/null", S_IFCHR | 0666, makedev(1, 3)));
  MUST(mknod("dev/zero", S_IFCHR | 0666, makedev(1, 5)));
  MUST(mknod("dev/full", S_IFCHR | 0666, makedev(1, 7)));
  MUST(mknod("dev/random", S_IFCHR | 0666, makedev(1, 8)));
  MUST(mknod("dev/urandom", S_IFCHR | 0666, makedev(1, 9)));
  MUST(mknod("dev/tty", S_IFCHR | 0666, makedev(5, 0)));
  MUST(symlink("/proc/self/fd", "dev/fd"));
  MUST(symlink("/proc/self/fd/0", "dev/stdin"));
  MUST(symlink("/proc/self/fd/1", "dev/stdout"));
  MUST(symlink("/proc/self/fd/2", "dev/stderr"));
  MUST(symlink("pts/ptmx", "dev/ptmx"));
}

__attribute__((noreturn)) static void child(void) {
  umask(0);
  MUST(sethostname("runc", 4));
  mount_all();
  MUST(syscall(SYS_pivot_root, ".", "."));
  MUST(umount2(".", MNT_DETACH));
  MUST(chdir("/"));
  static const char* const readonly_paths[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                                               "/proc/sysrq-trigger"};
  for (unsigned i = 0; i < sizeof readonly_paths / sizeof *readonly_paths; ++i)
    make_readonly(readonly_paths[i]);
  static const char* const masked_paths[] = {
      "/proc/acpi",       "/proc/asound",      "/proc/kcore",       "/proc/keys",    "/proc/latency_stats",
      "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"};
  for (unsigned i = 0; i < sizeof masked_paths / sizeof *masked_paths; ++i) mask(masked_paths[i]);
  MUST(mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL));
  const struct rlimit files = {1024, 1024};
  MUST(setrlimit(RLIMIT_NOFILE, &files));
  for (int cap = 0; cap <= last_cap; ++cap) {
    if ((KEPT_CAPS >> cap & 1) == 0) MUST(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0));
  }
  MUST(syscall(SYS_setgroups, 0, NULL));
  MUST(syscall(SYS_setresgid, 0, 0, 0));
  MUST(syscall(SYS_setresuid, 0, 0, 0));
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  const struct __user_cap_data_struct data[2] = {
      {(uint32_t)KEPT_CAPS, (uint32_t)KEPT_CAPS, 0},
      {(uint32_t)(KEPT_CAPS >> 32), (uint32_t)(KEPT_CAPS >> 32), 0}};
  MUST(syscall(SYS_capset, &header, data));
  umask(022);
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  char* const args[] = {(char*)program, NULL};
  char* const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm",
                       "HOME=/", NULL};
  MUST(execve(program, args, env));
  _exit(2);
}

#define ALU(op, dst, imm_) {.code = BPF_ALU | (op) | BPF_K, .dst_reg = (dst), .imm = (imm_)}
#define COPY(dst, src) {.code = BPF_ALU | BPF_MOV | BPF_X, .dst_reg = (dst), .src_reg = (src)}
#define LOAD(dst, off_) \
  {.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = (dst), .src_reg = BPF_REG_1, .off = (off_)}
#define UNLESS(dst, imm_, skip) \
  {.code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = (dst), .off = (skip), .imm = (imm_)}
#define EXIT {.code = BPF_JMP | BPF_EXIT}
// Type, major and minor all match (minor -1: any), then allow.
#define RULE(type, major, minor)                                                        \
  UNLESS(BPF_REG_2, type, 4), UNLESS(BPF_REG_4, major, 3), UNLESS(BPF_REG_5, minor, 2), \
      ALU(BPF_MOV, BPF_REG_0, 1), EXIT
#define RULE_MAJOR(type, major) \
  UNLESS(BPF_REG_2, type, 3), UNLESS(BPF_REG_4, major, 2), ALU(BPF_MOV, BPF_REG_0, 1), EXIT

// Loads and attaches what "deny all" plus the default devices amounts to.
static void attach_filter(int cgroup) {
  static const struct bpf_insn code[] = {LOAD(BPF_REG_2, 0),
                                         COPY(BPF_REG_3, BPF_REG_2),
                                         ALU(BPF_AND, BPF_REG_2, 0xffff),
                                         ALU(BPF_RSH, BPF_REG_3, 16),
                                         LOAD(BPF_REG_4, 4),
                                         LOAD(BPF_REG_5, 8),
                                         RULE(BPF_DEVCG_DEV_CHAR, 1, 3),
                                         RULE(BPF_DEVCG_DEV_CHAR, 1, 5),
                                         RULE(BPF_DEVCG_DEV_CHAR, 1, 7),
                                         RULE(BPF_DEVCG_DEV_CHAR, 1, 8),
                                         RULE(BPF_DEVCG_DEV_CHAR, 1, 9),
                                         RULE(BPF_DEVCG_DEV_CHAR, 5, 0),
                                         RULE(BPF_DEVCG_DEV_CHAR, 5, 2),
                                         RULE(BPF_DEVCG_DEV_CHAR, 10, 200),
                                         RULE_MAJOR(BPF_DEVCG_DEV_CHAR, 136),
                                         UNLESS(BPF_REG_3, BPF_DEVCG_ACC_MKNOD, 2),
                                         ALU(BPF_MOV, BPF_REG_0, 1),
                                         EXIT,
                                         ALU(BPF_MOV, BPF_REG_0, 0),
                                         EXIT};
  union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
                         .insns = (uint64_t)(uintptr_t)code,
                         .insn_cnt = sizeof code / sizeof *code,
                         .license = (uint64_t)(uintptr_t)"Apache-2.0"};
  const int filter = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
  MUST(filter);
  union bpf_attr attach = {.target_fd = (uint32_t)cgroup,
                           .attach_bpf_fd = (uint32_t)filter,
                           .attach_type = BPF_CGROUP_DEVICE,
                           .attach_flags = BPF_F_ALLOW_MULTI};
  MUST(syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach));
  close(filter);
}

static void put(int directory, const char* cgroup, const char* file, const char* text) {
  char path[1024];
  snprintf(path, sizeof path, "%s/%s", cgroup, file);
  const int fd = openat(directory, path, O_WRONLY | O_CLOEXEC);
  MUST(fd);
  MUST(write(fd, text, strlen(text)));
  close(fd);
}

static char cpus[256], mems[256];  // of the parent, which a new cpuset has to be told

static void filter_v1(int directory, const char* cgroup) {
  static const char* const allowed[] = {"c *:* m",   "b *:* m",     "c 1:3 rwm",   "c 1:5 rwm",
                                        "c 1:7 rwm", "c 1:8 rwm",   "c 1:9 rwm",   "c 5:0 rwm",
                                        "c 5:2 rwm", "c 136:* rwm", "c 10:200 rwm"};
  put(directory, cgroup, "devices.deny", "a");
  char path[1024];
  snprintf(path, sizeof path, "%s/devices.allow", cgroup);
  const int fd = openat(directory, path, O_WRONLY | O_CLOEXEC);
  MUST(fd);
  for (unsigned i = 0; i < sizeof allowed / sizeof *allowed; ++i)
    MUST(write(fd, allowed[i], strlen(allowed[i])));
  close(fd);
}

static void await_end(pid_t pid) {
  int status = 0;
  MUST(waitpid(pid, &status, 0));
  if (status != 0) {
    dprintf(2, "bench_floor: the container ended with status %#x\n", (unsigned)status);
    _exit(2);
  }
}

static void run_one_v1(unsigned number, int filter) {
  char name[32];
  snprintf(name, sizeof name, "f%u", number);
  for (int i = 0; i < hierarchy_count; ++i) {
    MUST(mkdirat(hierarchies[i].fd, name, 0755));
    if (strcmp(hierarchies[i].name, "cpuset") == 0) {
      put(hierarchies[i].fd, name, "cpuset.cpus", cpus);
      put(hierarchies[i].fd, name, "cpuset.mems", mems);
    }
    if (filter && strcmp(hierarchies[i].name, "devices") == 0) filter_v1(hierarchies[i].fd, name);
  }
  int gate[2];
  MUST(pipe2(gate, O_CLOEXEC));
  struct clone_args args = {.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET,
                            .exit_signal = SIGCHLD};
  const long pid = syscall(SYS_clone3, &args, sizeof args);
  MUST(pid);
  if (pid == 0) {
    char byte;
    MUST(read(gate[0], &byte, 1) == 1 ? 0 : -1);
    MUST(unshare(CLONE_NEWCGROUP));
    child();
  }
  char text[32];
  snprintf(text, sizeof text, "%ld", pid);
  for (int i = 0; i < hierarchy_count; ++i) put(hierarchies[i].fd, name, "cgroup.procs", text);
  MUST(write(gate[1], "", 1));
  close(gate[0]);
  close(gate[1]);
  await_end((pid_t)pid);
  for (int i = 0; i < hierarchy_count; ++i) MUST(unlinkat(hierarchies[i].fd, name, AT_REMOVEDIR));
}

static void run_one(int parent, unsigned number, int filter) {
  if (hierarchy_count != 0) {
    run_one_v1(number, filter);
    return;
  }
  char name[32];
  snprintf(name, sizeof name, "f%u", number);
  MUST(mkdirat(parent, name, 0755));
  const int cgroup = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(cgroup);
  if (filter) attach_filter(cgroup);
  struct clone_args args = {.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET |
                                     CLONE_NEWCGROUP | CLONE_INTO_CGROUP,
                            .exit_signal = SIGCHLD,
                            .cgroup = (uint64_t)cgroup};
  const long pid = syscall(SYS_clone3, &args, sizeof args);
  MUST(pid);
  if (pid == 0) child();
  await_end((pid_t)pid);
  close(cgroup);
  MUST(unlinkat(parent, name, AT_REMOVEDIR));
}

// A mount namespace with nothing in it but a null device, the root file system and two mount points, like the
// zygote's: each container's copy of it is as cheap as it can be.
static void enter_small_root(const char* rootfs) {
  MUST(unshare(CLONE_NEWNS));
  MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  MUST(mount("floor", "/proc", "tmpfs", 0, NULL));
  MUST(mkdir("/proc/root", 0755));
  MUST(mkdir("/proc/mnt", 0755));
  MUST(mount(rootfs, "/proc/root", NULL, MS_BIND, NULL));
  MUST(chdir("/proc"));
  MUST(syscall(SYS_pivot_root, ".", "."));
  MUST(umount2(".", MNT_DETACH));
  MUST(chdir("/"));
}

// "/sys/fs/cgroup/NAME/...".
static void open_hierarchy(const char* path) {
  const char* name = path + strlen("/sys/fs/cgroup/");
  const size_t length = strcspn(name, "/");
  memcpy(hierarchies[hierarchy_count].name, name, length);
  const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(fd);
  hierarchies[hierarchy_count].fd = fd;
  if (strcmp(hierarchies[hierarchy_count].name, "cpuset") == 0) {
    const char* const files[] = {"cpuset.cpus", "cpuset.mems"};
    char* const texts[] = {cpus, mems};
    for (int i = 0; i < 2; ++i) {
      const int file = openat(fd, files[i], O_RDONLY | O_CLOEXEC);
      MUST(file);
      MUST(read(file, texts[i], sizeof cpus - 1));
      close(file);
    }
  }
  ++hierarchy_count;
}

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000ULL + (uint64_t)time.tv_nsec;
}

int main(int argc, char** argv) {
  if (argc < 4 || argc > 3 + 16) {
    fprintf(stderr, "usage: bench_floor ROOTFS PROGRAM CGROUP_DIR...\n");
    return 2;
  }
  program = argv[2];
  while (prctl(PR_CAPBSET_READ, last_cap + 1, 0, 0, 0) >= 0) ++last_cap;
  const int parent = open(argv[3], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(parent);
  for (int i = 3; argc > 4 && i < argc; ++i) open_hierarchy(argv[i]);
  enter_small_root(argv[1]);
  char line[64];
  unsigned number = 0;
  while (fgets(line, sizeof line, stdin) != NULL) {
    const long count = strtol(line, NULL, 10);
    const int filter = strstr(line, "filter") != NULL;
    for (long i = 0; i < count; ++i) {
      const uint64_t begin = now_ns();
      run_one(parent, number++, filter);
      const uint64_t took = now_ns() - begin;
      if (fwrite(&took, sizeof took, 1, stdout) != 1) return 2;
    }
    if (fflush(stdout) != 0) return 2;
  }
  return 0;
}
