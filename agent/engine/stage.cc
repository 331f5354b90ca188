// SPDX-License-Identifier: Apache-2.0
#include "engine/stage.h"

#include <linux/sched.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/child.h"

namespace gcs::engine {

void RunStage(char* block, std::span<const int> fds) noexcept {
  auto* plan = reinterpret_cast<PlanHeader*>(block);
  Child stage{.block = block, .plan = plan, .fds = fds, .sync = fds[plan->sync_fd]};
  if ((plan->flags & kPlanHolder) != 0) {
    stage.Must(unshare(CLONE_NEWUSER), Step::kUserNamespace);
    stage.Send(Report::kReady);
    stage.AwaitDaemon();
    _exit(0);
  }
  if ((plan->flags & kPlanAwaitCgroup) != 0) stage.AwaitDaemon();
  plan->flags &= ~kPlanAwaitCgroup;
  JoinNamespaces(stage);
  plan->joins.count = 0;  // done, for the child as well
  if ((plan->flags & kPlanNewTime) != 0) {
    stage.Must(unshare(CLONE_NEWTIME), Step::kTimeNamespace);
    stage.Send(Report::kTime);
    stage.AwaitDaemon();
  }
  int pidfd = -1;
  clone_args args{};
  args.flags = plan->clone_flags | CLONE_PARENT | CLONE_PIDFD | CLONE_CLEAR_SIGHAND;
  args.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  const int pid = stage.Must(syscall(SYS_clone3, &args, sizeof args), Step::kClone);
  if (pid == 0) RunChild(block, fds);
  SendSpawned(stage.sync, 1, pid, pidfd, 0);
  _exit(0);
}

}  // namespace gcs::engine
