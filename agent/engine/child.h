// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "engine/plan.h"

namespace gcs::engine {

// The rest of a container's (or exec's) life before execve, in the process that the zygote has cloned.
// Allocates nothing, takes no lock, uses no thread-local but errno. `block` is a checked plan, writable and
// private to this process; `fds` are its descriptors, all above 2 and close-on-exec. Failures go to the sync
// socket as a ReportMessage.
[[noreturn]] void RunChild(char* block, std::span<const int> fds) noexcept;

// Sends `report`, with a copy of `fd` unless that is -1; `flags` go to sendmsg(2). False: the daemon has
// closed its end.
bool SendReport(int sync, const ReportMessage& report, int fd, int flags) noexcept;
// kSpawned with the pidfd, or if that can't be sent with the pid alone: the daemon must get to know whom it
// has to reap.
void SendSpawned(int sync, uint32_t index, int pid, int pidfd, int flags) noexcept;

// The directory that was made or found last: what a plan puts into the root comes in runs (/dev/pts,
// /dev/shm, /dev/null, ...), and each look-up from the root costs as much as the thing itself.
struct LastDirectory {
  const char* path = "";  // with the leaf; `length` bytes of it are the directory's, slash included
  size_t length = 0;
  int fd = -1;
};

// What the parts of the child share.
struct Child {
  char* block;
  const PlanHeader* plan;
  std::span<const int> fds;
  int sync;
  int zygote_root = -1;  // the zygote's own tiny root: "null", "empty"
  int root = -1;         // the container's root directory
  int terminal = -1;     // pty peer
  int null = -1;         // the null device, when there are hooks
  int listener = -1;
  int temporaries = 0;  // descriptors from here up are such
  int steps = 0;        // since they were closed
  LastDirectory last;
  const char* empty = "";  // path of the new tmpfs that was mounted last

  // Begins a step that leaves up to four descriptors open. Now and then those of the steps before are closed,
  // all with one system call; what is left is closed with everything else, when descriptors are arranged for
  // the program.
  void BeginStep() noexcept;
  [[nodiscard]] const char* Text(StringRef ref) const { return block + ref; }
  template <typename T>
  [[nodiscard]] T* Items(ArrayRef ref) const {
    return reinterpret_cast<T*>(block + ref.offset);
  }
  [[noreturn]] void Fail(Step step, int err, uint32_t index = 0) const noexcept;
  // Fails unless `rc` >= 0; `rc` is what a system call returned (errno is set).
  int Must(long rc, Step step, uint32_t index = 0) const noexcept;
  // The same for functions that return -errno.
  int MustResult(int rc, Step step, uint32_t index = 0) const noexcept;
  void Send(Report report, int fd = -1) const noexcept;
  // Waits for the daemon's byte; exits if the daemon has given up.
  void AwaitDaemon() const noexcept;
  // Waits for the start: by AwaitDaemon, or from whoever connects to the listener and sends a byte; that
  // connection is the sync socket from then on.
  void AwaitStart() noexcept;
  // Turns slots (see PlanHeader::args) into pointers, once; the last `extra` become null.
  [[nodiscard]] char** Pointers(ArrayRef ref, uint32_t extra = 1) const noexcept;
};

// The namespaces of plan.joins.
void JoinNamespaces(const Child& child) noexcept;
// The ids with which a container in a user namespace is built; nothing without one.
void BecomeSetupUser(const Child& child) noexcept;

// child_mount.cc: everything between the bare clone and the pivot into the container's root.
void BuildRootfs(Child& child) noexcept;
// Opens a pty of the container's devpts below `root` as child.terminal, and sends the master to the daemon.
void OpenConsole(Child& child, int root) noexcept;
// Writes the sysctls through a procfs that nobody else can reach.
void WriteSysctls(Child& child) noexcept;

// child_hooks.cc: runs hooks one after the other, output to `null`; the first failure is the child's.
void RunHooks(const Child& child, ArrayRef hooks, int null, Step step) noexcept;
// child_seccomp.cc: loads the plan's filters, and sends the listener of one that has one to the daemon.
void LoadSeccomp(const Child& child) noexcept;
// child_copy.cc: copies what is below directory `from` to directory `to`, with owners, modes, times and
// extended attributes; special files too. 0 or -errno. Descriptors are not consumed.
int CopyTree(int from, int to) noexcept;

}  // namespace gcs::engine
