// SPDX-License-Identifier: Apache-2.0
#include "rpc/recover.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/log.h"
#include "gcs/v1/containers.pb.h"
#include "gcs/v1/pods.pb.h"
#include "gcs/v1/processes.pb.h"
#include "gcs/v1/storage.pb.h"

namespace gcs::rpc {

namespace {

namespace v1 = gcs::v1;
using guest::ContainerStatus;

// What a call has brought about, as its serialized answer; nothing if it hasn't.
class Outcome {
 public:
  Outcome(const RequestCache::Open& open, const guest::Containers& containers, const guest::Pods& pods,
          const storage::Storage& storage, const guest::Journal& journal)
      : open_(open), containers_(containers), pods_(pods), storage_(storage), journal_(journal) {
    const size_t line = open.subject.find('\n');
    object_ = open.subject.substr(0, line);
    if (line != std::string::npos) process_ = open.subject.substr(line + 1);
  }

  std::optional<std::string> Answer() const {
    const std::string_view method = std::string_view(open_.key).substr(0, open_.key.find('\n'));
    if (method == "ContainerService.Create") return Created();
    if (method == "ContainerService.Start") return Started();
    if (method == "ContainerService.Delete") return Deleted();
    if (method == "ContainerService.Pause") return Now<v1::PauseContainerResponse>(ContainerStatus::kPaused);
    if (method == "ContainerService.Resume")
      return Now<v1::ResumeContainerResponse>(ContainerStatus::kRunning);
    if (method == "ProcessService.Exec") return Executed();
    if (method == "ProcessService.Delete") return ProcessGone();
    if (method == "PodService.Create") return PodCreated();
    if (method == "PodService.Delete") return PodDeleted();
    if (method == "StorageService.Unmount") return Unmounted();
    if (method.starts_with("StorageService.Mount")) return Mounted(method);
    return std::nullopt;
  }

 private:
  std::optional<std::string> Created() const {
    const auto state = containers_.State(object_);
    if (!state || state->created_at_ns < open_.begun_ns) return std::nullopt;
    v1::CreateContainerResponse answer;
    answer.set_pid(state->pid);
    return answer.SerializeAsString();
  }

  std::optional<std::string> Started() const {
    const auto state = containers_.State(object_);
    if (!state || state->started_at_ns < open_.begun_ns || state->status == ContainerStatus::kCreated)
      return std::nullopt;
    return v1::StartContainerResponse().SerializeAsString();
  }

  std::optional<std::string> Deleted() const {
    const auto events = journal_.Read(0, SIZE_MAX);
    const bool told = events && std::ranges::any_of(*events, [&](const guest::Event& event) {
                        return event.container_id == object_ && event.time_ns >= open_.begun_ns &&
                               std::holds_alternative<guest::ContainerDeleted>(event.body);
                      });
    if (!told || containers_.State(object_)) return std::nullopt;
    return v1::DeleteContainerResponse().SerializeAsString();
  }

  template <typename Response>
  std::optional<std::string> Now(ContainerStatus status) const {
    const auto state = containers_.State(object_);
    if (!state || state->status != status) return std::nullopt;
    return Response().SerializeAsString();
  }

  std::optional<guest::ProcessInfo> FindProcess() const {
    const auto processes = containers_.ListProcesses(object_);
    if (!processes) return std::nullopt;
    const auto found = std::ranges::find_if(
        *processes, [&](const guest::ProcessInfo& p) { return p.managed && p.process_id == process_; });
    return found == processes->end() ? std::nullopt : std::optional(*found);
  }

  std::optional<std::string> Executed() const {
    const auto process = FindProcess();
    if (!process || process->started_at_ns < open_.begun_ns) return std::nullopt;
    v1::ExecResponse answer;
    answer.set_pid(process->pid);
    return answer.SerializeAsString();
  }

  std::optional<std::string> ProcessGone() const {
    if (!containers_.State(object_) || FindProcess()) return std::nullopt;
    return v1::DeleteProcessResponse().SerializeAsString();
  }

  std::optional<guest::PodInfo> FindPod() const {
    for (guest::PodInfo& pod : pods_.List()) {
      if (pod.pod_id == object_) return std::move(pod);
    }
    return std::nullopt;
  }

  std::optional<std::string> PodCreated() const {
    const auto pod = FindPod();
    if (!pod || pod->created_at_ns < open_.begun_ns) return std::nullopt;
    return v1::CreatePodResponse().SerializeAsString();
  }

  std::optional<std::string> PodDeleted() const {
    if (FindPod()) return std::nullopt;
    return v1::DeletePodResponse().SerializeAsString();
  }

  std::optional<storage::MountInfo> FindMount() const {
    for (storage::MountInfo& mount : storage_.List()) {
      if (mount.mount_id == object_) return std::move(mount);
    }
    return std::nullopt;
  }

  std::optional<std::string> Unmounted() const {
    if (FindMount()) return std::nullopt;
    return v1::UnmountResponse().SerializeAsString();
  }

  std::optional<std::string> Mounted(std::string_view method) const {
    const auto mount = FindMount();
    if (!mount) return std::nullopt;
    const auto with_path = [&](auto answer) {
      answer.set_path(mount->path);
      return answer;
    };
    if (method == "StorageService.MountDisk") {
      auto answer = with_path(v1::MountDiskResponse());
      answer.set_device(mount->source);
      return answer.SerializeAsString();
    }
    if (method == "StorageService.MountOverlay")
      return with_path(v1::MountOverlayResponse()).SerializeAsString();
    if (method == "StorageService.MountShare") return with_path(v1::MountShareResponse()).SerializeAsString();
    if (method == "StorageService.MountTmpfs") return with_path(v1::MountTmpfsResponse()).SerializeAsString();
    return std::nullopt;
  }

  const RequestCache::Open& open_;
  const guest::Containers& containers_;
  const guest::Pods& pods_;
  const storage::Storage& storage_;
  const guest::Journal& journal_;
  std::string object_;
  std::string process_;
};

}  // namespace

void EndOpenCalls(RequestCache& requests, const std::vector<RequestCache::Open>& open,
                  const guest::Containers& containers, const guest::Pods& pods,
                  const storage::Storage& storage, const guest::Journal& journal) {
  for (const RequestCache::Open& call : open) {
    const auto answer = Outcome(call, containers, pods, storage, journal).Answer();
    base::Log(base::Level::kInfo, "call of an earlier agent",
              {{"method", call.key.substr(0, call.key.find('\n'))},
               {"request_id", call.key.substr(call.key.find('\n') + 1)},
               {"outcome", answer ? "done" : "not done"}});
    if (answer) {
      requests.Complete(call.key, {grpc::Status::OK, *answer}, base::MonotonicNs());
    } else {
      requests.Abort(call.key);
    }
  }
}

}  // namespace gcs::rpc
