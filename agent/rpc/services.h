// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/executor.h"
#include "guest/containers.h"
#include "guest/init_line.h"
#include "guest/journal.h"
#include "guest/pods.h"
#include "guest/sysctl.h"
#include "rpc/call.h"
#include "storage/storage.h"
#include "transport/dialer.h"

namespace gcs::rpc {

// A service and which of its methods are built ("GuestService.Info"); the others answer UNIMPLEMENTED.
struct BuiltService {
  std::unique_ptr<grpc::Service> service;
  std::vector<std::string> features;
};

// What GuestService reports and does beside the calls of agent/guest that need no state. Pointers outlive the
// server.
struct GuestBackend {
  std::string version;
  std::string commit;
  std::string input_hash;
  std::string boot_file;  // init's boot phases
  uint32_t restarts = 0;
  guest::InitLine* init = nullptr;
  guest::Journal* journal = nullptr;
  guest::Sysctls* sysctls = nullptr;
  std::function<uint32_t()> containers;          // how many there are
  guest::Containers* copy_containers = nullptr;  // whose roots CopyIn and CopyOut reach; null: none
  std::function<uint64_t()> refused_connections;
  std::function<std::string(const std::string& peer)> transport_of;  // by the peer name that gRPC gives
  // Features of all services, complete before the first call.
  std::shared_ptr<const std::vector<std::string>> features;
};

BuiltService MakeGuestService(Core* core, GuestBackend backend);
BuiltService MakeEventService(Core* core, guest::Journal* journal);
BuiltService MakeContainerService(Core* core, guest::Containers* containers);
BuiltService MakeProcessService(Core* core, guest::Containers* containers);
BuiltService MakeStdioService(Core* core, guest::Containers* containers);
BuiltService MakePodService(Core* core, guest::Pods* pods);
BuiltService MakeNetworkService(Core* core, guest::Pods* pods);
BuiltService MakeStorageService(Core* core, storage::Storage* storage, transport::Dialer* dialer);
// grpc.reflection.v1alpha out of the descriptors that the build embeds; null unless built with
// GCS_REFLECTION.
std::unique_ptr<grpc::Service> MakeReflectionService();

}  // namespace gcs::rpc
