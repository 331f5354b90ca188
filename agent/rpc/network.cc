// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/paths.h"
#include "gcs/v1/network.grpc.pb.h"
#include "guest/pods.h"
#include "net/interface.h"
#include "net/resolv_conf.h"
#include "rpc/convert.h"
#include "rpc/services.h"
#include "rpc/unary.h"

namespace gcs::rpc {

namespace {

namespace v1 = gcs::v1;

constexpr char kGuestResolvConf[] = "/etc/resolv.conf";

base::Result<net::InterfaceSelect> FromProto(const v1::InterfaceSelect& select) {
  using By = net::InterfaceSelect::By;
  switch (select.select_case()) {
    case v1::InterfaceSelect::kName:
      return net::InterfaceSelect{By::kName, select.name()};
    case v1::InterfaceSelect::kMacAddress:
      return net::InterfaceSelect{By::kMacAddress, select.mac_address()};
    case v1::InterfaceSelect::kVmbusGuid:
      return net::InterfaceSelect{By::kVmbusGuid, select.vmbus_guid()};
    case v1::InterfaceSelect::SELECT_NOT_SET:
      break;
  }
  return base::MakeError(EINVAL, "check request", "interface", "which one?");
}

void SetInterface(v1::Interface* out, const net::InterfaceState& state, const std::string& pod_id) {
  out->set_name(ToUtf8(state.name));
  out->set_index(state.index);
  out->set_mac_address(state.mac_address);
  out->set_mtu(state.mtu);
  out->set_up(state.up);
  for (const std::string& address : state.addresses) out->add_addresses()->set_cidr(address);
  for (const net::RouteText& route : state.routes) {
    v1::Route* entry = out->add_routes();
    entry->set_destination(route.destination);
    entry->set_gateway(route.gateway);
    entry->set_metric(route.metric);
    entry->set_source(route.source);
    entry->set_table(route.table);
  }
  for (const net::NeighborText& neighbor : state.neighbors) {
    v1::Neighbor* entry = out->add_neighbors();
    entry->set_address(neighbor.address);
    entry->set_mac_address(neighbor.mac_address);
  }
  out->set_received_bytes(state.received_bytes);
  out->set_sent_bytes(state.sent_bytes);
  out->set_pod_id(pod_id);
}

class NetworkService final : public v1::NetworkService::CallbackService {
 public:
  NetworkService(Core* core, guest::Pods* pods) : core_(*core), pods_(*pods) {}

  grpc::ServerUnaryReactor* ConfigureInterface(grpc::CallbackServerContext* context,
                                               const v1::ConfigureInterfaceRequest* request,
                                               v1::ConfigureInterfaceResponse* response) override {
    using Response = v1::ConfigureInterfaceResponse;
    // It may wait for hardware: not on the threads that containers need.
    return Serve(
        core_, "NetworkService.ConfigureInterface", Access::kWrite, context, request, response,
        OnCancellable<v1::ConfigureInterfaceRequest, Response>(
            core_.storage, [this](const Call& call, const auto& r, int cancel_fd) -> base::Result<Response> {
              GCS_ASSIGN(const net::InterfaceSelect select, FromProto(r.interface()));
              net::InterfaceConfig config{.name = r.name(), .mtu = r.mtu()};
              for (const auto& address : r.addresses()) config.addresses.push_back(address.cidr());
              for (const auto& route : r.routes()) {
                config.routes.push_back({.destination = route.destination(),
                                         .gateway = route.gateway(),
                                         .metric = route.metric(),
                                         .source = route.source(),
                                         .table = route.table()});
              }
              for (const auto& neighbor : r.neighbors())
                config.neighbors.push_back({neighbor.address(), neighbor.mac_address()});
              GCS_ASSIGN(const base::Fd target, NamespaceOf(r.pod_id()));
              GCS_ASSIGN(
                  const net::InterfaceState state,
                  net::ConfigureInterface(select, target, config, {call.work_deadline_ns(), cancel_fd}));
              Response out;
              SetInterface(out.mutable_interface(), state, r.pod_id());
              return out;
            }));
  }

  grpc::ServerUnaryReactor* RemoveInterface(grpc::CallbackServerContext* context,
                                            const v1::RemoveInterfaceRequest* request,
                                            v1::RemoveInterfaceResponse* response) override {
    using Response = v1::RemoveInterfaceResponse;
    return Serve(core_, "NetworkService.RemoveInterface", Access::kWrite, context, request, response,
                 On<v1::RemoveInterfaceRequest, Response>(
                     core_.work, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_ASSIGN(const net::InterfaceSelect select, FromProto(r.interface()));
                       GCS_ASSIGN(const base::Fd from, NamespaceOf(r.pod_id()));
                       GCS_TRY(net::RemoveInterface(select, from));
                       return Response();
                     }));
  }

  grpc::ServerUnaryReactor* ListInterfaces(grpc::CallbackServerContext* context,
                                           const v1::ListInterfacesRequest* request,
                                           v1::ListInterfacesResponse* response) override {
    using Response = v1::ListInterfacesResponse;
    return Serve(core_, "NetworkService.ListInterfaces", Access::kRead, context, request, response,
                 On<v1::ListInterfacesRequest, Response>(
                     core_.work, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_ASSIGN(const base::Fd in, NamespaceOf(r.pod_id()));
                       GCS_ASSIGN(const auto interfaces, net::ListInterfaces(in));
                       Response out;
                       for (const net::InterfaceState& state : interfaces)
                         SetInterface(out.add_interfaces(), state, r.pod_id());
                       return out;
                     }));
  }

  grpc::ServerUnaryReactor* ConfigureDns(grpc::CallbackServerContext* context,
                                         const v1::ConfigureDnsRequest* request,
                                         v1::ConfigureDnsResponse* response) override {
    using Response = v1::ConfigureDnsResponse;
    return Serve(core_, "NetworkService.ConfigureDns", Access::kWrite, context, request, response,
                 On<v1::ConfigureDnsRequest, Response>(
                     core_.work, [this](const Call&, const auto& r) -> base::Result<Response> {
                       GCS_ASSIGN(const std::string text,
                                  net::ResolvConf({r.name_servers().begin(), r.name_servers().end()},
                                                  {r.search_domains().begin(), r.search_domains().end()},
                                                  {r.options().begin(), r.options().end()}));
                       if (r.pod_id().empty()) {
                         GCS_TRY(base::ReplaceFile(kGuestResolvConf, text, 0644));
                       } else {
                         GCS_TRY(pods_.SetResolvConf(r.pod_id(), text));
                       }
                       return Response();
                     }));
  }

 private:
  // Invalid: the guest's own.
  base::Result<base::Fd> NamespaceOf(const std::string& pod_id) {
    if (pod_id.empty()) return base::Fd();
    return pods_.NetworkNamespace(pod_id);
  }

  Core& core_;
  guest::Pods& pods_;
};

}  // namespace

BuiltService MakeNetworkService(Core* core, guest::Pods* pods) {
  return {std::make_unique<NetworkService>(core, pods),
          {"NetworkService.ConfigureInterface", "NetworkService.RemoveInterface",
           "NetworkService.ListInterfaces", "NetworkService.ConfigureDns"}};
}

}  // namespace gcs::rpc
