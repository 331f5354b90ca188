// SPDX-License-Identifier: Apache-2.0
#include "rpc/server.h"

#include <grpc/support/log.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>

#include <chrono>
#include <utility>

#include "base/log.h"

namespace gcs::rpc {

namespace {

// A config.json may have 16 MiB; the rest of its request comes on top.
constexpr int kMaxMessageBytes = (16 << 20) + (64 << 10);
constexpr int kMaxStreams = 1024;  // calls at a time, per connection

void OnGrpcLog(gpr_log_func_args* args) {
  base::Level level = base::Level::kDebug;
  if (args->severity == GPR_LOG_SEVERITY_INFO) level = base::Level::kInfo;
  if (args->severity == GPR_LOG_SEVERITY_ERROR) level = base::Level::kError;
  base::Log(level, args->message,
            {{"source", std::string("grpc ") + args->file + ":" + std::to_string(args->line)}});
}

}  // namespace

void RouteGrpcLog() { gpr_set_log_function(OnGrpcLog); }

base::Result<std::unique_ptr<Server>> Server::Create(const ServerOptions& options,
                                                     std::vector<BuiltService> services) {
  std::unique_ptr<Server> server(new Server(std::move(services)));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  grpc::ResourceQuota quota("gcs");
  quota.Resize(options.memory_bytes);
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, options.keepalive_time_ms);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options.keepalive_timeout_ms);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_SENT_PING_INTERVAL_WITHOUT_DATA_MS,
                             options.keepalive_time_ms);
  // The host may ping as often as it likes: it is trusted, and a GOAWAY for it would end its streams.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 100);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  for (const BuiltService& service : server->services_) builder.RegisterService(service.service.get());
  server->reflection_ = MakeReflectionService();
  if (server->reflection_ != nullptr) builder.RegisterService(server->reflection_.get());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) return base::MakeError(EIO, "start gRPC server");
  // gRPC's health service knows only the server as a whole by itself.
  for (const BuiltService& service : server->services_) {
    const std::string& feature = service.features.front();
    server->server_->GetHealthCheckService()->SetServingStatus(
        "gcs.v1." + feature.substr(0, feature.find('.')), true);
  }
  return server;
}

Server::~Server() {
  if (server_ != nullptr) Shutdown(0);
}

void Server::Adopt(base::Fd connection, std::string transport) {
  {
    const std::lock_guard lock(mutex_);
    transports_["fd:" + std::to_string(connection.get())] = std::move(transport);
  }
  grpc::AddInsecureChannelFromFd(server_.get(), connection.Release());
}

void Server::Shutdown(int64_t deadline_ms) {
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(deadline_ms));
  server_->Wait();
}

std::string Server::TransportOf(const std::string& peer) const {
  const std::lock_guard lock(mutex_);
  const auto at = transports_.find(peer);
  return at == transports_.end() ? "unknown" : at->second;
}

}  // namespace gcs::rpc
