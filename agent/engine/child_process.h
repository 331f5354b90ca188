// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "engine/compile.h"
#include "engine/zygote.h"

namespace gcs::engine {

// The process's ends of its standard streams; unused with a terminal.
struct ChildStdio {
  int in = -1, out = -1, err = -1;
};

// A process that has been cloned and waits for its start, then runs. The caller is its parent and reaps it by
// the pidfd.
class ChildProcess {
 public:
  struct LaunchOptions {
    ChildStdio stdio;
    int cgroup_fd = -1;  // cgroup v2
    // cgroup v1: puts the process into its cgroup.
    std::function<base::Result<>(int pid)> enter_cgroup;
    // The runtime's hooks, once the root file system is built; `pid` as the daemon sees it.
    std::function<base::Result<>(int pid)> hooks;
    // Takes the listener of a seccomp filter, during the launch or at the start.
    std::function<base::Result<>(int pid, base::Fd listener)> listener;
    int64_t deadline_ns = 0;
  };
  // Carries out a plan up to the point where the program can be executed. `sources`: what plan.sources are,
  // opened. On failure no process is left.
  static base::Result<ChildProcess> Launch(Zygote& zygote, CompiledPlan plan, std::vector<base::Fd> sources,
                                           const LaunchOptions& options);

  // One that another process has launched and that waits on its listener (PlanHeader::listener_fd);
  // `connection` is to that, or was that process's own. `asked`: it may have been told to start already, and
  // has then executed its program if nobody is at the other end.
  static ChildProcess Attach(int pid, base::Fd pidfd, base::Fd connection, std::string program,
                             std::function<base::Result<>(int pid, base::Fd listener)> listener,
                             bool asked = false);

  ChildProcess() = default;
  ChildProcess(ChildProcess&&) = default;
  ChildProcess& operator=(ChildProcess&&) = default;

  [[nodiscard]] int pid() const { return pid_; }
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }
  // What it waits on for its start; -1 from then on. Whoever has a copy can Attach.
  [[nodiscard]] int sync() const { return sync_.get(); }
  // The pty master of a process with a terminal; to be taken once.
  base::Fd TakeConsole() { return std::move(console_); }
  // Lets it execute its program and waits until that has happened or failed. A process that failed ends with
  // 127 or 126.
  base::Result<> Start(int64_t deadline_ns);
  // By pidfd: never another process. ESRCH after the end.
  base::Result<> Signal(int signal) const;
  // SIGKILL, and reaps it.
  void Kill();

 private:
  friend class Launcher;
  int pid_ = 0;
  base::Fd pidfd_;
  base::Fd sync_;
  base::Fd console_;
  std::string program_;
  bool asked_ = false;
  std::vector<std::string> start_hooks_;
  std::function<base::Result<>(int pid, base::Fd listener)> listener_;
};

// A user namespace with these mappings, which nobody is in. For ids that the caller may map.
base::Result<base::Fd> MakeUserNamespace(Zygote& zygote, const std::vector<IdMapping>& uids,
                                         const std::vector<IdMapping>& gids, int64_t deadline_ns);

}  // namespace gcs::engine
