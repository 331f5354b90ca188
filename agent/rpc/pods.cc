// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>
#include <utility>

#include "gcs/v1/pods.grpc.pb.h"
#include "guest/pods.h"
#include "rpc/convert.h"
#include "rpc/services.h"
#include "rpc/unary.h"

namespace gcs::rpc {

namespace {

namespace v1 = gcs::v1;

class PodService final : public v1::PodService::CallbackService {
 public:
  PodService(Core* core, guest::Pods* pods) : core_(*core), pods_(*pods) {}

  grpc::ServerUnaryReactor* Create(grpc::CallbackServerContext* context, const v1::CreatePodRequest* request,
                                   v1::CreatePodResponse* response) override {
    using Response = v1::CreatePodResponse;
    return Serve(core_, "PodService.Create", Access::kWrite, context, request, response,
                 On<v1::CreatePodRequest, Response>(
                     core_.work, [this](const Call& call, const auto& r) -> base::Result<Response> {
                       guest::CreatePod create;
                       create.pod_id = r.pod_id();
                       create.settings = {.hostname = r.hostname(),
                                          .shm_bytes = r.shm_bytes(),
                                          .sysctls = {r.sysctls().begin(), r.sysctls().end()}};
                       create.share_pid = r.share_pid();
                       GCS_ASSIGN(create.labels, LabelsFromProto(r.labels(), "create pod"));
                       GCS_TRY(pods_.Create(create, call.work_deadline_ns()));
                       return Response();
                     }));
  }

  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context, const v1::DeletePodRequest* request,
                                   v1::DeletePodResponse* response) override {
    using Response = v1::DeletePodResponse;
    return Serve(core_, "PodService.Delete", Access::kWrite, context, request, response,
                 On<v1::DeletePodRequest, Response>(
                     core_.work, [this](const Call& call, const auto& r) -> base::Result<Response> {
                       GCS_TRY(pods_.Delete(r.pod_id(), call.work_deadline_ns()));
                       return Response();
                     }));
  }

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context, const v1::ListPodsRequest* request,
                                 v1::ListPodsResponse* response) override {
    using Response = v1::ListPodsResponse;
    return Serve(core_, "PodService.List", Access::kRead, context, request, response,
                 On<v1::ListPodsRequest, Response>(
                     core_.quick, [this](const Call&, const auto&) -> base::Result<Response> {
                       Response out;
                       for (const guest::PodInfo& info : pods_.List()) {
                         v1::Pod* pod = out.add_pods();
                         pod->set_pod_id(info.pod_id);
                         pod->set_hostname(info.hostname);
                         for (const std::string& id : info.container_ids) pod->add_container_ids(id);
                         for (const auto& [key, value] : info.labels) (*pod->mutable_labels())[key] = value;
                         pod->set_share_pid(info.share_pid);
                         pod->set_created_at_ns(info.created_at_ns);
                       }
                       return out;
                     }));
  }

 private:
  Core& core_;
  guest::Pods& pods_;
};

}  // namespace

BuiltService MakePodService(Core* core, guest::Pods* pods) {
  return {std::make_unique<PodService>(core, pods),
          {"PodService.Create", "PodService.Delete", "PodService.List"}};
}

}  // namespace gcs::rpc
