// SPDX-License-Identifier: Apache-2.0
#include "guest/pods.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <climits>
#include <optional>
#include <set>
#include <tuple>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/paths.h"
#include "guest/exit_status.h"
#include "net/interface.h"

namespace gcs::guest {

using base::Fd;
using base::Json;
using base::JsonReader;
using base::MakeError;
using base::Result;

namespace {

constexpr std::string_view kPodKey = "pod/";
constexpr int64_t kTearDownNs = 10 * base::kNsPerSec;
// What Kubernetes gives its own: the last to go when memory is short.
constexpr int kPauseOomScore = -998;

struct SharedNamespace {
  int flag;
  const char* name;
};
constexpr std::array<SharedNamespace, 4> kShared{
    SharedNamespace{CLONE_NEWNET, "net"}, SharedNamespace{CLONE_NEWIPC, "ipc"},
    SharedNamespace{CLONE_NEWUTS, "uts"}, SharedNamespace{CLONE_NEWPID, "pid"}};

bool HasEnded(int pidfd, int64_t deadline_ns) {
  for (;;) {
    pollfd watch{.fd = pidfd, .events = POLLIN, .revents = 0};
    const int64_t left_ms = std::max<int64_t>((deadline_ns - base::MonotonicNs()) / base::kNsPerMs, 0);
    const int ready = poll(&watch, 1, static_cast<int>(std::min<int64_t>(left_ms, INT_MAX)));
    if (ready >= 0 || errno != EINTR) return ready > 0;
  }
}

// A file or directory of the pod's where the container has nothing of its own.
void AddMount(engine::Spec& spec, const std::string& source, const std::string& destination,
              std::vector<std::string> options) {
  const auto own = std::ranges::find(spec.mounts, destination, &engine::Mount::destination);
  if (own != spec.mounts.end()) return;
  spec.mounts.push_back(
      {.destination = destination, .type = {}, .source = source, .options = std::move(options)});
}

// The kernel gives hardware back by itself when a namespace ends, but some time later. What else there is, a
// container has made: it goes with the namespace.
void GiveInterfacesBack(const std::string& namespace_path) {
  const auto ns = base::OpenFile(namespace_path, O_RDONLY | O_NOFOLLOW);
  if (!ns) return;  // it has not come that far
  const auto interfaces = net::ListInterfaces(*ns);
  if (!interfaces) return base::LogError("list interfaces of a pod", interfaces.error());
  for (const net::InterfaceState& each : *interfaces) {
    if (!each.hardware) continue;
    if (auto gone = net::RemoveInterface({net::InterfaceSelect::By::kName, each.name}, *ns); !gone)
      base::LogError("give interface back", gone.error());
  }
}

}  // namespace

struct Pods::Pod {
  std::string id;
  uint64_t number = 0;  // in the order of their creation
  int64_t created_at_ns = 0;
  PodSettings settings;
  bool share_pid = false;
  std::vector<std::pair<std::string, std::string>> labels;
  bool busy = true;    // being made or deleted
  bool ready = false;  // has been made
  std::optional<engine::EngineContainer> pause;
  std::set<std::string> containers;
};

Pods::Pods(Options options, engine::Engine* engine, Keep* keep)
    : options_(std::move(options)), engine_(engine), keep_(keep) {}

Pods::~Pods() {
  for (auto& [id, pod] : pods_) {
    if (auto gone = TakeDown(*pod, base::MonotonicNs() + kTearDownNs); !gone)
      base::LogError("remove pod", gone.error());
  }
}

Result<std::shared_ptr<Pods::Pod>> Pods::Find(const std::string& pod_id) const {
  const auto it = pods_.find(pod_id);
  if (it == pods_.end()) return MakeError(ENOENT, "find pod", pod_id.substr(0, 64));
  if (it->second->busy) return MakeError(EBUSY, "find pod", pod_id, "it is being made or deleted");
  return it->second;
}

// The first process of the pod's pid namespace: a container of the agent's own with nothing in it.
Result<engine::Spec> Pods::PauseSpec(const std::string& pod_id) const {
  Json namespaces = {{{"type", "pid"}}, {{"type", "mount"}}, {{"type", "cgroup"}}};
  for (const auto& [type, name] :
       {std::pair("network", "net"), std::pair("ipc", "ipc"), std::pair("uts", "uts")})
    namespaces.push_back({{"type", type}, {"path", Dir(pod_id) + "/ns/" + name}});
  const Json config = {
      {"ociVersion", "1.0.2"},
      {"process",
       {{"user", {{"uid", 65535}, {"gid", 65535}}},
        {"cwd", "/"},
        {"args", {"/pause"}},
        {"noNewPrivileges", true},
        {"oomScoreAdj", kPauseOomScore}}},
      {"root", {{"path", Dir(pod_id) + "/root"}, {"readonly", true}}},
      {"mounts",
       {{{"destination", "/pause"},
         {"source", options_.pause_program},
         {"options", {"bind", "ro", "nosuid", "nodev"}}}}},
      {"linux", {{"cgroupsPath", options_.cgroup_parent + "/" + pod_id}, {"namespaces", namespaces}}}};
  return engine::ParseSpec(config.dump());
}

Result<> Pods::StartPause(Pod& pod, int64_t deadline_ns) {
  GCS_ASSIGN(engine::Spec spec, PauseSpec(pod.id));
  GCS_ASSIGN(const Fd null, base::OpenFile("/dev/null", O_RDWR));
  auto made = engine_->CreateContainer(
      pod.id, std::move(spec), {.stdio = {null.get(), null.get(), null.get()}, .deadline_ns = deadline_ns});
  GCS_TRY(made);
  pod.pause.emplace(std::move(*made));
  GCS_TRY(engine::Engine::Start(*pod.pause, pod.pause->init, deadline_ns));
  return BindPidNamespace(Dir(pod.id), pod.pause->init.pid());
}

Result<> Pods::KeepPod(const Pod& pod) const {
  if (keep_ == nullptr) return {};
  Json labels = Json::array();
  for (const auto& [key, value] : pod.labels) labels.push_back({{"key", key}, {"value", value}});
  const Json json = {{"number", pod.number},
                     {"created", pod.created_at_ns},
                     {"hostname", pod.settings.hostname},
                     {"labels", labels},
                     {"ready", pod.ready},
                     {"pause", pod.pause ? pod.pause->init.pid() : 0}};
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  const std::string key = std::string(kPodKey) + pod.id;
  if (!pod.pause) return keep_->Put(key, text);
  const std::array fds{pod.pause->init.pidfd()};
  return keep_->Put(key, text, fds, pod.pause->init.pid());
}

Result<> Pods::TakeDown(Pod& pod, int64_t deadline_ns) {
  if (pod.pause) {
    GCS_TRY(pod.pause->cgroup->Kill());
    const int pidfd = pod.pause->init.pidfd();
    if (!HasEnded(pidfd, deadline_ns))
      return MakeError(ETIMEDOUT, "delete pod", pod.id, "its first process did not end in time");
    std::ignore = Reap(pidfd);
    GCS_TRY(engine::Engine::Destroy(*pod.pause, deadline_ns));
    pod.pause.reset();
  }
  GiveInterfacesBack(Dir(pod.id) + "/ns/net");
  GCS_TRY(RemovePodDir(Dir(pod.id)));
  if (keep_ != nullptr) keep_->Remove(std::string(kPodKey) + pod.id);
  return {};
}

Result<> Pods::Create(const CreatePod& request, int64_t deadline_ns) {
  const std::string& id = request.pod_id;
  if (!engine::ValidId(id)) return MakeError(EINVAL, "create pod", id.substr(0, 64), "bad pod id");
  GCS_TRY(CheckHostname(request.settings.hostname));
  GCS_TRY(CheckPodSysctls(request.settings.sysctls));
  const auto pod = std::make_shared<Pod>();
  pod->id = id;
  pod->created_at_ns = base::RealtimeNs();
  pod->settings = request.settings;
  pod->share_pid = request.share_pid;
  pod->labels = request.labels;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [other, each] : pods_) pod->number = std::max(pod->number, each->number + 1);
    if (!pods_.emplace(id, pod).second) return MakeError(EEXIST, "create pod", id);
  }
  const auto make = [&]() -> Result<> {
    GCS_TRY(KeepPod(*pod));
    GCS_TRY(MakePodDir(Dir(id), pod->settings));
    if (pod->share_pid) GCS_TRY(StartPause(*pod, deadline_ns));
    pod->ready = true;
    return KeepPod(*pod);
  };
  auto made = make();
  if (!made) {
    if (auto gone = TakeDown(*pod, base::MonotonicNs() + kTearDownNs); !gone)
      base::LogError("remove pod", gone.error());
  }
  const std::lock_guard lock(mutex_);
  pod->busy = false;
  if (!made) pods_.erase(id);
  return made;
}

Result<> Pods::Delete(const std::string& pod_id, int64_t deadline_ns) {
  std::shared_ptr<Pod> pod;
  {
    const std::lock_guard lock(mutex_);
    GCS_ASSIGN(pod, Find(pod_id));
    if (!pod->containers.empty())
      return MakeError(EBUSY, "delete pod", *pod->containers.begin(), "a container is in it");
    pod->busy = true;
  }
  auto gone = TakeDown(*pod, deadline_ns);
  const std::lock_guard lock(mutex_);
  // What is left of it after an error can be deleted again, and only that.
  pod->busy = false;
  if (gone) {
    pods_.erase(pod_id);
  } else {
    pod->ready = false;
  }
  return gone;
}

std::vector<PodInfo> Pods::List() const {
  std::vector<const Pod*> order;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, pod] : pods_) {
    if (!pod->busy) order.push_back(pod.get());
  }
  std::ranges::sort(order, {}, &Pod::number);
  std::vector<PodInfo> list;
  for (const Pod* pod : order) {
    list.push_back({.pod_id = pod->id,
                    .hostname = pod->settings.hostname,
                    .container_ids = {pod->containers.begin(), pod->containers.end()},
                    .created_at_ns = pod->created_at_ns,
                    .share_pid = pod->share_pid,
                    .labels = pod->labels});
  }
  return list;
}

Result<> Pods::Join(const std::string& pod_id, const std::string& container_id, engine::Spec& spec) {
  std::shared_ptr<Pod> pod;
  {
    const std::lock_guard lock(mutex_);
    GCS_ASSIGN(pod, Find(pod_id));
    if (!pod->ready) return MakeError(EBUSY, "find pod", pod_id, "its deletion has failed");
    pod->containers.insert(container_id);
  }
  const auto join = [&]() -> Result<> {
    const auto conflict = [&](const std::string& path, std::string_view message) {
      return MakeError(EINVAL, "create container", path, message);
    };
    const std::string dir = Dir(pod_id);
    if (pod->pause && HasEnded(pod->pause->init.pidfd(), 0))
      return MakeError(ESRCH, "find pod", pod_id, "its first process has ended");
    for (const SharedNamespace& shared : kShared) {
      if (shared.flag == CLONE_NEWPID && !pod->pause) continue;
      const std::string path = dir + "/ns/" + shared.name;
      const auto own = std::ranges::find(spec.namespaces, shared.flag, &engine::Namespace::flag);
      if (own == spec.namespaces.end()) {
        spec.namespaces.push_back({shared.flag, path});
      } else if (own->path.empty() || own->path == path) {
        own->path = path;
      } else {
        return conflict("linux.namespaces", own->path + " is not the pod's");
      }
    }
    if (!spec.hostname.empty() && spec.hostname != pod->settings.hostname)
      return conflict("hostname", "the pod's is \"" + pod->settings.hostname + "\"");
    spec.hostname.clear();
    if (!spec.domainname.empty()) return conflict("domainname", "is the pod's");
    for (const auto& [key, value] : spec.sysctl) {
      std::string path;
      if ((engine::SysctlNamespace(key, &path) & (CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)) != 0)
        return conflict("linux.sysctl." + key, "is the pod's");
    }
    const std::string access = spec.root_readonly ? "ro" : "rw";
    for (const char* name : {"hostname", "hosts", "resolv.conf"})
      AddMount(spec, dir + "/etc/" + name, std::string("/etc/") + name, {"bind", "rprivate", access});
    std::erase_if(spec.mounts, [](const engine::Mount& mount) {
      return mount.destination == "/dev/shm" && mount.type == "tmpfs";
    });
    AddMount(spec, dir + "/shm", "/dev/shm", {"bind", "rprivate", "nosuid", "nodev", "noexec"});
    return {};
  };
  auto joined = join();
  if (!joined) Leave(pod_id, container_id);
  return joined;
}

void Pods::Leave(const std::string& pod_id, const std::string& container_id) {
  const std::lock_guard lock(mutex_);
  if (const auto it = pods_.find(pod_id); it != pods_.end()) it->second->containers.erase(container_id);
}

Result<Fd> Pods::NetworkNamespace(const std::string& pod_id) const {
  const std::lock_guard lock(mutex_);
  GCS_TRY(Find(pod_id));
  return base::OpenFile(Dir(pod_id) + "/ns/net", O_RDONLY | O_NOFOLLOW);
}

Result<> Pods::SetResolvConf(const std::string& pod_id, const std::string& text) const {
  const std::lock_guard lock(mutex_);
  GCS_TRY(Find(pod_id));
  return RewriteFile(Dir(pod_id) + "/etc/resolv.conf", text);
}

std::vector<std::string> Pods::CgroupPaths() const {
  std::vector<std::string> paths;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, pod] : pods_) {
    if (pod->pause) paths.push_back(pod->pause->cgroup->path());
  }
  return paths;
}

Result<> Pods::RestorePod(Keep::Entry& entry) {
  const auto pod = std::make_shared<Pod>();
  pod->id = entry.key.substr(kPodKey.size());
  GCS_ASSIGN(const Json json, base::ParseJson(entry.value, "kept pod"));
  JsonReader reader(json, "read kept pod");
  pod->number = reader.Uint64("number", 0);
  pod->created_at_ns = reader.Int("created", 0, INT64_MIN, INT64_MAX);
  pod->settings.hostname = reader.String("hostname");
  pod->ready = reader.Bool("ready");
  const int pause = static_cast<int>(reader.Int("pause", 0, 0, INT32_MAX));
  for (JsonReader& label : reader.Objects("labels"))
    pod->labels.emplace_back(label.String("key"), label.String("value"));
  if (reader.error()) return std::unexpected(*reader.error());
  if (!pod->ready) return MakeError(ECANCELED, "restore pod", pod->id, "was being made");
  for (const SharedNamespace& shared : kShared) {
    if (shared.flag == CLONE_NEWPID && pause == 0) continue;
    GCS_TRY(base::OpenFile(Dir(pod->id) + "/ns/" + shared.name, O_RDONLY | O_NOFOLLOW));
  }
  if (pause != 0) {
    if (entry.fds.empty() || !entry.fds[0]) return MakeError(EINVAL, "restore pod", pod->id, "no pidfd");
    GCS_ASSIGN(engine::Spec spec, PauseSpec(pod->id));
    GCS_ASSIGN(engine::EngineContainer adopted,
               engine_->Adopt(pod->id, std::move(spec), options_.cgroup_parent + "/" + pod->id, ""));
    adopted.init = engine::ChildProcess::Attach(pause, std::move(entry.fds[0]), Fd(), pod->id, {}, true);
    pod->pause.emplace(std::move(adopted));
    pod->share_pid = true;
  }
  pod->busy = false;
  pods_.emplace(pod->id, pod);
  return {};
}

void Pods::Restore(std::vector<Keep::Entry>& entries) {
  const std::lock_guard lock(mutex_);
  for (Keep::Entry& entry : entries) {
    if (!entry.key.starts_with(kPodKey)) continue;
    if (auto restored = RestorePod(entry); !restored) {
      base::LogError("restore pod", restored.error());
      keep_->Remove(entry.key);
    }
  }
  std::erase_if(entries, [](const Keep::Entry& entry) { return entry.key.starts_with(kPodKey); });
  // Who is still in the cgroups of these is ended with those.
  const auto names = base::ListDir(options_.dir);
  if (!names) return;
  for (const std::string& name : *names) {
    if (pods_.contains(name)) continue;
    if (auto gone = RemovePodDir(Dir(name)); !gone) base::LogError("remove pod", gone.error());
  }
}

}  // namespace gcs::guest
