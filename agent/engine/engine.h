// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "engine/cgroup.h"
#include "engine/compile.h"
#include "engine/seccomp.h"
#include "engine/spec.h"
#include "engine/zygote.h"

namespace gcs::engine {

struct Timing {
  std::string step;
  int64_t duration_ns = 0;
};

// The process's ends of its standard streams; unused with a terminal.
struct ChildStdio {
  int in = -1, out = -1, err = -1;
};

// A process that has been cloned and waits for its start, then runs. The caller is its parent and reaps it by
// the pidfd.
class ChildProcess {
 public:
  ChildProcess() = default;
  ChildProcess(ChildProcess&&) = default;
  ChildProcess& operator=(ChildProcess&&) = default;

  [[nodiscard]] int pid() const { return pid_; }
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }
  // The pty master of a process with a terminal; to be taken once.
  base::Fd TakeConsole() { return std::move(console_); }
  // Lets it execute its program and waits until that has happened or failed. A process that failed ends with
  // 127 or 126.
  base::Result<> Start(int64_t deadline_ns);
  // By pidfd: never another process. ESRCH after the end.
  base::Result<> Signal(int signal) const;

 private:
  friend class Engine;
  int pid_ = 0;
  base::Fd pidfd_;
  base::Fd sync_;
  base::Fd console_;
  std::string program_;
};

// A created container: its cgroup and first process.
struct EngineContainer {
  std::string id;
  Spec spec;
  Cgroup cgroup;
  ChildProcess init;
  uint32_t namespaces = 0;  // CLONE_NEW* that an exec has to enter
  std::shared_ptr<const SeccompFilter> seccomp;
  CompileOptions options;
  std::vector<Timing> timings;
};

// The OCI engine as a library in a long-lived process. Thread-safe; calls block up to their deadline
// (CLOCK_MONOTONIC ns).
class Engine {
 public:
  struct Options {
    std::string cgroup_mount = "/sys/fs/cgroup";
    std::string cgroup_parent = "/containers";  // of containers whose cgroupsPath is empty or relative
    // Where cgroupsPath may not lead: the agent's own.
    std::vector<std::string> reserved_cgroups = {"/gcs", "/init"};
    bool vsock_guard = true;
  };
  static base::Result<std::unique_ptr<Engine>> Create(Options options, std::unique_ptr<Zygote> zygote);

  // On failure nothing is left: no process, cgroup, mount or descriptor. `allow_vsock` leaves the vsock guard
  // out.
  base::Result<EngineContainer> CreateContainer(const std::string& id, Spec spec, const ChildStdio& stdio,
                                                bool allow_vsock, int64_t deadline_ns);
  // A process in a running container, cloned and waiting for its start. `init_pidfd`: the container's first
  // process, for a caller that has taken `init` out of the container.
  base::Result<ChildProcess> Exec(const EngineContainer& container, const Process& process,
                                  const ChildStdio& stdio, int64_t deadline_ns, std::vector<Timing>* timings,
                                  int init_pidfd = -1);
  // Kills what is left in the container and removes its cgroup. The first process must be reaped by the
  // caller.
  base::Result<> Destroy(EngineContainer& container, int64_t deadline_ns);

 private:
  Engine(Options options, std::unique_ptr<Zygote> zygote, CgroupRoot cgroups);
  base::Result<ChildProcess> Launch(CompiledPlan plan, std::vector<base::Fd> sources, const Cgroup& cgroup,
                                    const ChildStdio& stdio, int target_pidfd, int64_t deadline_ns);
  base::Result<std::string> CgroupPath(const std::string& id, const std::string& configured) const;

  const Options options_;
  const std::unique_ptr<Zygote> zygote_;
  const CgroupRoot cgroups_;
  SeccompCache seccomp_;
  uint64_t available_caps_ = 0;
  uint32_t last_cap_ = 0;
};

// Container and process ids: [A-Za-z0-9_+-][A-Za-z0-9_+.-]{0,1023}.
bool ValidId(std::string_view id);

}  // namespace gcs::engine
