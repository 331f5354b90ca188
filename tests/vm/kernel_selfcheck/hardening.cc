// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/bpf.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

Result<> Absent(const char* path) {
  struct stat info = {};
  return MustFail(stat(path, &info), ENOENT, "stat", path);
}

// A node made by hand must have no driver behind it either.
Result<> NoDriver(const char* path, unsigned minor_number) {
  GCS_TRY(Absent(path));
  GCS_TRY(FreshTmp());
  if (mknod("/tmp/node", S_IFCHR | 0600, makedev(1, minor_number)) != 0) return ErrnoError("mknod", path);
  return MustFail(open("/tmp/node", O_RDONLY | O_CLOEXEC), ENXIO, "open a node for", path);
}

Result<> NoSyscall(long number, const char* name) {
  return MustFail(syscall(number, 0, 0, 0, 0, 0), ENOSYS, "call", name);
}

// The 32-bit gate has no handler: the process dies.
Result<> NoInt80() {
  const pid_t pid = fork();
  if (pid < 0) return ErrnoError("fork");
  if (pid == 0) {
    long value = 20;  // getpid of the 32-bit table
    asm volatile("int $0x80" : "+a"(value) : : "memory");
    _exit(0);
  }
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return ErrnoError("waitpid");
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSEGV) {
    return MakeError(ENOTSUP, "int 0x80", {}, "the process was not killed by SIGSEGV");
  }
  return {};
}

Result<> LogIsForRoot() {
  constexpr int kReadAll = 3;
  char buffer[256];
  if (klogctl(kReadAll, buffer, sizeof buffer) < 0) return ErrnoError("read the kernel log as root");
  return AsUser([]() -> Result<> {
    char text[256];
    return MustFail(klogctl(kReadAll, text, sizeof text), EPERM, "read the kernel log as uid 1000");
  });
}

Result<> UnprivilegedBpfRefused() {
  return AsUser([]() -> Result<> {
    const bpf_insn program[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .src_reg = 0, .off = 0, .imm = 0},
        {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
    };
    bpf_attr load = {};
    load.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    load.insns = reinterpret_cast<uintptr_t>(program);
    load.insn_cnt = 2;
    load.license = reinterpret_cast<uintptr_t>("Apache-2.0");
    return MustFail(syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load), EPERM, "bpf as uid 1000",
                    "BPF_PROG_LOAD");
  });
}

Result<> VsyscallIsExecuteOnly() {
  GCS_ASSIGN(const std::string maps, ReadFile("/proc/self/maps"));
  const size_t at = maps.find("[vsyscall]");
  if (at == std::string::npos) return MakeError(ENOENT, "find [vsyscall]", "/proc/self/maps");
  const size_t line = maps.rfind('\n', at) + 1;
  const std::string text = maps.substr(line, at - line);
  if (text.find(" --xp ") == std::string::npos)
    return MakeError(EACCES, "compare mode of", "[vsyscall]", text);
  return {};
}

// Typing into one's own terminal takes CAP_SYS_ADMIN.
Result<> TiocstiRefused() {
  const Fd master(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!master) return ErrnoError("posix_openpt");
  if (unlockpt(master.get()) != 0) return ErrnoError("unlockpt");
  const int slave = ioctl(master.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (slave < 0) return ErrnoError("TIOCGPTPEER");
  const Fd terminal(slave);
  return AsUser([&terminal]() -> Result<> {
    if (setsid() < 0) return ErrnoError("setsid");
    if (ioctl(terminal.get(), TIOCSCTTY, 0) != 0) return ErrnoError("TIOCSCTTY");
    char byte = 'x';
    return MustFail(ioctl(terminal.get(), TIOCSTI, &byte), EIO, "TIOCSTI as uid 1000");
  });
}

Result<> LineDisciplineNotLoadable() {
  GCS_ASSIGN(const std::string value, ReadFile("/proc/sys/dev/tty/ldisc_autoload"));
  if (value != "0\n") return MakeError(EPERM, "read", "/proc/sys/dev/tty/ldisc_autoload", value);
  return {};
}

// One process of uid 1000 attaches to another that is not its child.
Result<> AttachToSibling() {
  return AsUser([]() -> Result<> {
    const pid_t target = fork();
    if (target < 0) return ErrnoError("fork");
    if (target == 0) {
      for (;;) pause();
    }
    const Result<> result = InChild([target]() -> Result<> {
      if (ptrace(PTRACE_ATTACH, target, nullptr, nullptr) != 0)
        return ErrnoError("PTRACE_ATTACH", "a sibling");
      return {};
    });
    kill(target, SIGKILL);
    if (waitpid(target, nullptr, __WALL) != target) return ErrnoError("waitpid");
    return result;
  });
}

// Debian's kernel source starts with scope 0; init sets 1.
Result<> YamaRestrictsPtrace() {
  constexpr char kScope[] = "/proc/sys/kernel/yama/ptrace_scope";
  GCS_TRY(WriteFile(kScope, "0"));
  GCS_TRY(AttachToSibling());
  GCS_TRY(WriteFile(kScope, "1"));
  const Result<> attached = AttachToSibling();
  GCS_TRY(WriteFile(kScope, "0"));
  errno = attached ? 0 : attached.error().err;
  return MustFail(attached ? 0 : -1, EPERM, "attach to a sibling", kScope);
}

Result<> DebugfsUnknown() {
  return MustFail(mount("debugfs", "/mnt", "debugfs", 0, nullptr), ENODEV, "mount", "debugfs");
}

Result<> TracefsUnknown() {
  return MustFail(mount("tracefs", "/mnt", "tracefs", 0, nullptr), ENODEV, "mount", "tracefs");
}

const Item kItems[] = {
    {"no-dev-mem", [] { return NoDriver("/dev/mem", 1); }},
    {"no-dev-port", [] { return NoDriver("/dev/port", 4); }},
    {"no-kcore", [] { return Absent("/proc/kcore"); }},
    {"no-vmcore", [] { return Absent("/proc/vmcore"); }},
    {"no-legacy-ptys", [] { return Absent("/dev/ptyp0"); }},
    {"no-kexec-load", [] { return NoSyscall(SYS_kexec_load, "kexec_load"); }},
    {"no-kexec-file-load", [] { return NoSyscall(SYS_kexec_file_load, "kexec_file_load"); }},
    {"no-modify-ldt", [] { return NoSyscall(SYS_modify_ldt, "modify_ldt"); }},
    {"no-iopl", [] { return NoSyscall(SYS_iopl, "iopl"); }},
    {"no-ioperm", [] { return NoSyscall(SYS_ioperm, "ioperm"); }},
    {"no-int80", NoInt80},
    {"no-debugfs", DebugfsUnknown},
    {"no-tracefs", TracefsUnknown},
    {"kernel-log-restricted", LogIsForRoot},
    {"unprivileged-bpf-refused", UnprivilegedBpfRefused},
    {"vsyscall-execute-only", VsyscallIsExecuteOnly},
    {"tiocsti-refused", TiocstiRefused},
    {"ldisc-autoload-off", LineDisciplineNotLoadable},
    {"yama-ptrace-scope", YamaRestrictsPtrace},
};

}  // namespace

std::span<const Item> HardeningItems() { return kItems; }

}  // namespace gcs::selfcheck
