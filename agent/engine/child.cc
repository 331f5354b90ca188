// SPDX-License-Identifier: Apache-2.0
#include "engine/child.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/paths.h"
#include "engine/child_home.h"
#include "engine/loopback.h"
#include "engine/verify.h"

namespace gcs::engine {

bool SendReport(int sync, const ReportMessage& report, int fd, int flags) noexcept {
  ReportMessage message = report;
  iovec iov{&message, sizeof message};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  if (fd >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(sync, &header, MSG_NOSIGNAL | flags);
  } while (sent < 0 && errno == EINTR);
  return sent >= 0;
}

void SendSpawned(int sync, uint32_t index, int pid, int pidfd, int flags) noexcept {
  const ReportMessage message{
      .report = Report::kSpawned, .step = Step::kClone, .err = 0, .index = index, .pid = pid};
  if (!SendReport(sync, message, pidfd, flags)) SendReport(sync, message, -1, flags);
}

void Child::Send(Report report, int fd) const noexcept {
  // If the daemon is gone, so is the reason for this container, and nobody hears of the failure.
  if (!SendReport(sync, {.report = report, .step = Step::kSync, .err = 0, .index = 0, .pid = 0}, fd, 0))
    Fail(Step::kSync, errno);
}

void Child::Fail(Step step, int err, uint32_t index) const noexcept {
  const ReportMessage message{.report = Report::kFailed, .step = step, .err = err, .index = index, .pid = 0};
  send(sync, &message, sizeof message, MSG_NOSIGNAL);
  // What a shell would answer: 127 for "not found", 126 for "can't be executed".
  _exit(err == ENOENT ? 127 : 126);
}

int Child::Must(long rc, Step step, uint32_t index) const noexcept {
  if (rc < 0) Fail(step, errno, index);
  return static_cast<int>(rc);
}

int Child::MustResult(int rc, Step step, uint32_t index) const noexcept {
  if (rc < 0) Fail(step, -rc, index);
  return rc;
}

void Child::AwaitDaemon() const noexcept {
  char byte = 0;
  ssize_t got = 0;
  do {
    got = recv(sync, &byte, sizeof byte, 0);
  } while (got < 0 && errno == EINTR);
  // An end without a word would be taken for an execve.
  if (got < 0) Fail(Step::kSync, errno);
  if (got != sizeof byte) _exit(0);
}

void Child::AwaitStart() noexcept {
  if (listener < 0) return AwaitDaemon();
  for (;;) {
    const int connection = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      Fail(Step::kWaitStart, errno);
    }
    char byte = 0;
    // Without a byte it was somebody who asks whether anybody waits here.
    if (recv(connection, &byte, sizeof byte, 0) == sizeof byte) {
      // In the place of the socket to whoever made the container, who may be gone.
      Must(dup3(connection, sync, O_CLOEXEC), Step::kWaitStart);
      close(connection);
      close(listener);
      return;
    }
    close(connection);
  }
}

char** Child::Pointers(ArrayRef ref, uint32_t extra) const noexcept {
  auto* slots = Items<uint64_t>(ref);
  static_assert(sizeof(char*) == sizeof(uint64_t));
  for (uint32_t i = 0; i + extra < ref.count; ++i) slots[i] = reinterpret_cast<uint64_t>(block + slots[i]);
  for (uint32_t i = ref.count - extra; i < ref.count; ++i) slots[i] = 0;
  return reinterpret_cast<char**>(slots);
}

void JoinNamespaces(const Child& child) noexcept {
  const auto* joins = child.Items<PlanJoin>(child.plan->joins);
  const bool joins_container = (child.plan->flags & (kPlanExec | kPlanStaged)) != 0;
  for (uint32_t i = 0; i < child.plan->joins.count; ++i) {
    child.Must(setns(child.fds[joins[i].fd], joins[i].flag), Step::kJoin, i);
    // Before there is anybody who could look (CVE-2016-9962).
    if (joins_container) close(child.fds[joins[i].fd]);
  }
  if (child.plan->join_flags != 0) {
    child.Must(setns(child.fds[child.plan->target_fd], static_cast<int>(child.plan->join_flags)),
               Step::kJoin);
  }
  if (child.plan->target_fd >= 0) close(child.fds[child.plan->target_fd]);
}

void BecomeSetupUser(const Child& child) noexcept {
  if ((child.plan->flags & kPlanUserNamespace) == 0) return;
  // Root of the VM is nobody in there: what it made would belong to nobody. Capabilities stay, as it is not
  // the namespace's own root that it changes from.
  child.Must(syscall(SYS_setresgid, child.plan->setup_gid, child.plan->setup_gid, child.plan->setup_gid),
             Step::kUserNamespace);
  child.Must(syscall(SYS_setresuid, child.plan->setup_uid, child.plan->setup_uid, child.plan->setup_uid),
             Step::kUserNamespace);
}

namespace {

void SetNames(const Child& child) noexcept {
  if (child.plan->hostname != 0) {
    const char* name = child.Text(child.plan->hostname);
    child.Must(sethostname(name, strlen(name)), Step::kHostname);
  }
  if (child.plan->domainname != 0) {
    const char* name = child.Text(child.plan->domainname);
    child.Must(setdomainname(name, strlen(name)), Step::kDomainname);
  }
}

// Writes to a file below /proc/self/attr.
int WriteAttribute(const Child& child, const char* path, const char* prefix, const char* value) noexcept {
  const int fd = OpenProcFile(child.fds[child.plan->proc_fd], path, true);
  if (fd < 0) return fd;
  char text[4096];
  const int length = snprintf(text, sizeof text, "%s%s", prefix, value);
  int rc = 0;
  if (length < 0 || static_cast<size_t>(length) >= sizeof text) {
    rc = -ENAMETOOLONG;
  } else {
    ssize_t written = 0;
    do {
      written = write(fd, text, static_cast<size_t>(length));
    } while (written < 0 && errno == EINTR);
    if (written < 0) rc = -errno;
  }
  close(fd);
  return rc;
}

// The labels that the program gets by execve.
void SetLabels(const Child& child) noexcept {
  if (child.plan->apparmor != 0) {
    const char* profile = child.Text(child.plan->apparmor);
    int rc = WriteAttribute(child, "self/attr/apparmor/exec", "exec ", profile);
    // Before Linux 5.1 the file is shared by all security modules.
    if (rc == -ENOENT) rc = WriteAttribute(child, "self/attr/exec", "exec ", profile);
    child.MustResult(rc, Step::kLabel, 0);
  }
  if (child.plan->selinux != 0) {
    child.MustResult(WriteAttribute(child, "self/attr/exec", "", child.Text(child.plan->selinux)),
                     Step::kLabel, 1);
  }
}

void StartSession(const Child& child) noexcept {
  child.Must(setsid(), Step::kSession);
  if (child.plan->selinux != 0 && child.plan->keyring != 0) {
    child.MustResult(WriteAttribute(child, "self/attr/keycreate", "", child.Text(child.plan->selinux)),
                     Step::kLabel, 1);
  }
  if (child.plan->keyring != 0) {
    // A kernel without keys, or a quota that is used up, is no reason to refuse a container: it then shares
    // no keyring either way.
    const long key = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, child.Text(child.plan->keyring));
    if (key < 0 && errno != ENOSYS && errno != EPERM && errno != EDQUOT && errno != EACCES) {
      child.Fail(Step::kSession, errno);
    }
  }
}

void SetRlimits(const Child& child) noexcept {
  const auto* limits = child.Items<PlanRlimit>(child.plan->rlimits);
  for (uint32_t i = 0; i < child.plan->rlimits.count; ++i) {
    const rlimit limit{limits[i].soft, limits[i].hard};
    child.Must(setrlimit(static_cast<__rlimit_resource>(limits[i].resource), &limit), Step::kRlimit, i);
  }
}

void SetScheduling(const Child& child) noexcept {
  const PlanHeader& plan = *child.plan;
  const auto affinity = [&](ArrayRef words) {
    if (words.count == 0) return;
    // The raw call: masks of any length, longer than glibc's cpu_set_t too.
    child.Must(
        syscall(SYS_sched_setaffinity, 0, words.count * sizeof(uint64_t), child.Items<uint64_t>(words)),
        Step::kAffinity);
  };
  affinity(plan.final_affinity);
  if (plan.scheduler.count != 0) {
    child.Must(syscall(SYS_sched_setattr, 0, child.Items<PlanScheduler>(plan.scheduler), 0),
               Step::kScheduler);
  }
  if ((plan.flags & kPlanIoPriority) != 0) {
    constexpr int kWhoProcess = 1;  // IOPRIO_WHO_PROCESS
    child.Must(syscall(SYS_ioprio_set, kWhoProcess, 0, plan.io_priority), Step::kIoPriority);
  }
  if ((plan.flags & kPlanMemoryPolicy) != 0) {
    // The kernel reads one bit less than it is told.
    const uint64_t bits = plan.memory_nodes.count == 0 ? 0 : plan.memory_nodes.count * uint64_t{64} + 1;
    child.Must(syscall(SYS_set_mempolicy, plan.memory_mode,
                       bits == 0 ? nullptr : child.Items<uint64_t>(plan.memory_nodes), bits),
               Step::kMemoryPolicy);
  }
  if ((plan.flags & kPlanPersonality) != 0) {
    child.Must(syscall(SYS_personality, plan.personality), Step::kPersonality);
  }
}

void SetUser(const Child& child) noexcept {
  const PlanHeader& plan = *child.plan;
  for (uint32_t cap = 0; cap <= plan.last_cap; ++cap) {
    if ((plan.bounding >> cap & 1) == 0)
      child.Must(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), Step::kBounding, cap);
  }
  const bool user_namespace = (plan.flags & kPlanUserNamespace) != 0;
  if (plan.uid != 0) child.Must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), Step::kUser);
  // The zygote is root without groups.
  if (plan.uid != 0 || plan.gid != 0 || plan.groups.count != 0 || user_namespace) {
    // Raw system calls: glibc's wrappers would look for other threads to change.
    const long groups = syscall(SYS_setgroups, plan.groups.count, child.Items<gid_t>(plan.groups));
    // A user namespace that somebody else made may forbid it (user_namespaces(7), "setgroups").
    const bool forbidden = groups < 0 && errno == EPERM && user_namespace;
    if (!forbidden || plan.groups.count != 0) child.Must(groups, Step::kGroups);
    child.Must(syscall(SYS_setresgid, plan.gid, plan.gid, plan.gid), Step::kUser);
    child.Must(syscall(SYS_setresuid, plan.uid, plan.uid, plan.uid), Step::kUser);
  }

  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  for (int half = 0; half < 2; ++half) {
    data[half].effective = static_cast<uint32_t>(plan.effective >> (32 * half));
    data[half].permitted = static_cast<uint32_t>(plan.permitted >> (32 * half));
    data[half].inheritable = static_cast<uint32_t>(plan.inheritable >> (32 * half));
  }
  child.Must(syscall(SYS_capset, &header, data), Step::kCapabilities);
  for (uint32_t cap = 0; cap <= plan.last_cap; ++cap) {
    if ((plan.ambient >> cap & 1) != 0) {
      child.Must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0), Step::kCapabilities, cap);
    }
  }
  umask(plan.umask);
}

// A missing working directory is made, as runc does, while there is still the right to.
void PrepareCwd(const Child& child) noexcept {
  const char* cwd = child.Text(child.plan->cwd);
  // What root may not search the user may.
  if (strcmp(cwd, "/") == 0 || chdir(cwd) == 0 || errno == EACCES) return;
  if (errno != ENOENT) child.Fail(Step::kCwd, errno);
  const int root = child.Must(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), Step::kCwd);
  const int dir = child.MustResult(base::MkdirAllInRoot(root, cwd, 0755), Step::kCwd);
  close(dir);
  close(root);
}

void EnterCwd(const Child& child) noexcept {
  const char* cwd = child.Text(child.plan->cwd);
  child.Must(chdir(cwd), Step::kCwd);
  if (strcmp(cwd, "/") == 0) return;
  // A directory outside the root (a leaked descriptor below /proc/self/fd) has no path here: CVE-2024-21626.
  char path[PATH_MAX];
  const long length = syscall(SYS_getcwd, path, sizeof path);
  child.Must(length, Step::kCwd);
  if (path[0] != '/') child.Fail(Step::kCwd, ENOENT);
}

// Home directory of `uid` from the container's /etc/passwd into `home`; "/" if it has none. Read by hand: NSS
// would load the container's libraries (CVE-2019-14271). What the image has there may be anything; that the
// machine can't read it is a failure.
void FindHome(const Child& child, uint32_t uid, char* home, size_t size) noexcept {
  memcpy(home, "/", 2);
  const int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == EIO) child.Fail(Step::kHome, errno);
    return;
  }
  static char text[64 * 1024];
  size_t length = 0;
  while (length < sizeof text) {
    const ssize_t n = read(fd, text + length, sizeof text - length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EIO || errno == ENOMEM)) child.Fail(Step::kHome, errno);
    if (n <= 0) break;
    length += static_cast<size_t>(n);
  }
  close(fd);
  // Up to a byte that no line of it has.
  const std::string_view found = HomeOf({text, strnlen(text, length)}, uid);
  if (found.empty() || found.size() >= size) return;
  memcpy(home, found.data(), found.size());
  home[found.size()] = '\0';
}

const char* FindInEnv(char** env, const char* name) noexcept {
  const size_t n = strlen(name);
  for (; *env != nullptr; ++env) {
    if (strncmp(*env, name, n) == 0 && (*env)[n] == '=') return *env + n + 1;
  }
  return nullptr;
}

bool Executable(const char* path, int& err) noexcept {
  struct stat st;
  if (stat(path, &st) != 0) {
    // A component that can't be searched or isn't a directory says more than "not found".
    if (errno != ENOENT && errno != ENOTDIR) err = errno;
    return false;
  }
  if (!S_ISREG(st.st_mode)) {
    err = EACCES;
    return false;
  }
  if (faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) != 0) {
    err = errno;
    return false;
  }
  return true;
}

// Resolves the program as execvp(3) would, with the container's ids, so that what can't be executed is known
// before start.
const char* FindProgram(const Child& child, const char* name, char** env, char* buffer) noexcept {
  int err = ENOENT;
  if (strchr(name, '/') != nullptr) {
    if (Executable(name, err)) return name;
    child.Fail(Step::kFindProgram, err);
  }
  const char* path = FindInEnv(env, "PATH");
  if (path == nullptr) path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  while (true) {
    const char* end = strchrnul(path, ':');
    const size_t length = end - path;
    const size_t name_length = strlen(name);
    if (length + name_length + 2 <= PATH_MAX) {
      memcpy(buffer, path, length);
      size_t at = length;
      if (length > 0) buffer[at++] = '/';  // an empty entry is the working directory
      memcpy(buffer + at, name, name_length + 1);
      if (Executable(buffer, err)) return buffer;
      // As execvp(3): what can't be looked at is not passed over for another program of that name.
      if (err != ENOENT && err != EACCES) break;
    }
    if (*end == '\0') break;
    path = end + 1;
  }
  child.Fail(Step::kFindProgram, err);
}

// Standard streams to 0-2, preserved descriptors to 3 and up, then what we need ourselves; nothing else stays
// open, so nothing can leak into the program.
void ArrangeDescriptors(Child& child) noexcept {
  const auto* preserved = child.Items<int32_t>(child.plan->preserved);
  const int kept = static_cast<int>(child.plan->preserved.count);
  const bool hooks = child.plan->start_hooks.count != 0;
  const bool listens = child.plan->listener_fd >= 0;
  const int own = 3 + kept;
  const int end = own + 1 + (hooks ? 1 : 0) + (listens ? 1 : 0);
  // A source below `end` may be in another one's way.
  const auto aside = [&](int fd) {
    return fd >= end ? fd : child.Must(fcntl(fd, F_DUPFD_CLOEXEC, end), Step::kStdio);
  };
  int streams[3];
  for (int i = 0; i < 3; ++i) {
    streams[i] = child.terminal >= 0 ? child.terminal : aside(child.fds[child.plan->stdio_fds[i]]);
  }
  // The plan's memory is ours: the numbers that count from here on.
  auto* moved = const_cast<int32_t*>(preserved);
  for (int i = 0; i < kept; ++i) moved[i] = aside(child.fds[preserved[i]]);
  const int null = hooks ? aside(child.null) : -1;
  const int listener = listens ? aside(child.fds[child.plan->listener_fd]) : -1;
  const int sync = aside(child.sync);
  // Failures are told from where the socket is safe.
  child.sync = sync;
  if (child.terminal >= 0 && child.terminal < end)
    streams[0] = streams[1] = streams[2] = aside(child.terminal);
  for (int i = 0; i < 3; ++i) child.Must(dup3(streams[i], i, 0), Step::kStdio);
  if (child.terminal >= 0) child.Must(ioctl(0, TIOCSCTTY, 0), Step::kStdio);
  for (int i = 0; i < kept; ++i) child.Must(dup3(moved[i], 3 + i, 0), Step::kStdio);
  int next = own;
  child.Must(dup3(sync, next, O_CLOEXEC), Step::kStdio);
  child.sync = next++;
  if (hooks) {
    child.Must(dup3(null, next, O_CLOEXEC), Step::kStdio);
    child.null = next++;
  }
  if (listens) {
    child.Must(dup3(listener, next, O_CLOEXEC), Step::kStdio);
    child.listener = next++;
  }
  child.Must(syscall(SYS_close_range, next, ~0U, 0), Step::kStdio);
}

}  // namespace

void RunChild(char* block, std::span<const int> fds) noexcept {
  const auto* plan = reinterpret_cast<const PlanHeader*>(block);
  Child child{.block = block, .plan = plan, .fds = fds, .sync = fds[plan->sync_fd]};
  const bool exec = (plan->flags & kPlanExec) != 0;
  const bool no_new_privileges = (plan->flags & kPlanNoNewPrivileges) != 0;

  if ((plan->flags & kPlanAwaitCgroup) != 0) child.AwaitDaemon();
  JoinNamespaces(child);
  if ((plan->flags & kPlanUnshareCgroup) != 0) child.Must(unshare(CLONE_NEWCGROUP), Step::kCgroupNamespace);
  StartSession(child);
  SetNames(child);
  if (exec) BecomeSetupUser(child);
  if (!exec) {
    BuildRootfs(child);
  } else if ((plan->flags & kPlanTerminal) != 0) {
    OpenConsole(child, child.Must(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), Step::kConsole));
  }
  if ((plan->flags & kPlanLoopbackUp) != 0) child.MustResult(SetLoopbackUp(), Step::kLoopback);
  SetScheduling(child);
  SetLabels(child);

  char** args = child.Pointers(plan->args);
  char** env = child.Pointers(plan->env, 2);
  static char home[PATH_MAX + 5] = "HOME=";
  if ((plan->flags & kPlanHasHome) == 0) {
    FindHome(child, plan->uid, home + 5, PATH_MAX);
    env[plan->env.count - 2] = home;
  }
  // Before anything of the configuration is looked up by path: /proc/self/fd then leads nowhere
  // (CVE-2024-21626).
  ArrangeDescriptors(child);
  SetRlimits(child);
  PrepareCwd(child);
  // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go; with it, it
  // comes last, so that it need not allow what we still do.
  if (!no_new_privileges) LoadSeccomp(child);
  SetUser(child);
  EnterCwd(child);
  static char program_path[PATH_MAX];
  const char* program = FindProgram(child, args[0], env, program_path);

  child.Send(Report::kReady);
  child.AwaitStart();
  if (plan->start_hooks.count != 0) {
    RunHooks(child, plan->start_hooks, child.null, Step::kStartContainerHook);
  }
  if (no_new_privileges) {
    child.Must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), Step::kNoNewPrivileges);
    LoadSeccomp(child);
  }
  execve(program, args, env);
  child.Fail(Step::kExecve, errno);
}

}  // namespace gcs::engine
