// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/capability.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/clock.h"
#include "base/log.h"
#include "base/paths.h"
#include "engine/hooks.h"
#include "engine/net_devices.h"
#include "engine/send_fd.h"
#include "engine/source_mount.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::MonotonicNs;
using base::Result;

namespace {

constexpr int64_t kTearDownNs = 10 * base::kNsPerSec;

class Stopwatch {
 public:
  explicit Stopwatch(std::vector<Timing>* timings) : timings_(timings), last_(MonotonicNs()) {}
  void Lap(std::string step) {
    const int64_t now = MonotonicNs();
    if (timings_ != nullptr) timings_->push_back({std::move(step), now - last_});
    last_ = now;
  }

 private:
  std::vector<Timing>* timings_;
  int64_t last_;
};

uint64_t OwnCapabilities() {
  uint64_t set = 0;
  const cap_t caps = cap_get_proc();
  if (caps == nullptr) return 0;
  for (cap_value_t cap = 0; cap < 64; ++cap) {
    cap_flag_value_t value = CAP_CLEAR;
    if (cap_get_flag(caps, cap, CAP_PERMITTED, &value) == 0 && value == CAP_SET) set |= uint64_t{1} << cap;
  }
  cap_free(caps);
  return set;
}

// How a process gets into a cgroup that it can't be cloned into.
std::function<Result<>(int)> Enter(Cgroup& cgroup) {
  if (cgroup.fd() >= 0) return {};
  return [&cgroup](int pid) { return cgroup.Enter(pid); };
}

bool Within(const std::string& path, const std::string& directory) {
  return path == directory || path.starts_with(directory + "/");
}

}  // namespace

Engine::Engine(Options options, std::unique_ptr<Zygote> zygote, std::unique_ptr<CgroupRoot> cgroups)
    : options_(std::move(options)),
      zygote_(std::move(zygote)),
      cgroups_(std::move(cgroups)),
      networks_(options_.spare_networks) {}

void Engine::SetOomScore(CompiledPlan& plan) const {
  if (!plan.oom_score_adj) plan.oom_score_adj = options_.oom_score_adj;
  if (plan.oom_score_adj == inherited_oom_score_adj_) plan.oom_score_adj.reset();
}

Result<std::unique_ptr<Engine>> Engine::Create(Options options, std::unique_ptr<Zygote> zygote) {
  GCS_ASSIGN(std::unique_ptr<CgroupRoot> cgroups, CgroupRoot::Open(options.cgroup_mount));
  std::unique_ptr<Engine> engine(new Engine(std::move(options), std::move(zygote), std::move(cgroups)));
  GCS_ASSIGN(engine->proc_, DetachedProc());
  engine->available_caps_ = OwnCapabilities();
  GCS_ASSIGN(const std::string adj,
             base::ReadFile("/proc/" + std::to_string(engine->zygote_->pid()) + "/oom_score_adj"));
  engine->inherited_oom_score_adj_ = static_cast<int>(strtol(adj.c_str(), nullptr, 10));
  GCS_ASSIGN(const std::string last_cap, base::ReadFile("/proc/sys/kernel/cap_last_cap"));
  engine->last_cap_ = static_cast<uint32_t>(strtoul(last_cap.c_str(), nullptr, 10));
  return engine;
}

Result<std::string> Engine::CgroupPath(const std::string& id, const std::string& configured) const {
  std::string path = options_.cgroup_parent + "/" + id;
  if (!configured.empty()) {
    // ".." is resolved against the tree's root, so it can't lead anywhere else.
    path = configured[0] == '/' ? CleanPath(configured) : options_.cgroup_parent + CleanPath(configured);
  }
  const bool reserved = std::ranges::any_of(options_.reserved_cgroups,
                                            [&](const std::string& own) { return Within(path, own); });
  if (path == "/" || path == options_.cgroup_parent || reserved) {
    return MakeError(EPERM, "make cgroup", "linux.cgroupsPath", path + " is not for containers");
  }
  return path;
}

Result<Fd> Engine::UserNamespace(const std::vector<IdMapping>& uids, const std::vector<IdMapping>& gids,
                                 bool shared, int64_t deadline_ns) {
  constexpr size_t kMaxShared = 64;
  if (!shared) return MakeUserNamespace(*zygote_, uids, gids, deadline_ns);
  std::string key;
  for (const auto* mappings : {&uids, &gids}) {
    for (const IdMapping& m : *mappings) {
      key += std::to_string(m.container_id) + " " + std::to_string(m.host_id) + " " + std::to_string(m.size) +
             ",";
    }
    key += ";";
  }
  const std::lock_guard lock(mutex_);
  auto found = user_namespaces_.find(key);
  if (found == user_namespaces_.end()) {
    GCS_ASSIGN(Fd made, MakeUserNamespace(*zygote_, uids, gids, deadline_ns));
    if (user_namespaces_.size() >= kMaxShared) user_namespaces_.clear();
    found = user_namespaces_.emplace(std::move(key), std::move(made)).first;
  }
  Fd copy(fcntl(found->second.get(), F_DUPFD_CLOEXEC, 3));
  if (!copy) return ErrnoError("dup", "user namespace");
  return copy;
}

Result<std::vector<Fd>> Engine::OpenSources(const CompiledPlan& plan, const Cgroup& cgroup, int target_pidfd,
                                            Fd* spare_network, int64_t deadline_ns) {
  const SourceContext context{.cgroup = &cgroup,
                              .proc_fd = proc_.get(),
                              .target_pidfd = target_pidfd,
                              .spare_network = spare_network,
                              .user_namespace = [&](const auto& uids, const auto& gids, bool shared) {
                                return UserNamespace(uids, gids, shared, deadline_ns);
                              }};
  std::vector<Fd> sources;
  for (const PlanSource& source : plan.sources) {
    GCS_ASSIGN(Fd opened, OpenSource(source, context));
    sources.push_back(std::move(opened));
  }
  return sources;
}

Result<EngineContainer> Engine::CreateContainer(const std::string& id, Spec spec,
                                                const CreateOptions& create) {
  if (!ValidId(id)) return MakeError(EINVAL, "create container", id.substr(0, 64), "bad container id");
  std::vector<Timing> timings;
  Stopwatch watch(&timings);
  std::shared_ptr<const SeccompFilter> seccomp;
  if (spec.seccomp) {
    GCS_ASSIGN(seccomp, seccomp_.Get(*spec.seccomp));
  }
  CompileOptions options{.container_id = id,
                         .bundle = create.bundle,
                         .new_keyring = create.new_keyring,
                         .vsock_guard = options_.vsock_guard && !create.allow_vsock,
                         .available_caps = available_caps_,
                         .last_cap = last_cap_};
  options.hierarchies = cgroups_->hierarchies();
  Fd spare_network = WantsNetwork(spec) ? networks_.Take() : Fd();
  options.spare_network = spare_network.valid();
  GCS_ASSIGN(CompiledPlan plan, CompileCreate(spec, options, seccomp));
  GCS_TRY(AddDescriptors(plan, create.preserved, create.start_listener));
  SetOomScore(plan);
  GCS_ASSIGN(const std::string cgroup_path, CgroupPath(id, spec.cgroups_path));
  watch.Lap("plan");

  GCS_ASSIGN(std::unique_ptr<Cgroup> cgroup, cgroups_->Create(cgroup_path));
  std::optional<net::DeviceMoves> net_devices;
  std::optional<RdtGroup> rdt;
  const auto undo = [&](base::Error error) -> std::unexpected<base::Error> {
    // Most have nobody in them, and this needs no descriptor.
    if (!cgroup->RemoveIfEmpty() && cgroup->Kill()) {
      // The first error is what the caller needs; a cgroup that can't be removed stays visible in the tree.
      [[maybe_unused]] const auto removed = cgroup->Remove(MonotonicNs() + kTearDownNs);
    }
    if (net_devices) net_devices->TakeBack();
    if (rdt) [[maybe_unused]]
      const auto removed = rdt->Remove();
    return std::unexpected(std::move(error));
  };
  // The stage counts as a second process while it lives; the limit comes after it.
  const bool late_pids = plan.staged && spec.resources.pids_limit.has_value();
  Resources resources = spec.resources;
  if (late_pids) resources.pids_limit.reset();
  if (auto applied = cgroup->Apply(resources); !applied) return undo(applied.error());
  if (auto filtered = cgroup->SetDevices(spec.resources.devices); !filtered) return undo(filtered.error());
  if (spec.intel_rdt) {
    auto resctrl = Resctrl::Open(options_.resctrl);
    if (!resctrl) return undo(resctrl.error());
    auto made = RdtGroup::Create(std::move(*resctrl), *spec.intel_rdt, id);
    if (!made) return undo(made.error());
    rdt.emplace(std::move(*made));
  }
  watch.Lap("cgroup");

  auto sources = OpenSources(plan, *cgroup, -1, &spare_network, create.deadline_ns);
  if (!sources) return undo(sources.error());
  watch.Lap("sources");
  const auto hooks = [&](int pid) -> Result<> {
    GCS_TRY(MoveNetDevices(spec.net_devices, proc_.get(), pid, net_devices));
    // They see what the specification calls created: all but the program is there.
    const base::Json state = StateObject(spec, options, "created", pid);
    GCS_TRY(RunHooks(spec.hooks.prestart, state, create.bundle, "prestart hook", create.deadline_ns));
    return RunHooks(spec.hooks.create_runtime, state, create.bundle, "createRuntime hook",
                    create.deadline_ns);
  };
  auto child = ChildProcess::Launch(*zygote_, std::move(plan), std::move(*sources),
                                    {.stdio = create.stdio,
                                     .cgroup_fd = cgroup->fd(),
                                     .enter_cgroup = Enter(*cgroup),
                                     .hooks = hooks,
                                     .listener = ListenerOf(spec, options, seccomp.get(), "creating"),
                                     .deadline_ns = create.deadline_ns});
  if (!child) return undo(child.error());
  // It is one thread yet, and waits.
  if (auto entered = rdt ? rdt->Enter(child->pid()) : Result<>(); !entered) {
    child->Kill();
    return undo(entered.error());
  }
  if (late_pids) {
    Resources pids;
    pids.pids_limit = spec.resources.pids_limit;
    if (auto applied = cgroup->Apply(pids); !applied) {
      child->Kill();
      return undo(applied.error());
    }
  }
  watch.Lap("launch");
  if (create.net_devices != nullptr) *create.net_devices = std::move(net_devices);
  return EngineContainer{.id = id,
                         .spec = std::move(spec),
                         .cgroup = std::move(cgroup),
                         .rdt = std::move(rdt),
                         .init = std::move(*child),
                         .seccomp = std::move(seccomp),
                         .options = std::move(options),
                         .timings = std::move(timings)};
}

std::function<Result<>(int, Fd)> ListenerOf(const Spec& spec, const CompileOptions& options,
                                            const SeccompFilter* filter, std::string_view status) {
  if (filter == nullptr || filter->listener_path.empty()) return {};
  base::Json message{
      {"ociVersion", kOciVersion}, {"fds", {"seccompFd"}}, {"state", StateObject(spec, options, status, 0)}};
  if (!filter->listener_metadata.empty()) message["metadata"] = filter->listener_metadata;
  return
      [message = std::move(message), path = filter->listener_path](int pid, Fd listener) mutable -> Result<> {
        message["pid"] = pid;
        message["state"]["pid"] = pid;
        return SendDescriptor(path, message.dump(-1, ' ', false, base::Json::error_handler_t::replace),
                              listener.get(), "hand over seccomp listener");
      };
}

Result<> Engine::Start(const EngineContainer& container, ChildProcess& init, int64_t deadline_ns) {
  GCS_TRY(init.Start(deadline_ns));
  const auto& hooks = container.spec.hooks.poststart;
  if (hooks.empty()) return {};
  auto ran = RunHooks(hooks, StateObject(container.spec, container.options, "running", init.pid()),
                      container.options.bundle, "poststart hook", deadline_ns);
  if (!ran) [[maybe_unused]]
    const auto killed = init.Signal(SIGKILL);
  return ran;
}

Result<ChildProcess> Engine::Exec(const EngineContainer& container, const Process& process,
                                  const ExecOptions& exec) {
  Stopwatch watch(exec.timings);
  const int target = exec.init_pidfd >= 0 ? exec.init_pidfd : container.init.pidfd();
  if (target < 0) return MakeError(ESRCH, "exec", container.id, "no first process");
  GCS_ASSIGN(CompiledPlan plan, CompileExec(process, container.spec, container.options, container.seccomp));
  GCS_TRY(AddDescriptors(plan, exec.preserved, -1));
  SetOomScore(plan);
  GCS_ASSIGN(std::vector<Fd> sources,
             OpenSources(plan, *container.cgroup, target, nullptr, exec.deadline_ns));
  watch.Lap("plan");
  auto child = ChildProcess::Launch(
      *zygote_, std::move(plan), std::move(sources),
      {.stdio = exec.stdio,
       .cgroup_fd = container.cgroup->fd(),
       .enter_cgroup = Enter(*container.cgroup),
       .hooks = {},
       .listener = ListenerOf(container.spec, container.options, container.seccomp.get(), "running"),
       .deadline_ns = exec.deadline_ns});
  if (auto entered = child && container.rdt ? container.rdt->Enter(child->pid()) : Result<>(); !entered) {
    child->Kill();
    return std::unexpected(entered.error());
  }
  watch.Lap("launch");
  return child;
}

Result<EngineContainer> Engine::Adopt(const std::string& id, Spec spec, const std::string& cgroup_path,
                                      const std::string& bundle) {
  EngineContainer container{.id = id, .spec = std::move(spec)};
  GCS_ASSIGN(container.cgroup, cgroups_->Find(cgroup_path));
  if (container.spec.seccomp) {
    GCS_ASSIGN(container.seccomp, seccomp_.Get(*container.spec.seccomp));
  }
  if (container.spec.intel_rdt) {
    GCS_ASSIGN(std::shared_ptr<Resctrl> resctrl, Resctrl::Open(options_.resctrl));
    container.rdt = RdtGroup::Find(std::move(resctrl), *container.spec.intel_rdt, id, false);
  }
  container.options = {.container_id = id,
                       .bundle = bundle,
                       .hierarchies = cgroups_->hierarchies(),
                       .vsock_guard = options_.vsock_guard,
                       .available_caps = available_caps_,
                       .last_cap = last_cap_};
  return container;
}

Result<> Engine::Destroy(EngineContainer& container, int64_t deadline_ns) {
  // Most containers leave nothing behind their first process.
  if (!container.cgroup->RemoveIfEmpty()) {
    GCS_TRY(container.cgroup->Kill());
    GCS_TRY(container.cgroup->Remove(deadline_ns));
  }
  if (container.rdt) GCS_TRY(container.rdt->Remove());
  const auto& hooks = container.spec.hooks.poststop;
  if (hooks.empty()) return {};
  // "poststop hooks ... errors MUST be logged, but the remaining hooks MUST be executed" (runtime.md).
  const base::Json state = StateObject(container.spec, container.options, "stopped", 0);
  for (const Hook& hook : hooks) {
    const auto ran = RunHooks({hook}, state, container.options.bundle, "poststop hook", deadline_ns);
    if (!ran) {
      base::Log(base::Level::kWarn, "poststop hook failed",
                {{"container", container.id}, {"error", ran.error().ToString()}});
    }
  }
  return {};
}

}  // namespace gcs::engine
