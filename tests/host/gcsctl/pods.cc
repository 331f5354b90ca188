// SPDX-License-Identifier: Apache-2.0
#include "host/gcsctl/pods.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <utility>

#include "host/client/client.h"
#include "host/client/oci_config.h"
#include "host/gcsctl/output.h"
#include "host/gcsctl/run.h"

namespace gcs::gcsctl {

namespace {

std::optional<std::pair<std::string, std::string>> SplitAt(const std::string& text, char separator) {
  const size_t at = text.find(separator);
  if (at == std::string::npos) return std::nullopt;
  return std::pair(text.substr(0, at), text.substr(at + 1));
}

std::string Joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + Printable(word);
  return text;
}

void PrintInterfaces(const google::protobuf::RepeatedPtrField<v1::Interface>& interfaces) {
  Table table({"NAME", "STATE", "MTU", "MAC", "ADDRESSES", "ROUTES"});
  for (const v1::Interface& each : interfaces) {
    std::vector<std::string> addresses, routes;
    for (const v1::Address& address : each.addresses()) addresses.push_back(address.cidr());
    for (const v1::Route& route : each.routes())
      routes.push_back(route.destination() + (route.gateway().empty() ? "" : "@" + route.gateway()));
    table.Add({Printable(each.name()), each.up() ? "up" : "down", std::to_string(each.mtu()),
               Printable(each.mac_address()), Joined(addresses), Joined(routes)});
  }
  table.Print();
}

}  // namespace

int CreatePod(const Machine& machine, const PodOptions& options) {
  v1::CreatePodRequest request;
  request.set_pod_id(options.id);
  request.set_hostname(options.hostname.empty() ? options.id.substr(0, 63) : options.hostname);
  request.set_share_pid(options.share_pid);
  if (!options.shm_size.empty()) {
    const auto bytes = host::ParseSize(options.shm_size);
    if (!bytes) return Report(bytes.error());
    request.set_shm_bytes(*bytes);
  }
  for (const std::string& word : options.sysctls) {
    const auto parts = SplitAt(word, '=');
    if (!parts) return Report({"read options", EINVAL, word, "not NAME=VALUE"});
    (*request.mutable_sysctls())[parts->first] = parts->second;
  }
  host::Client client(machine.connector());
  const auto created = client.Call(request);
  if (!created) return Report(created.error());
  printf("%s\n", options.id.c_str());
  return 0;
}

int ListPods(const Machine& machine, bool json) {
  host::Client client(machine.connector());
  const auto pods = client.Call(v1::ListPodsRequest());
  if (!pods) return Report(pods.error());
  if (json) {
    PrintJson(*pods);
    return 0;
  }
  Table table({"POD", "HOSTNAME", "PIDS", "CREATED", "CONTAINERS"});
  for (const v1::Pod& pod : pods->pods()) {
    table.Add({pod.pod_id(), Printable(pod.hostname()), pod.share_pid() ? "shared" : "own",
               FormatAge(pod.created_at_ns()),
               Joined({pod.container_ids().begin(), pod.container_ids().end()})});
  }
  table.Print();
  return 0;
}

int RemovePods(const Machine& machine, const std::vector<std::string>& ids) {
  host::Client client(machine.connector());
  int code = 0;
  for (const std::string& id : ids) {
    v1::DeletePodRequest request;
    request.set_pod_id(id);
    if (const auto gone = client.Call(request); !gone) code = Report(gone.error());
  }
  return code;
}

int ConfigureInterface(const Machine& machine, const InterfaceOptions& options, bool json) {
  v1::ConfigureInterfaceRequest request;
  const bool mac = std::ranges::count(options.interface, ':') == 5;
  if (mac) {
    request.mutable_interface()->set_mac_address(options.interface);
  } else {
    request.mutable_interface()->set_name(options.interface);
  }
  request.set_pod_id(options.pod);
  request.set_name(options.name);
  request.set_mtu(options.mtu);
  for (const std::string& address : options.addresses) request.add_addresses()->set_cidr(address);
  for (const std::string& word : options.routes) {
    const auto parts = SplitAt(word, '@');
    v1::Route* route = request.add_routes();
    route->set_destination(parts ? parts->first : word);
    if (parts) route->set_gateway(parts->second);
  }
  host::Client client(machine.connector());
  const auto configured = client.Call(request);
  if (!configured) return Report(configured.error());
  if (json) {
    PrintJson(*configured);
    return 0;
  }
  google::protobuf::RepeatedPtrField<v1::Interface> one;
  *one.Add() = configured->interface();
  PrintInterfaces(one);
  return 0;
}

int ListInterfaces(const Machine& machine, const std::string& pod, bool json) {
  v1::ListInterfacesRequest request;
  request.set_pod_id(pod);
  host::Client client(machine.connector());
  const auto list = client.Call(request);
  if (!list) return Report(list.error());
  if (json) {
    PrintJson(*list);
  } else {
    PrintInterfaces(list->interfaces());
  }
  return 0;
}

int ConfigureDns(const Machine& machine, const std::string& pod, const std::vector<std::string>& servers,
                 const std::vector<std::string>& domains) {
  v1::ConfigureDnsRequest request;
  request.set_pod_id(pod);
  for (const std::string& server : servers) request.add_name_servers(server);
  for (const std::string& domain : domains) request.add_search_domains(domain);
  host::Client client(machine.connector());
  const auto configured = client.Call(request);
  return configured ? 0 : Report(configured.error());
}

int Sysctl(const Machine& machine, const std::vector<std::string>& words, bool json) {
  v1::SysctlRequest request;
  for (const std::string& word : words) {
    const auto parts = SplitAt(word, '=');
    if (parts) (*request.mutable_set())[parts->first] = parts->second;
    request.add_get(parts ? parts->first : word);
  }
  host::Client client(machine.connector());
  const auto answer = client.Call(request);
  if (!answer) return Report(answer.error());
  if (json) {
    PrintJson(*answer);
    return 0;
  }
  for (const auto& [name, value] : answer->values())
    printf("%s = %s\n", name.c_str(), Printable(value).c_str());
  return 0;
}

}  // namespace gcs::gcsctl
