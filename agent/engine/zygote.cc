// SPDX-License-Identifier: Apache-2.0
#include "engine/zygote.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "engine/child.h"
#include "engine/plan.h"
#include "engine/stage.h"
#include "engine/zygote_root.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::Result;

namespace {

// Requests: this header, then the plan, or for a large plan nothing more but one memfd as the last
// descriptor.
struct RequestHeader {
  uint32_t plan_size;
  uint32_t fd_count;  // of the plan, -1 entries included
  uint64_t padding;   // the plan behind it stays aligned to 8
};
constexpr size_t kInlinePlan = 64 * 1024;

struct Request {
  char* plan = nullptr;
  size_t plan_size = 0;
  bool mapped = false;
  std::array<int, kMaxPlanFds + 1> fds{};
  int fd_count = 0;
};

alignas(8) char request_buffer[sizeof(RequestHeader) + kInlinePlan];
alignas(cmsghdr) char request_control[CMSG_SPACE(sizeof(int) * (kMaxPlanFds + 1))];

// A daemon that is gone or doesn't read must not hold up the next request.
void Refuse(int sync, Step step, int err) noexcept {
  SendReport(sync, {.report = Report::kFailed, .step = step, .err = err, .index = 0, .pid = 0}, -1,
             MSG_DONTWAIT);
}

// 1: a request; 0: the agent is gone; -1: nothing usable, go on.
int Receive(int socket, Request& request) noexcept {
  iovec iov{request_buffer, sizeof request_buffer};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = request_control;
  message.msg_controllen = sizeof request_control;
  const ssize_t n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  // Memory that is short for now is no reason to end: without a zygote the agent makes no container any more.
  if (n < 0) return errno == EINTR || errno == ENOMEM || errno == ENOBUFS ? -1 : 0;
  if (n == 0) return 0;
  const cmsghdr* part = CMSG_FIRSTHDR(&message);
  if (part != nullptr && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
    request.fd_count = static_cast<int>((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(request.fds.data(), CMSG_DATA(part), request.fd_count * sizeof(int));
  }
  RequestHeader header;
  if (n < static_cast<ssize_t>(sizeof header)) return -1;
  memcpy(&header, request_buffer, sizeof header);
  request.plan_size = header.plan_size;
  if (n > static_cast<ssize_t>(sizeof header)) {
    if (n - sizeof header != header.plan_size) return -1;
    request.plan = request_buffer + sizeof header;
    return 1;
  }
  if (request.fd_count == 0 || header.plan_size > kMaxPlanBytes) return -1;
  const int memory = request.fds[--request.fd_count];
  void* plan = mmap(nullptr, header.plan_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_POPULATE, memory, 0);
  const int err = errno;
  close(memory);
  if (plan == MAP_FAILED) {
    if (request.fd_count > 0) Refuse(request.fds[kFdSync], Step::kReceivePlan, err);
    return -1;
  }
  request.plan = static_cast<char*>(plan);
  request.mapped = true;
  return 1;
}

// Containers don't inherit the agent's affinity: each gets what its cgroup allows.
bool UseAllProcessors() noexcept {
  uint64_t all[128];
  memset(all, 0xff, sizeof all);
  return syscall(SYS_sched_setaffinity, 0, sizeof all, all) == 0;
}

// Whether the zygote is still on the processors of a child that it has cloned.
bool restricted = false;

// Everything from `first` on, of which one request makes no more than these.
void CloseFrom(int first) noexcept {
  if (syscall(SYS_close_range, first, ~0U, 0) == 0) return;
  constexpr int kMost = kMaxPlanFds + 2;
  for (int fd = first; fd < first + kMost; ++fd) close(fd);
}

// Whether children may be born in a container's pid namespace.
bool away = false;

// The zygote's own namespace for children again. Where that fails after an exec, it is due before the next
// clone.
bool ReturnHome(int own_pid_namespace) noexcept {
  if (away && setns(own_pid_namespace, CLONE_NEWPID) != 0) return false;
  away = false;
  return true;
}

// Leaves the descriptors of the request, and the pidfd, to the caller.
void Spawn(Request& request, int own_pid_namespace) noexcept {
  const char* wrong = CheckPlan(request.plan, request.plan_size, request.fd_count);
  const int sync = request.fd_count > 0 ? request.fds[kFdSync] : -1;
  if (wrong != nullptr) return Refuse(sync, Step::kReceivePlan, EINVAL);
  const auto* plan = reinterpret_cast<const PlanHeader*>(request.plan);
  const bool exec = (plan->flags & kPlanExec) != 0;
  if (!ReturnHome(own_pid_namespace)) return Refuse(sync, Step::kJoinPid, errno);
  away = exec;
  if (exec && setns(request.fds[plan->target_fd], CLONE_NEWPID) != 0) {
    return Refuse(sync, Step::kJoinPid, errno);
  }
  if (restricted && !UseAllProcessors()) return Refuse(sync, Step::kClone, errno);
  restricted = false;
  const bool staged = (plan->flags & kPlanStaged) != 0;
  // Where the process runs until it is in its cgroup; it sets its later processors itself.
  const ArrayRef initial = plan->initial_affinity;
  const auto* processors = reinterpret_cast<const uint64_t*>(request.plan + initial.offset);
  if (initial.count != 0 &&
      syscall(SYS_sched_setaffinity, 0, initial.count * sizeof(uint64_t), processors) != 0) {
    return Refuse(sync, Step::kClone, errno);
  }
  int pidfd = -1;
  clone_args args{};
  args.flags = CLONE_PARENT | CLONE_PIDFD | CLONE_CLEAR_SIGHAND;
  // The stage's child is what gets the namespaces.
  if (!staged) args.flags |= plan->clone_flags;
  args.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  if (plan->cgroup_fd >= 0) {
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = static_cast<uint64_t>(request.fds[plan->cgroup_fd]);
  }
  const long pid = syscall(SYS_clone3, &args, sizeof args);
  if (pid == 0) {
    const std::span<const int> fds(request.fds.data(), static_cast<size_t>(request.fd_count));
    staged ? RunStage(request.plan, fds) : RunChild(request.plan, fds);
  }
  const int err = errno;
  restricted = initial.count != 0 && !UseAllProcessors();
  ReturnHome(own_pid_namespace);
  if (pid < 0) return Refuse(sync, Step::kClone, err);
  SendSpawned(sync, 0, static_cast<int>(pid), pidfd, MSG_DONTWAIT);
}

// Tells the daemon: 0, or why it is in vain.
void ReportReady(int socket, int err) noexcept {
  ssize_t n = 0;
  do n = send(socket, &err, sizeof err, MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  if (n < 0 || err != 0) _exit(1);
}

// Not dumpable: neither it nor a container's process before its execve can be traced or looked into
// (CVE-2016-9962).
void Hide() noexcept {
  prctl(PR_SET_NAME, "gcs-zygote");
  prctl(PR_SET_DUMPABLE, 0);
}

// Serves requests until the socket ends.
[[noreturn]] void RunZygote(int socket) noexcept {
  const int own_pid_namespace = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
  if (own_pid_namespace < 0) ReportReady(socket, errno);
  if (const int entered = EnterZygoteRoot(); entered != 0) ReportReady(socket, -entered);
  // Nor its groups. Who they are from here on, a child need not set again if it is to be the same: root
  // without groups and ambient capabilities.
  if (syscall(SYS_setgroups, 0, nullptr) != 0 || syscall(SYS_setresgid, 0, 0, 0) != 0 ||
      syscall(SYS_setresuid, 0, 0, 0) != 0) {
    ReportReady(socket, errno);
  }
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  UseAllProcessors();
  ReportReady(socket, 0);
  for (;;) {
    Request request;
    const int got = Receive(socket, request);
    if (got == 0) _exit(0);
    if (got > 0) Spawn(request, own_pid_namespace);
    // All that came with the request, and nothing else is that high.
    CloseFrom(std::max(socket, own_pid_namespace) + 1);
    if (request.mapped) munmap(request.plan, request.plan_size);
  }
}

}  // namespace

void RunZygoteProgram(int socket) noexcept {
  Hide();
  fcntl(socket, F_SETFD, FD_CLOEXEC);
  RunZygote(socket);
}

Result<std::unique_ptr<Zygote>> Zygote::Start(Become become) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoError("socketpair", "zygote");
  Fd ours(pair[0]);
  Fd theirs(pair[1]);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return ErrnoError("fork", "zygote");
  if (pid == 0) {
    Hide();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    // Descriptors 0-2 are taken, so that none of a plan's can be one of them.
    const int null = open("/dev/null", O_RDWR);
    if (null < 0) _exit(1);
    for (int fd = 0; fd < 3; ++fd) dup2(null, fd);
    constexpr int kSocket = 3;
    if (theirs.get() != kSocket && dup3(theirs.get(), kSocket, O_CLOEXEC) < 0) _exit(1);
    syscall(SYS_close_range, kSocket + 1, ~0U, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
    if (become != nullptr) {
      fcntl(kSocket, F_SETFD, 0);
      ReportReady(kSocket, -become(kSocket));
    }
    RunZygote(kSocket);
  }
  return std::unique_ptr<Zygote>(new Zygote(std::move(ours), pid));
}

const Result<>& Zygote::AwaitReady() {
  std::call_once(asked_, [&] {
    int err = 0;
    ssize_t n = -1;
    do {
      n = recv(socket_.get(), &err, sizeof err, 0);
    } while (n < 0 && errno == EINTR);
    if (n != sizeof err) {
      ready_ = base::MakeError(ECHILD, "start zygote", "mount namespace", "it ended before it was ready");
    } else if (err != 0) {
      ready_ = base::MakeError(err, "start zygote", "mount namespace");
    }
  });
  return ready_;
}

Zygote::~Zygote() {
  socket_.Reset();
  waitpid(pid_, nullptr, 0);
}

Result<> Zygote::Spawn(std::string_view plan, std::span<const int> fds) {
  GCS_TRY(Result<>(AwaitReady()));
  if (fds.size() > static_cast<size_t>(kMaxPlanFds))
    return base::MakeError(E2BIG, "send plan", "descriptors");
  if (plan.size() > kMaxPlanBytes) return base::MakeError(E2BIG, "send plan", "plan", "too large");
  std::vector<int> send_fds(fds.begin(), fds.end());
  RequestHeader header{static_cast<uint32_t>(plan.size()), static_cast<uint32_t>(fds.size()), 0};
  std::array<iovec, 2> iov{{{&header, sizeof header}, {const_cast<char*>(plan.data()), plan.size()}}};
  msghdr message{};
  message.msg_iov = iov.data();
  message.msg_iovlen = 2;
  Fd memory;
  if (plan.size() > kInlinePlan) {
    memory = Fd(memfd_create("plan", MFD_CLOEXEC));
    if (!memory) return ErrnoError("memfd_create", "plan");
    for (size_t done = 0; done < plan.size();) {
      const ssize_t n = write(memory.get(), plan.data() + done, plan.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoError("write", "plan");
      done += n;
    }
    send_fds.push_back(memory.get());
    message.msg_iovlen = 1;
  }
  std::vector<char> control(CMSG_SPACE(sizeof(int) * send_fds.size()));
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(sizeof(int) * send_fds.size());
  memcpy(CMSG_DATA(part), send_fds.data(), sizeof(int) * send_fds.size());
  while (sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0) {
    if (errno != EINTR) return ErrnoError("send plan", "zygote");
  }
  return {};
}

}  // namespace gcs::engine
