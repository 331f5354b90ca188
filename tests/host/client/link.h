// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <mutex>

#include "host/client/client.h"

namespace gcs::host {

// The one connection of a client, and the next one when it is lost.
class Link {
 public:
  Link(Client::Connector connector, ClientOptions options)
      : connector_(std::move(connector)), options_(options) {}

  struct Connection {
    std::shared_ptr<grpc::Channel> channel;
    uint64_t generation = 0;
  };
  // Connects if need be, with back-off, until `deadline_ns` (CLOCK_MONOTONIC; 0: none) or the reconnect
  // timeout.
  CallResult<Connection> Get(int64_t deadline_ns);
  // That connection is of no use any more.
  void Broken(uint64_t generation);
  [[nodiscard]] uint64_t generation() const;
  [[nodiscard]] const ClientOptions& options() const { return options_; }

 private:
  const Client::Connector connector_;
  const ClientOptions options_;
  mutable std::mutex mutex_;
  std::mutex connecting_;  // held while connecting, so that one thread does
  std::shared_ptr<grpc::Channel> channel_;
  uint64_t generation_ = 0;
};

// The connections that one call has lost in a row: an agent that takes connections and drops each at once
// must not be asked for ever.
class Losses {
 public:
  // The call that began at `begin_ns` has lost this connection. Whether to make it again; it pauses before.
  bool Retry(Link& link, uint64_t generation, int64_t begin_ns);

 private:
  int64_t since_ns_ = 0;
};

CallError ToCallError(const grpc::Status& status, const std::string& what);
CallError ToCallError(base::Error error);
// The connection failed, not the call: nobody's ErrorDetail came with it.
bool IsLost(const grpc::Status& status);

}  // namespace gcs::host
