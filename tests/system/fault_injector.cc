// SPDX-License-Identifier: Apache-2.0
#include "system/fault_injector.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <link.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

#include "base/clock.h"
#include "base/error.h"
#include "base/paths.h"

namespace gcs::test {
namespace {

enum class How {
  kInstead,  // the call is not made
  kAfter,    // it is made, and then said to have failed: the kernel does its work whatever it returns. Root's
             // signals to its own children count among these.
  kNever,    // it can't fail, or not in a way that a program could live with
};

struct Row {
  int number;
  std::string_view name;
  How how;
  int path;  // argument that is a path; -1: none
  std::array<int, 2> errnos;
};

constexpr How kInstead = How::kInstead;

// Errnos that the kernel may well give, and that no caller takes for an answer ("not there", "is there").
// EINTR where a signal or a stop can bring it.
constexpr Row kRows[] = {
    {SYS_accept4, "accept4", kInstead, -1, {EMFILE, EINTR}},
    {SYS_bind, "bind", kInstead, -1, {ENOMEM}},
    {SYS_bpf, "bpf", kInstead, -1, {ENOMEM}},
    {SYS_capget, "capget", kInstead, -1, {EPERM}},
    {SYS_capset, "capset", kInstead, -1, {EPERM}},
    {SYS_chdir, "chdir", kInstead, 0, {EIO}},
    {SYS_chmod, "chmod", kInstead, 0, {EPERM}},
    {SYS_chroot, "chroot", kInstead, 0, {EPERM}},
    {SYS_clone, "clone", kInstead, -1, {EAGAIN}},
    {SYS_clone3, "clone3", kInstead, -1, {EAGAIN}},
    {SYS_close, "close", How::kAfter, -1, {EIO}},
    {SYS_close_range, "close_range", kInstead, -1, {ENOSYS}},
    {SYS_connect, "connect", kInstead, -1, {EAGAIN}},
    {SYS_dup, "dup", kInstead, -1, {EMFILE}},
    {SYS_dup2, "dup2", kInstead, -1, {EMFILE}},
    {SYS_dup3, "dup3", kInstead, -1, {EMFILE}},
    {SYS_execve, "execve", kInstead, 0, {ENOMEM}},
    {SYS_faccessat2, "faccessat2", kInstead, 1, {EIO}},
    {SYS_fchdir, "fchdir", kInstead, -1, {EACCES}},
    {SYS_fchmod, "fchmod", kInstead, -1, {EPERM}},
    {SYS_fchmodat, "fchmodat", kInstead, 1, {EPERM}},
    {SYS_fchown, "fchown", kInstead, -1, {EPERM}},
    {SYS_fchownat, "fchownat", kInstead, 1, {EPERM}},
    {SYS_fcntl, "fcntl", kInstead, -1, {EMFILE}},
    {SYS_fgetxattr, "fgetxattr", kInstead, -1, {EIO}},
    {SYS_flistxattr, "flistxattr", kInstead, -1, {EIO}},
    {SYS_flock, "flock", kInstead, -1, {ENOLCK, EINTR}},
    {SYS_fork, "fork", kInstead, -1, {EAGAIN}},
    {SYS_fsconfig, "fsconfig", kInstead, -1, {ENOMEM}},
    {SYS_fsetxattr, "fsetxattr", kInstead, -1, {ENOSPC}},
    {SYS_fsmount, "fsmount", kInstead, -1, {EMFILE}},
    {SYS_fsopen, "fsopen", kInstead, 0, {EMFILE}},
    {SYS_fspick, "fspick", kInstead, 1, {EMFILE}},
    {SYS_fstat, "fstat", kInstead, -1, {EIO}},
    {SYS_fstatfs, "fstatfs", kInstead, -1, {EIO}},
    {SYS_fsync, "fsync", kInstead, -1, {EIO}},
    {SYS_ftruncate, "ftruncate", kInstead, -1, {EIO}},
    {SYS_getcwd, "getcwd", kInstead, -1, {ENOMEM}},
    {SYS_getdents64, "getdents64", kInstead, -1, {EIO}},
    {SYS_ioctl, "ioctl", kInstead, -1, {EIO}},
    {SYS_ioprio_set, "ioprio_set", kInstead, -1, {EPERM}},
    {SYS_keyctl, "keyctl", kInstead, -1, {ENOMEM}},
    {SYS_kill, "kill", How::kAfter, -1, {EPERM}},
    {SYS_listen, "listen", kInstead, -1, {EADDRINUSE}},
    {SYS_lseek, "lseek", kInstead, -1, {EIO}},
    {SYS_memfd_create, "memfd_create", kInstead, -1, {EMFILE}},
    {SYS_mkdir, "mkdir", kInstead, 0, {ENOSPC}},
    {SYS_mkdirat, "mkdirat", kInstead, 1, {ENOSPC}},
    {SYS_mknodat, "mknodat", kInstead, 1, {ENOSPC}},
    {SYS_mmap, "mmap", kInstead, -1, {ENOMEM}},
    {SYS_mount, "mount", kInstead, 1, {ENOMEM}},
    {SYS_mount_setattr, "mount_setattr", kInstead, -1, {EPERM}},
    {SYS_move_mount, "move_mount", kInstead, -1, {ENOSPC}},
    {SYS_newfstatat, "newfstatat", kInstead, 1, {EIO}},
    {SYS_open, "open", kInstead, 0, {EMFILE}},
    {SYS_open_tree, "open_tree", kInstead, 1, {EMFILE}},
    {SYS_openat, "openat", kInstead, 1, {EMFILE}},
    {SYS_openat2, "openat2", kInstead, 1, {EMFILE}},
    {SYS_personality, "personality", kInstead, -1, {EPERM}},
    {SYS_pidfd_open, "pidfd_open", kInstead, -1, {EMFILE}},
    {SYS_pidfd_send_signal, "pidfd_send_signal", How::kAfter, -1, {EPERM}},
    {SYS_pivot_root, "pivot_root", kInstead, -1, {EPERM}},
    {SYS_poll, "poll", kInstead, -1, {ENOMEM, EINTR}},
    {SYS_ppoll, "ppoll", kInstead, -1, {ENOMEM, EINTR}},
    {SYS_prctl, "prctl", kInstead, -1, {EPERM}},
    {SYS_pread64, "pread64", kInstead, -1, {EIO, EINTR}},
    {SYS_prlimit64, "prlimit64", kInstead, -1, {EPERM}},
    {SYS_pwrite64, "pwrite64", kInstead, -1, {ENOMEM, EINTR}},
    {SYS_read, "read", kInstead, -1, {EIO, EINTR}},
    {SYS_readlinkat, "readlinkat", kInstead, 1, {EIO}},
    {SYS_recvfrom, "recvfrom", kInstead, -1, {ENOMEM, EINTR}},
    {SYS_recvmsg, "recvmsg", kInstead, -1, {ENOMEM, EINTR}},
    {SYS_rename, "rename", kInstead, 0, {ENOSPC}},
    {SYS_rmdir, "rmdir", kInstead, 0, {EIO}},
    {SYS_sched_setaffinity, "sched_setaffinity", kInstead, -1, {ENOMEM}},
    {SYS_sched_setattr, "sched_setattr", kInstead, -1, {EPERM}},
    {SYS_seccomp, "seccomp", kInstead, -1, {ENOMEM}},
    {SYS_sendfile, "sendfile", kInstead, -1, {ENOSPC, EINTR}},
    {SYS_sendmsg, "sendmsg", kInstead, -1, {ENOBUFS, EINTR}},
    {SYS_sendto, "sendto", kInstead, -1, {ENOBUFS, EINTR}},
    {SYS_set_mempolicy, "set_mempolicy", kInstead, -1, {ENOMEM}},
    {SYS_setdomainname, "setdomainname", kInstead, -1, {EPERM}},
    {SYS_setgroups, "setgroups", kInstead, -1, {ENOMEM}},
    {SYS_sethostname, "sethostname", kInstead, -1, {EPERM}},
    {SYS_setns, "setns", kInstead, -1, {ENOMEM}},
    {SYS_setpgid, "setpgid", kInstead, -1, {EPERM}},
    {SYS_setresgid, "setresgid", kInstead, -1, {EPERM}},
    {SYS_setresuid, "setresuid", kInstead, -1, {EAGAIN}},
    {SYS_setrlimit, "setrlimit", kInstead, -1, {EPERM}},
    {SYS_setsockopt, "setsockopt", kInstead, -1, {ENOMEM}},
    {SYS_setsid, "setsid", kInstead, -1, {EPERM}},
    {SYS_shutdown, "shutdown", How::kAfter, -1, {ENOTCONN}},
    {SYS_socket, "socket", kInstead, -1, {EMFILE}},
    {SYS_socketpair, "socketpair", kInstead, -1, {EMFILE}},
    {SYS_stat, "stat", kInstead, 0, {EIO}},
    {SYS_statfs, "statfs", kInstead, 0, {EIO}},
    {SYS_statx, "statx", kInstead, 1, {EIO}},
    {SYS_symlinkat, "symlinkat", kInstead, 2, {ENOSPC}},
    {SYS_umount2, "umount2", kInstead, 0, {EPERM}},
    {SYS_unlink, "unlink", kInstead, 0, {EIO}},
    {SYS_unlinkat, "unlinkat", kInstead, 1, {EIO}},
    {SYS_unshare, "unshare", kInstead, -1, {ENOSPC}},
    {SYS_utimensat, "utimensat", kInstead, 1, {EPERM}},
    {SYS_vfork, "vfork", kInstead, -1, {EAGAIN}},
    {SYS_wait4, "wait4", kInstead, -1, {EINTR}},
    {SYS_waitid, "waitid", kInstead, -1, {EINTR}},
    {SYS_write, "write", kInstead, -1, {ENOMEM, EINTR}},
    // Memory: what the C library can't get ends the process, as the agent has decided (no exceptions).
    {SYS_brk, "brk", How::kNever, -1, {}},
    {SYS_madvise, "madvise", How::kNever, -1, {}},
    {SYS_mprotect, "mprotect", How::kNever, -1, {}},
    {SYS_mremap, "mremap", How::kNever, -1, {}},
    {SYS_munmap, "munmap", How::kNever, -1, {}},
    // They don't return, or fail for wrong arguments only.
    {SYS_clock_nanosleep, "clock_nanosleep", How::kNever, -1, {}},
    {SYS_exit, "exit", How::kNever, -1, {}},
    {SYS_exit_group, "exit_group", How::kNever, -1, {}},
    {SYS_futex, "futex", How::kNever, -1, {}},
    {SYS_getegid, "getegid", How::kNever, -1, {}},
    {SYS_geteuid, "geteuid", How::kNever, -1, {}},
    {SYS_getgid, "getgid", How::kNever, -1, {}},
    {SYS_getpid, "getpid", How::kNever, -1, {}},
    {SYS_getppid, "getppid", How::kNever, -1, {}},
    {SYS_gettid, "gettid", How::kNever, -1, {}},
    {SYS_getuid, "getuid", How::kNever, -1, {}},
    {SYS_restart_syscall, "restart_syscall", How::kNever, -1, {}},
    {SYS_rt_sigaction, "rt_sigaction", How::kNever, -1, {}},
    {SYS_rt_sigprocmask, "rt_sigprocmask", How::kNever, -1, {}},
    {SYS_rt_sigreturn, "rt_sigreturn", How::kNever, -1, {}},
    {SYS_rseq, "rseq", How::kNever, -1, {}},
    {SYS_sched_yield, "sched_yield", How::kNever, -1, {}},
    {SYS_set_robust_list, "set_robust_list", How::kNever, -1, {}},
    {SYS_umask, "umask", How::kNever, -1, {}},
};

const Row* Find(uint64_t number) {
  const auto* it = std::ranges::find(kRows, static_cast<int>(number), &Row::number);
  return it == std::end(kRows) ? nullptr : it;
}

// Of the functions that have an external name; else the address.
std::string Symbol(uint64_t address) {
  Dl_info info{};
  void* extra = nullptr;
  const bool found = dladdr1(reinterpret_cast<void*>(address), &info, &extra, RTLD_DL_SYMENT) != 0;
  const auto* entry = static_cast<const ElfW(Sym)*>(extra);
  if (found && entry != nullptr && info.dli_sname != nullptr &&
      address <= reinterpret_cast<uint64_t>(info.dli_saddr) + entry->st_size) {
    char* name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
    std::string text = name != nullptr ? name : info.dli_sname;
    free(name);
    text = text.substr(0, text.find('('));
    return text.substr(text.rfind(':') == std::string::npos ? 0 : text.rfind(':') + 1);
  }
  char text[32];
  snprintf(text, sizeof text, "%#lx", address - reinterpret_cast<uint64_t>(info.dli_fbase));
  return text;
}

bool Read(pid_t pid, uint64_t address, void* to, size_t size) {
  iovec local{to, size};
  iovec remote{reinterpret_cast<void*>(address), size};
  return process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}

std::string ReadText(pid_t pid, uint64_t address) {
  std::string text;
  char c = 0;
  while (text.size() < 200 && Read(pid, address + text.size(), &c, 1) && c != '\0') text += c;
  return text;
}

// The program's own code is the same here and there.
bool FollowsCall(uint64_t address) {
  const auto* code = reinterpret_cast<const unsigned char*>(address);
  if (code[-5] == 0xe8) return true;  // call rel32
  // call r/m: ff /2, with no, 1, or 4 bytes of displacement, and a SIB byte or none.
  for (const int length : {2, 3, 4, 6, 7}) {
    if (code[-length] == 0xff && (code[1 - length] >> 3 & 7) == 2) return true;
  }
  return false;
}

pid_t ThreadGroup(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string word; status >> word;) {
    if (word != "Tgid:") continue;
    pid_t group = 0;
    status >> group;
    return group;
  }
  return pid;
}

void OnAlarm(int) {}

}  // namespace

std::string_view SyscallName(int number) {
  const Row* row = Find(static_cast<uint64_t>(number));
  return row == nullptr ? "?" : row->name;
}

std::string Fault::ToString() const {
  std::string text = base::ErrnoName(err) + " from " + std::string(SyscallName(number)) + "(";
  if (!path.empty()) {
    text += path;
  } else {
    char buffer[64];
    snprintf(buffer, sizeof buffer, "%#lx, %#lx, %#lx", args[0], args[1], args[2]);
    text += buffer;
  }
  text += ") in " + role + ", time " + std::to_string(occurrence) + ", called in";
  for (const std::string& caller : callers) text += " " + caller;
  return text;
}

FaultInjector::FaultInjector(const std::function<void()>& daemon, FaultsSeen& seen) : seen_(seen) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uint64_t begin = 0;
    uint64_t end = 0;
    if (sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2) continue;
    const auto own = reinterpret_cast<uint64_t>(&OnAlarm);
    if (own < begin || own >= end) continue;
    text_begin_ = begin;
    text_end_ = end;
  }
  REQUIRE(text_end_ != 0);
  // A blocking wait ends with the alarm.
  struct sigaction action{};
  action.sa_handler = OnAlarm;
  sigaction(SIGALRM, &action, nullptr);
  // Not to be written twice.
  std::cout.flush();
  int gate[2];
  REQUIRE(pipe(gate) == 0);
  daemon_ = fork();
  REQUIRE(daemon_ >= 0);
  if (daemon_ == 0) {
    close(gate[1]);
    char byte = 0;
    [[maybe_unused]] const ssize_t n = read(gate[0], &byte, 1);
    close(gate[0]);
    // A failed REQUIRE must not come out among the tests of the tracer.
    try {
      daemon();
    } catch (...) {
      _exit(99);
    }
    _exit(0);
  }
  constexpr long kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
                            PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
  const long seized = ptrace(PTRACE_SEIZE, daemon_, 0, kOptions);
  close(gate[0]);
  close(gate[1]);
  REQUIRE(seized == 0);
  tracees_[daemon_] = {.role = "daemon"};
}

FaultInjector::~FaultInjector() {
  for (const auto& [pid, tracee] : tracees_) kill(pid, SIGKILL);
  for (const pid_t pid : early_) kill(pid, SIGKILL);
  const int64_t deadline = base::MonotonicNs() + 5 * base::kNsPerSec;
  while (!(tracees_.empty() && early_.empty()) && base::MonotonicNs() < deadline) {
    if (!Pump(false)) usleep(1000);
  }
}

std::string FaultInjector::HowDaemonEnded() const {
  if (daemon_alive()) return "is there";
  return WIFSIGNALED(daemon_status_) ? std::string("ended by ") + strsignal(WTERMSIG(daemon_status_))
                                     : "ended with status " + std::to_string(WEXITSTATUS(daemon_status_));
}

std::string FaultInjector::Others() const {
  std::string text;
  for (const auto& [pid, tracee] : tracees_) {
    if (pid != daemon_ && pid != zygote_) text += " " + tracee.role + " " + std::to_string(pid);
  }
  return text;
}

void FaultInjector::Resume(pid_t pid, int signal) {
  const auto it = tracees_.find(pid);
  const bool failing = it != tracees_.end() && it->second.fail_with != 0;
  const bool watched = armed_ && !fault_ && (pid != daemon_ || inside_);
  // ESRCH: it has been killed meanwhile.
  ptrace(failing || watched ? PTRACE_SYSCALL : PTRACE_CONT, pid, 0, signal);
}

std::vector<uint64_t> FaultInjector::Callers(pid_t pid, uint64_t stack) const {
  constexpr size_t kDepth = 6;
  uint64_t words[512];
  size_t size = sizeof words;
  // The stack may end.
  while (size > 64 && !Read(pid, stack, words, size)) size /= 2;
  std::vector<uint64_t> callers;
  for (size_t i = 0; i < size / sizeof *words && callers.size() < kDepth; ++i) {
    if (words[i] < text_begin_ + 8 || words[i] >= text_end_ || !FollowsCall(words[i])) continue;
    callers.push_back(words[i]);
  }
  return callers;
}

void FaultInjector::OnSyscall(pid_t pid, Tracee& tracee) {
  __ptrace_syscall_info info{};
  if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) <= 0) return;
  if (info.op == PTRACE_SYSCALL_INFO_EXIT) {
    if (tracee.fail_with == 0) return;
    ptrace(PTRACE_POKEUSER, pid, offsetof(user_regs_struct, rax), static_cast<long>(-tracee.fail_with));
    tracee.fail_with = 0;
    return;
  }
  if (info.op != PTRACE_SYSCALL_INFO_ENTRY || !armed_ || fault_) return;
  const Row* row = Find(info.entry.nr);
  REQUIRE_MESSAGE(row != nullptr, "no errno is chosen for system call ", info.entry.nr);
  if (row->how == How::kNever) return;
  // Memory again, but for a file's.
  if (info.entry.nr == SYS_mmap && static_cast<int>(info.entry.args[4]) < 0) return;
  const std::vector<uint64_t> callers = Callers(pid, info.stack_pointer);
  std::string place = tracee.role + " " + std::string(row->name);
  for (const uint64_t caller : callers) place += " " + std::to_string(caller);
  const int occurrence = ++occurrences_[place];
  const int distinct = tracee.role == "daemon" ? 3 : 1;
  place += " " + std::to_string(std::min(occurrence, distinct));
  for (const int err : row->errnos) {
    if (err == 0 || !seen_.insert(place + " " + std::to_string(err)).second) continue;
    fault_ = Fault{.role = tracee.role,
                   .number = row->number,
                   .args = {},
                   .path = row->path >= 0 ? ReadText(pid, info.entry.args[row->path]) : "",
                   .err = err,
                   .phase = *phase_,
                   .occurrence = occurrence,
                   .callers = {}};
    std::ranges::copy(info.entry.args, fault_->args.begin());
    std::ranges::transform(callers, std::back_inserter(fault_->callers), Symbol);
    tracee.fail_with = err;
    if (row->how == How::kInstead) ptrace(PTRACE_POKEUSER, pid, offsetof(user_regs_struct, orig_rax), -1L);
    return;
  }
}

void FaultInjector::OnClone(pid_t parent) {
  unsigned long message = 0;
  if (ptrace(PTRACE_GETEVENTMSG, parent, 0, &message) != 0) return;
  const auto pid = static_cast<pid_t>(message);
  const std::string& of = tracees_[parent].role;
  const pid_t group = ThreadGroup(pid);
  std::string role = "grandchild";
  if (group != pid) {
    role = of;
  } else if (parent == daemon_ && zygote_ < 0) {
    role = "zygote";
    zygote_ = pid;
  } else if (of == "daemon") {
    role = "hook";
  } else if (of == "zygote") {
    role = "child";
  }
  tracees_[pid] = {.role = role};
  if (early_.erase(pid) != 0) Resume(pid, 0);
}

void FaultInjector::Handle(pid_t pid, int status) {
  if (WIFEXITED(status) || WIFSIGNALED(status)) {
    if (pid == daemon_) daemon_status_ = status;
    tracees_.erase(pid);
    early_.erase(pid);
    return;
  }
  const int signal = WSTOPSIG(status);
  const int event = status >> 16;
  const auto it = tracees_.find(pid);
  if (it == tracees_.end()) {
    early_.insert(pid);
    return;
  }
  int deliver = 0;
  if (signal == (SIGTRAP | 0x80)) {
    OnSyscall(pid, it->second);
  } else if (event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK) {
    OnClone(pid);
  } else if (event == PTRACE_EVENT_EXEC) {
    if (pid != daemon_) {
      // From here on it is somebody else's program.
      ptrace(PTRACE_DETACH, pid, 0, 0);
      tracees_.erase(pid);
      return;
    }
  } else if (event == 0 && signal == SIGTRAP && pid == daemon_) {
    mark_ = static_cast<Mark>(ptrace(PTRACE_PEEKUSER, pid, offsetof(user_regs_struct, rax), 0));
    inside_ = *mark_ == Mark::kEnter;
    if (*mark_ != Mark::kEnter && *mark_ != Mark::kLeave) return;  // stands still until Answer
    mark_.reset();
  } else if (event == 0) {
    deliver = signal;
  }
  Resume(pid, deliver);
}

bool FaultInjector::Pump(bool block) {
  int status = 0;
  const pid_t pid = waitpid(-1, &status, __WALL | (block ? 0 : WNOHANG));
  if (pid <= 0) return false;
  Handle(pid, status);
  return true;
}

std::optional<Mark> FaultInjector::Await(int64_t deadline_ns) {
  mark_.reset();
  // Again and again, in case that it comes between two waits.
  itimerval timer{.it_interval = {.tv_sec = 0, .tv_usec = 100'000},
                  .it_value = {.tv_sec = 0, .tv_usec = 100'000}};
  setitimer(ITIMER_REAL, &timer, nullptr);
  while (!mark_ && daemon_alive() && base::MonotonicNs() < deadline_ns) Pump(true);
  timer = {};
  setitimer(ITIMER_REAL, &timer, nullptr);
  return mark_;
}

void FaultInjector::Answer(long answer) {
  ptrace(PTRACE_POKEUSER, daemon_, offsetof(user_regs_struct, rax), answer);
  Resume(daemon_, 0);
}

void FaultInjector::Arm(const int* phase) {
  phase_ = phase;
  armed_ = true;
  fault_.reset();
  occurrences_.clear();
  // It waits for requests; from its next stop on it stops at system calls.
  if (zygote_alive()) ptrace(PTRACE_INTERRUPT, zygote_, 0, 0);
}

std::optional<Fault> FaultInjector::Disarm() {
  armed_ = false;
  return std::exchange(fault_, std::nullopt);
}

bool FaultInjector::Settle(int64_t deadline_ns) {
  for (;;) {
    while (Pump(false)) {
    }
    const bool alone = Others().empty() && early_.empty();
    if (alone && !zygote_alive()) return true;
    if (alone) {
      const auto call = base::ReadFile("/proc/" + std::to_string(zygote_) + "/syscall");
      if (call && call->starts_with(std::to_string(SYS_recvmsg) + " ")) return true;
    }
    if (base::MonotonicNs() >= deadline_ns) return false;
    usleep(100);
  }
}

}  // namespace gcs::test
