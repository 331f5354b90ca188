// SPDX-License-Identifier: Apache-2.0
#include <signal.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "gcs/v1/containers.grpc.pb.h"
#include "guest/containers.h"
#include "rpc/convert.h"
#include "rpc/services.h"
#include "rpc/unary.h"

namespace gcs::rpc {

namespace {

namespace v1 = gcs::v1;

template <typename Response>
base::Result<Response> Empty(const base::Result<>& result) {
  if (!result) return std::unexpected(result.error());
  return Response();
}

base::Result<guest::CreateContainer> ToCreate(const v1::CreateContainerRequest& request) {
  guest::CreateContainer create;
  create.container_id = request.container_id();
  create.config_json = request.config_json();
  GCS_ASSIGN(create.stdio, FromProto(request.stdio()));
  GCS_ASSIGN(create.labels, LabelsFromProto(request.labels(), "create container"));
  create.owned_mounts = {request.owned_mounts().begin(), request.owned_mounts().end()};
  create.pod_id = request.pod_id();
  create.allow_vsock = request.allow_vsock();
  return create;
}

void SetContainer(v1::Container* out, const guest::ContainerInfo& info) {
  out->set_container_id(info.container_id);
  out->set_status(static_cast<v1::ContainerStatus>(info.status));
  out->set_pid(info.pid);
  out->set_created_at_ns(info.created_at_ns);
  out->set_started_at_ns(info.started_at_ns);
  if (info.exit) SetExit(out->mutable_exit(), *info.exit);
  for (const auto& [key, value] : info.labels) (*out->mutable_labels())[key] = value;
  for (const std::string& arg : info.args) out->add_args(arg);
  out->set_root_path(info.root_path);
  out->set_cgroup_path(info.cgroup_path);
  out->set_pod_id(info.pod_id);
}

void SetPressure(v1::PressureStats* out, const engine::PressureStats& stats) {
  out->set_some_avg10(stats.some_avg10);
  out->set_some_avg60(stats.some_avg60);
  out->set_some_avg300(stats.some_avg300);
  out->set_some_total_us(stats.some_total_us);
  out->set_full_avg10(stats.full_avg10);
  out->set_full_avg60(stats.full_avg60);
  out->set_full_avg300(stats.full_avg300);
  out->set_full_total_us(stats.full_total_us);
}

void SetStats(v1::ContainerStats* out, const guest::ContainerStats& container) {
  const engine::CgroupStats& stats = container.stats;
  out->set_container_id(container.container_id);
  v1::CpuStats* cpu = out->mutable_cpu();
  cpu->set_usage_us(stats.cpu_usage_us);
  cpu->set_user_us(stats.cpu_user_us);
  cpu->set_system_us(stats.cpu_system_us);
  cpu->set_periods(stats.cpu_periods);
  cpu->set_throttled_periods(stats.cpu_throttled_periods);
  cpu->set_throttled_us(stats.cpu_throttled_us);
  v1::MemoryStats* memory = out->mutable_memory();
  memory->set_usage_bytes(stats.memory_usage);
  memory->set_peak_bytes(stats.memory_peak);
  memory->set_limit_bytes(stats.memory_limit);
  memory->set_swap_bytes(stats.memory_swap);
  memory->set_anon_bytes(stats.memory_anon);
  memory->set_file_bytes(stats.memory_file);
  memory->set_kernel_bytes(stats.memory_kernel);
  memory->set_inactive_file_bytes(stats.memory_inactive_file);
  memory->set_oom_events(stats.memory_oom);
  memory->set_oom_kills(stats.memory_oom_kill);
  memory->set_limit_hits(stats.memory_max_hits);
  out->mutable_pids()->set_current(stats.pids_current);
  out->mutable_pids()->set_limit(stats.pids_limit);
  for (const engine::IoStats& device : stats.io) {
    v1::IoStats* io = out->add_io();
    io->set_major(device.major);
    io->set_minor(device.minor);
    io->set_read_bytes(device.read_bytes);
    io->set_write_bytes(device.write_bytes);
    io->set_read_ops(device.read_ops);
    io->set_write_ops(device.write_ops);
  }
  if (stats.cpu_pressure) SetPressure(out->mutable_cpu_pressure(), *stats.cpu_pressure);
  if (stats.memory_pressure) SetPressure(out->mutable_memory_pressure(), *stats.memory_pressure);
  if (stats.io_pressure) SetPressure(out->mutable_io_pressure(), *stats.io_pressure);
}

class ContainerService final : public v1::ContainerService::CallbackService {
 public:
  ContainerService(Core* core, guest::Containers* containers) : core_(*core), containers_(*containers) {}

  grpc::ServerUnaryReactor* Create(grpc::CallbackServerContext* context,
                                   const v1::CreateContainerRequest* request,
                                   v1::CreateContainerResponse* response) override {
    using Response = v1::CreateContainerResponse;
    return Serve(
        core_, "ContainerService.Create", Access::kWrite, context, request, response,
        OnCancellable<v1::CreateContainerRequest, Response>(
            core_.work, [this](const Call& call, const auto& r, int cancel_fd) -> base::Result<Response> {
              GCS_ASSIGN(guest::CreateContainer create, ToCreate(r));
              create.cancel_fd = cancel_fd;
              GCS_ASSIGN(const guest::Spawned spawned, containers_.Create(create, call.work_deadline_ns()));
              Response out;
              out.set_pid(spawned.pid);
              SetTimings(out.mutable_timings(), spawned.timings);
              return out;
            }));
  }

  grpc::ServerUnaryReactor* Start(grpc::CallbackServerContext* context,
                                  const v1::StartContainerRequest* request,
                                  v1::StartContainerResponse* response) override {
    using Response = v1::StartContainerResponse;
    return Serve(core_, "ContainerService.Start", Access::kWrite, context, request, response,
                 On<v1::StartContainerRequest, Response>(
                     core_.work, [this](const Call& call, const auto& r) -> base::Result<Response> {
                       GCS_ASSIGN(const auto timings,
                                  containers_.Start(r.container_id(), call.work_deadline_ns()));
                       Response out;
                       SetTimings(out.mutable_timings(), timings);
                       return out;
                     }));
  }

  grpc::ServerUnaryReactor* Wait(grpc::CallbackServerContext* context,
                                 const v1::WaitContainerRequest* request,
                                 v1::WaitContainerResponse* response) override {
    return Serve<v1::WaitContainerRequest, v1::WaitContainerResponse>(
        core_, "ContainerService.Wait", Access::kRead, context, request, response,
        [this](const CallPtr& call, const auto& r, const auto& done) {
          WaitForExit(&containers_, call, r.container_id(), "", done);
        });
  }

  grpc::ServerUnaryReactor* Signal(grpc::CallbackServerContext* context,
                                   const v1::SignalContainerRequest* request,
                                   v1::SignalContainerResponse* response) override {
    using Response = v1::SignalContainerResponse;
    // One system call, but for a signal to each of any number of processes.
    base::Pool* pool = request->all() && request->signal() != SIGKILL ? core_.work : core_.quick;
    return Serve(core_, "ContainerService.Signal", Access::kWrite, context, request, response,
                 On<v1::SignalContainerRequest, Response>(pool, [this](const Call&, const auto& r) {
                   return Empty<Response>(r.all() ? containers_.SignalAll(r.container_id(), r.signal())
                                                  : containers_.Signal(r.container_id(), "", r.signal()));
                 }));
  }

  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context,
                                   const v1::DeleteContainerRequest* request,
                                   v1::DeleteContainerResponse* response) override {
    using Response = v1::DeleteContainerResponse;
    return Serve(core_, "ContainerService.Delete", Access::kWrite, context, request, response,
                 On<v1::DeleteContainerRequest, Response>(
                     core_.work, [this](const Call& call, const auto& r) -> base::Result<Response> {
                       GCS_ASSIGN(const auto timings,
                                  containers_.Delete(r.container_id(), r.force(), call.work_deadline_ns()));
                       Response out;
                       SetTimings(out.mutable_timings(), timings);
                       return out;
                     }));
  }

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListContainersRequest* request,
                                 v1::ListContainersResponse* response) override {
    using Response = v1::ListContainersResponse;
    return Serve(core_, "ContainerService.List", Access::kRead, context, request, response,
                 On<v1::ListContainersRequest, Response>(
                     core_.quick, [this](const Call&, const auto&) -> base::Result<Response> {
                       Response out;
                       for (const guest::ContainerInfo& info : containers_.List())
                         SetContainer(out.add_containers(), info);
                       return out;
                     }));
  }

  grpc::ServerUnaryReactor* State(grpc::CallbackServerContext* context,
                                  const v1::ContainerStateRequest* request,
                                  v1::ContainerStateResponse* response) override {
    using Response = v1::ContainerStateResponse;
    return Serve(core_, "ContainerService.State", Access::kRead, context, request, response,
                 On<v1::ContainerStateRequest, Response>(
                     core_.quick, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_ASSIGN(const guest::ContainerInfo info, containers_.State(r.container_id()));
                       Response out;
                       SetContainer(out.mutable_container(), info);
                       GCS_ASSIGN(*out.mutable_oci_state_json(), containers_.OciState(r.container_id()));
                       return out;
                     }));
  }

  grpc::ServerUnaryReactor* Pause(grpc::CallbackServerContext* context,
                                  const v1::PauseContainerRequest* request,
                                  v1::PauseContainerResponse* response) override {
    using Response = v1::PauseContainerResponse;
    return Serve(core_, "ContainerService.Pause", Access::kWrite, context, request, response,
                 On<v1::PauseContainerRequest, Response>(core_.work, [this](const Call& call, const auto& r) {
                   return Empty<Response>(containers_.Pause(r.container_id(), call.work_deadline_ns()));
                 }));
  }

  grpc::ServerUnaryReactor* Resume(grpc::CallbackServerContext* context,
                                   const v1::ResumeContainerRequest* request,
                                   v1::ResumeContainerResponse* response) override {
    using Response = v1::ResumeContainerResponse;
    return Serve(
        core_, "ContainerService.Resume", Access::kWrite, context, request, response,
        On<v1::ResumeContainerRequest, Response>(core_.work, [this](const Call& call, const auto& r) {
          return Empty<Response>(containers_.Resume(r.container_id(), call.work_deadline_ns()));
        }));
  }

  grpc::ServerUnaryReactor* Update(grpc::CallbackServerContext* context,
                                   const v1::UpdateContainerRequest* request,
                                   v1::UpdateContainerResponse* response) override {
    using Response = v1::UpdateContainerResponse;
    return Serve(
        core_, "ContainerService.Update", Access::kWrite, context, request, response,
        On<v1::UpdateContainerRequest, Response>(core_.work, [this](const Call& call, const auto& r) {
          return Empty<Response>(
              containers_.Update(r.container_id(), r.resources_json(), call.work_deadline_ns()));
        }));
  }

  grpc::ServerUnaryReactor* Stats(grpc::CallbackServerContext* context,
                                  const v1::ContainerStatsRequest* request,
                                  v1::ContainerStatsResponse* response) override {
    using Response = v1::ContainerStatsResponse;
    return Serve(core_, "ContainerService.Stats", Access::kRead, context, request, response,
                 On<v1::ContainerStatsRequest, Response>(
                     core_.work, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_ASSIGN(const auto all,
                                  containers_.Stats({r.container_ids().begin(), r.container_ids().end()}));
                       Response out;
                       out.set_read_at_ns(base::RealtimeNs());
                       for (const guest::ContainerStats& stats : all) SetStats(out.add_stats(), stats);
                       return out;
                     }));
  }

 private:
  Core& core_;
  guest::Containers& containers_;
};

}  // namespace

BuiltService MakeContainerService(Core* core, guest::Containers* containers) {
  return {std::make_unique<ContainerService>(core, containers),
          {"ContainerService.Create", "ContainerService.Start", "ContainerService.Wait",
           "ContainerService.Signal", "ContainerService.Delete", "ContainerService.List",
           "ContainerService.State", "ContainerService.Pause", "ContainerService.Resume",
           "ContainerService.Update", "ContainerService.Stats"}};
}

}  // namespace gcs::rpc
