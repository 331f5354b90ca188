// SPDX-License-Identifier: Apache-2.0
#include "bench/machine.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>

#include "base/paths.h"

namespace gcs::bench {

using base::ErrnoError;
using base::MakeError;
using base::Result;

namespace {

constexpr char kMount[] = "/sys/fs/cgroup";

Result<> EnterBareView() {
  if (unshare(CLONE_NEWNS) != 0) return ErrnoError("unshare", "mount namespace");
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return ErrnoError("make private", "/");
  while (umount2(kMount, MNT_DETACH) == 0) {
  }
  return {};
}

}  // namespace

Result<> EnterCgroup2View() {
  GCS_TRY(EnterBareView());
  if (mount("cgroup2", kMount, "cgroup2", 0, nullptr) != 0) return ErrnoError("mount cgroup2", kMount);
  return {};
}

Result<std::vector<std::string>> EnterCgroup1View() {
  GCS_TRY(EnterBareView());
  if (mount("tmpfs", kMount, "tmpfs", 0, nullptr) != 0) return ErrnoError("mount tmpfs", kMount);
  std::vector<std::string> mounts;
  for (const std::string name : {"cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"}) {
    const std::string path = std::string(kMount) + "/" + name;
    if (mkdir(path.c_str(), 0755) != 0) return ErrnoError("mkdir", path);
    if (mount("cgroup", path.c_str(), "cgroup", 0, name.c_str()) != 0)
      return ErrnoError("mount cgroup", path);
    mounts.push_back(path);
  }
  return mounts;
}

Result<bool> PassMemlockLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return ErrnoError("getrlimit", "RLIMIT_MEMLOCK");
  const rlimit all{RLIM_INFINITY, RLIM_INFINITY};
  if (setrlimit(RLIMIT_MEMLOCK, &all) == 0) return false;
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prlimit64, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RLIMIT_MEMLOCK, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program{sizeof code / sizeof *code, code};
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
    return ErrnoError("seccomp", "RLIMIT_MEMLOCK filter");
  return true;
}

Result<int> RunProgram(const std::vector<std::string>& args) {
  std::vector<char*> pointers;
  for (const std::string& arg : args) pointers.push_back(const_cast<char*>(arg.c_str()));
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
  posix_spawn_file_actions_adddup2(&actions, 0, 1);
  pid_t pid = 0;
  const int err = posix_spawnp(&pid, pointers[0], &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (err != 0) return MakeError(err, "run", args[0]);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return ErrnoError("waitpid", args[0]);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

Result<TempDir> TempDir::Make() {
  TempDir dir;
  std::string path = "/tmp/gcs-bench.XXXXXX";
  if (mkdtemp(path.data()) == nullptr) return ErrnoError("mkdtemp", path);
  dir.path_ = path;
  return dir;
}

TempDir::~TempDir() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

namespace {

// Makes a network namespace and lets it die. False: there is one already.
bool MakeNamespace() {
  const pid_t pid = fork();
  if (pid == 0) _exit(unshare(CLONE_NEWNET) == 0 ? 0 : errno == ENOSPC ? 1 : 2);
  int status = 0;
  waitpid(pid, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) > 1) _exit(1);
  return WEXITSTATUS(status) == 0;
}

void AwaitNamespace() {
  while (!MakeNamespace()) usleep(100);
}

[[noreturn]] void ServeBarrier(int socket) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (unshare(CLONE_NEWUSER) != 0) _exit(1);
  if (!base::WriteFile("/proc/sys/user/max_net_namespaces", "1")) _exit(1);
  char byte = 0;
  if (write(socket, &byte, 1) != 1) _exit(1);
  while (read(socket, &byte, 1) == 1) {
    AwaitNamespace();  // behind all that are waiting for their end now
    AwaitNamespace();  // it is gone, so they are, too
    if (write(socket, &byte, 1) != 1) break;
  }
  _exit(0);
}

}  // namespace

Result<std::unique_ptr<NamespaceBarrier>> NamespaceBarrier::Start() {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoError("socketpair", "namespace barrier");
  base::Fd ours(pair[0]);
  base::Fd theirs(pair[1]);
  const pid_t pid = fork();
  if (pid < 0) return ErrnoError("fork", "namespace barrier");
  if (pid == 0) {
    ours.Reset();
    ServeBarrier(theirs.get());
  }
  theirs.Reset();
  std::unique_ptr<NamespaceBarrier> barrier(new NamespaceBarrier(std::move(ours), pid));
  char byte = 0;
  if (read(barrier->socket_.get(), &byte, 1) != 1)
    return MakeError(ECHILD, "start", "namespace barrier", "a user namespace could not be made");
  return barrier;
}

NamespaceBarrier::~NamespaceBarrier() {
  socket_.Reset();
  waitpid(pid_, nullptr, 0);
}

Result<> NamespaceBarrier::Wait() {
  char byte = 0;
  if (write(socket_.get(), &byte, 1) != 1 || read(socket_.get(), &byte, 1) != 1)
    return MakeError(EPIPE, "wait", "namespace barrier");
  return {};
}

}  // namespace gcs::bench
