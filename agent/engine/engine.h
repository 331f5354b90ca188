// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "engine/cgroup.h"
#include "engine/child_process.h"
#include "engine/compile.h"
#include "engine/intel_rdt.h"
#include "engine/network_pool.h"
#include "engine/seccomp.h"
#include "engine/spec.h"
#include "engine/zygote.h"
#include "net/device.h"

namespace gcs::engine {

struct Timing {
  std::string step;
  int64_t duration_ns = 0;
};

// A created container: its cgroup and first process.
struct EngineContainer {
  std::string id;
  Spec spec;
  std::unique_ptr<Cgroup> cgroup;
  std::optional<RdtGroup> rdt;
  ChildProcess init;
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
    std::string resctrl;  // empty: where it is mounted
    bool vsock_guard = true;
    size_t spare_networks = 0;  // kept at hand: see NetworkPool. For a process that makes many containers
    // Of containers whose configuration says nothing; none: what the zygote has.
    std::optional<int> oom_score_adj = 0;
  };
  static base::Result<std::unique_ptr<Engine>> Create(Options options, std::unique_ptr<Zygote> zygote);

  struct CreateOptions {
    ChildStdio stdio;
    bool allow_vsock = false;    // leaves the vsock guard out
    std::string bundle;          // of the state object that hooks get, and their working directory
    std::vector<int> preserved;  // descriptors that the program gets as 3, 4, ...
    // Listening SOCK_SEQPACKET socket: the start comes from a connection to it (ChildProcess::Attach), so
    // that this process need not live until then.
    int start_listener = -1;
    bool new_keyring = true;  // a session keyring of its own
    // What takes the container's netDevices back, for a caller whose own part of a create may still fail.
    std::optional<net::DeviceMoves>* net_devices = nullptr;
    int64_t deadline_ns = 0;
  };
  // With prestart, createRuntime and createContainer hooks. On failure nothing is left: no process, cgroup,
  // mount or descriptor, and network devices are where they were.
  base::Result<EngineContainer> CreateContainer(const std::string& id, Spec spec,
                                                const CreateOptions& options);
  // Starts `init`, which the caller may have taken out of the container, and runs the poststart hooks. On
  // failure the process ends, or is killed if a hook failed; the caller destroys the container.
  static base::Result<> Start(const EngineContainer& container, ChildProcess& init, int64_t deadline_ns);
  struct ExecOptions {
    ChildStdio stdio;
    std::vector<int> preserved;
    int init_pidfd =
        -1;  // the container's first process, for a caller that has taken `init` out of the container
    std::vector<Timing>* timings = nullptr;
    int64_t deadline_ns = 0;
  };
  // A process in a running container, cloned and waiting for its start.
  base::Result<ChildProcess> Exec(const EngineContainer& container, const Process& process,
                                  const ExecOptions& options);
  // A container that another process has created: `config`, `path` of its cgroup and `options` are what it
  // was made with. `init` is empty. ENOENT if its cgroup is gone.
  base::Result<EngineContainer> Adopt(const std::string& id, Spec spec, const std::string& cgroup_path,
                                      const std::string& bundle);
  // Waits until containers can be made; the error if they never can.
  base::Result<> AwaitReady() { return zygote_->AwaitReady(); }
  // After a change of what new network namespaces inherit from the VM's own (net.* of /proc/sys).
  void DropSpareNetworks() { networks_.Clear(); }
  // For a process that makes one container and has made it: its zygote may end now.
  void StopZygote() { zygote_->Stop(); }
  // Kills what is left in the container, removes its cgroup and runs the poststop hooks, whose failure is
  // logged. The first process must be reaped by the caller.
  static base::Result<> Destroy(EngineContainer& container, int64_t deadline_ns);
  // Where the cgroup of a container with this linux.cgroupsPath is made.
  [[nodiscard]] base::Result<std::string> CgroupPath(const std::string& id,
                                                     const std::string& configured) const;

 private:
  Engine(Options options, std::unique_ptr<Zygote> zygote, std::unique_ptr<CgroupRoot> cgroups);
  base::Result<std::vector<base::Fd>> OpenSources(const CompiledPlan& plan, const Cgroup& cgroup,
                                                  int target_pidfd, base::Fd* spare_network,
                                                  int64_t deadline_ns);
  void SetOomScore(CompiledPlan& plan) const;
  base::Result<base::Fd> UserNamespace(const std::vector<IdMapping>& uids, const std::vector<IdMapping>& gids,
                                       bool shared, int64_t deadline_ns);

  const Options options_;
  const std::unique_ptr<Zygote> zygote_;
  const std::unique_ptr<CgroupRoot> cgroups_;
  SeccompCache seccomp_;
  base::Fd proc_;  // detached
  NetworkPool networks_;
  uint64_t available_caps_ = 0;
  uint32_t last_cap_ = 0;
  int inherited_oom_score_adj_ = 0;  // what the zygote has
  std::mutex mutex_;
  // Of id-mapped mounts, by their mappings as text.
  std::map<std::string, base::Fd> user_namespaces_;
};

// What a process of the container is to do with the listener of its seccomp filter: connect to the filter's
// listenerPath and hand it over with a ContainerProcessState (config-linux.md, "Seccomp"). Empty without one.
std::function<base::Result<>(int pid, base::Fd listener)> ListenerOf(const Spec& spec,
                                                                     const CompileOptions& options,
                                                                     const SeccompFilter* filter,
                                                                     std::string_view status);

}  // namespace gcs::engine
