// SPDX-License-Identifier: Apache-2.0
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "engine/child.h"

namespace gcs::engine {

namespace {

// Between the load of a filter and the program there may be no system call of ours: the filter may forbid it,
// or hand it to a supervisor that has no listener yet. So a thread that was there before, and that the filter
// does not bind, sends the listener away; it is told by memory alone.
struct Courier {
  const Child* child;
  std::atomic<int> listener{-1};  // -2: there is none, go
  std::atomic<bool> done{false};
};

alignas(16) char courier_stack[16 * 1024];

int Deliver(void* argument) noexcept {
  auto& courier = *static_cast<Courier*>(argument);
  int listener = -1;
  while ((listener = courier.listener.load(std::memory_order_acquire)) == -1) sched_yield();
  if (listener >= 0) {
    const bool sent = SendReport(
        courier.child->sync,
        {.report = Report::kListener, .step = Step::kSeccomp, .err = 0, .index = 0, .pid = 0}, listener, 0);
    // It is the end of the process, with both of its threads.
    if (!sent) courier.child->Fail(Step::kSeccomp, errno);
    // Whoever holds it can answer for the process: it never stays in the container.
    close(listener);
  }
  courier.done.store(true, std::memory_order_release);
  syscall(SYS_exit, 0);  // of this thread
  __builtin_unreachable();
}

void LoadWithListener(const Child& child, const PlanSeccomp& filter, const sock_fprog& program,
                      uint32_t index) noexcept {
  static Courier courier;
  courier.child = &child;
  const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  child.Must(clone(Deliver, courier_stack + sizeof courier_stack, flags, &courier), Step::kSeccomp, index);
  const long listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, filter.flags, &program);
  const int err = errno;
  courier.listener.store(listener >= 0 ? static_cast<int>(listener) : -2, std::memory_order_release);
  while (!courier.done.load(std::memory_order_acquire)) __builtin_ia32_pause();
  if (listener < 0) child.Fail(Step::kSeccomp, err, index);
}

}  // namespace

void LoadSeccomp(const Child& child) noexcept {
  const auto* filters = child.Items<PlanSeccomp>(child.plan->seccomp);
  for (uint32_t i = 0; i < child.plan->seccomp.count; ++i) {
    const sock_fprog program{static_cast<uint16_t>(filters[i].code.count),
                             child.Items<sock_filter>(filters[i].code)};
    if ((filters[i].flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) != 0) {
      LoadWithListener(child, filters[i], program, i);
    } else {
      child.Must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, filters[i].flags, &program), Step::kSeccomp,
                 i);
    }
  }
}

}  // namespace gcs::engine
