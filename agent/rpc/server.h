// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/server.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "rpc/services.h"
#include "transport/endpoint.h"

namespace gcs::rpc {

struct ServerOptions {
  // A connection that shows no life for this long is asked (HTTP/2 PING); without an answer in time it is
  // closed. It is the only way to notice a host that vanished without a word.
  int keepalive_time_ms = 120'000;
  int keepalive_timeout_ms = 20'000;
  // Of all connections together: what gRPC buffers.
  size_t memory_bytes = 64 << 20;
};

// A gRPC server that never listens: connections are given to it. Adopt and Shutdown from any thread.
class Server {
 public:
  static base::Result<std::unique_ptr<Server>> Create(const ServerOptions& options,
                                                      std::vector<BuiltService> services);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Serves a connected, non-blocking stream socket, which gRPC closes at its end. `transport` is what Info
  // reports to it.
  void Adopt(base::Fd connection, std::string transport);

  // Refuses new calls, lets those in progress end until `deadline_ms` from now, then cancels them and waits
  // for their end.
  void Shutdown(int64_t deadline_ms);

  // What Adopt was told about the connection with gRPC's peer name `peer`; "unknown" for another's.
  std::string TransportOf(const std::string& peer) const;

 private:
  explicit Server(std::vector<BuiltService> services) : services_(std::move(services)) {}

  std::vector<BuiltService> services_;
  std::unique_ptr<grpc::Service> reflection_;
  std::unique_ptr<grpc::Server> server_;  // after the services: destroyed before them
  mutable std::mutex mutex_;
  std::map<std::string, std::string>
      transports_;  // by peer name "fd:N"; N is reused, so it is bounded by open descriptors
};

// Sends gRPC's own messages to our log. Before the first use of gRPC.
void RouteGrpcLog();

}  // namespace gcs::rpc
