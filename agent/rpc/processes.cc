// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <utility>
#include <vector>

#include "gcs/v1/processes.grpc.pb.h"
#include "guest/containers.h"
#include "rpc/convert.h"
#include "rpc/services.h"
#include "rpc/unary.h"

namespace gcs::rpc {

namespace {

namespace v1 = gcs::v1;

class ProcessService final : public v1::ProcessService::CallbackService {
 public:
  ProcessService(Core* core, guest::Containers* containers) : core_(*core), containers_(*containers) {}

  grpc::ServerUnaryReactor* Exec(grpc::CallbackServerContext* context, const v1::ExecRequest* request,
                                 v1::ExecResponse* response) override {
    using Response = v1::ExecResponse;
    return Serve(
        core_, "ProcessService.Exec", Access::kWrite, context, request, response,
        OnCancellable<v1::ExecRequest, Response>(
            core_.work, [this](const Call& call, const auto& r, int cancel_fd) -> base::Result<Response> {
              guest::ExecProcess exec{r.container_id(), r.process_id(), r.process_json(), {}, cancel_fd};
              GCS_ASSIGN(exec.stdio, FromProto(r.stdio()));
              GCS_ASSIGN(const guest::Spawned spawned, containers_.Exec(exec, call.work_deadline_ns()));
              Response out;
              out.set_pid(spawned.pid);
              SetTimings(out.mutable_timings(), spawned.timings);
              return out;
            }));
  }

  grpc::ServerUnaryReactor* Wait(grpc::CallbackServerContext* context, const v1::WaitProcessRequest* request,
                                 v1::WaitProcessResponse* response) override {
    return Serve<v1::WaitProcessRequest, v1::WaitProcessResponse>(
        core_, "ProcessService.Wait", Access::kRead, context, request, response,
        [this](const CallPtr& call, const auto& r, const auto& done) {
          WaitForExit(&containers_, call, r.container_id(), r.process_id(), done);
        });
  }

  grpc::ServerUnaryReactor* Signal(grpc::CallbackServerContext* context,
                                   const v1::SignalProcessRequest* request,
                                   v1::SignalProcessResponse* response) override {
    using Response = v1::SignalProcessResponse;
    return Serve(core_, "ProcessService.Signal", Access::kWrite, context, request, response,
                 On<v1::SignalProcessRequest, Response>(
                     core_.quick, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_TRY(containers_.Signal(r.container_id(), r.process_id(), r.signal()));
                       return Response();
                     }));
  }

  grpc::ServerUnaryReactor* Resize(grpc::CallbackServerContext* context, const v1::ResizeRequest* request,
                                   v1::ResizeResponse* response) override {
    using Response = v1::ResizeResponse;
    return Serve(core_, "ProcessService.Resize", Access::kRead, context, request, response,
                 On<v1::ResizeRequest, Response>(
                     core_.quick, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_TRY(containers_.Resize(r.container_id(), r.process_id(), r.width(), r.height()));
                       return Response();
                     }));
  }

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListProcessesRequest* request,
                                 v1::ListProcessesResponse* response) override {
    using Response = v1::ListProcessesResponse;
    return Serve(core_, "ProcessService.List", Access::kRead, context, request, response,
                 On<v1::ListProcessesRequest, Response>(
                     core_.work, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_ASSIGN(const auto processes, containers_.ListProcesses(r.container_id()));
                       Response out;
                       for (const guest::ProcessInfo& process : processes)
                         SetProcess(out.add_processes(), process);
                       return out;
                     }));
  }

  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context,
                                   const v1::DeleteProcessRequest* request,
                                   v1::DeleteProcessResponse* response) override {
    using Response = v1::DeleteProcessResponse;
    return Serve(core_, "ProcessService.Delete", Access::kWrite, context, request, response,
                 On<v1::DeleteProcessRequest, Response>(
                     core_.work, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_TRY(containers_.DeleteProcess(r.container_id(), r.process_id()));
                       return Response();
                     }));
  }

 private:
  static void SetProcess(v1::Process* out, const guest::ProcessInfo& process) {
    out->set_process_id(process.process_id);
    out->set_pid(process.pid);
    out->set_managed(process.managed);
    out->set_command(ToUtf8(process.command));
    if (process.exit) SetExit(out->mutable_exit(), *process.exit);
    out->set_uid(process.uid);
    out->set_rss_bytes(process.rss_bytes);
    out->set_cpu_time_ns(process.cpu_time_ns);
    out->set_started_at_ns(process.started_at_ns);
  }

  Core& core_;
  guest::Containers& containers_;
};

}  // namespace

BuiltService MakeProcessService(Core* core, guest::Containers* containers) {
  return {std::make_unique<ProcessService>(core, containers),
          {"ProcessService.Exec", "ProcessService.Wait", "ProcessService.Signal", "ProcessService.Resize",
           "ProcessService.List", "ProcessService.Delete"}};
}

}  // namespace gcs::rpc
