// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/fd.h"
#include "host/client/methods.h"

namespace google::protobuf {
class Message;
}

namespace gcs::host {

// Why a call failed. step, errno, object and message are the agent's ErrorDetail; where there is none (the
// agent was not reached, a generic gRPC failure) step is the method and errno follows from the code.
struct CallError : base::Error {
  int code = 0;             // grpc::StatusCode
  bool from_agent = false;  // an ErrorDetail came with it
};
template <typename T = void>
using CallResult = std::expected<T, CallError>;

struct CallOptions {
  // Deadline of the whole call, reconnects and repetitions included; 0: none (waits).
  int64_t timeout_ms = 30'000;
};

struct ClientOptions {
  int64_t reconnect_timeout_ms = 10'000;  // how long a lost connection may stay away
  int keepalive_time_ms = 10'000;         // silence after which the agent is asked for a sign of life
  int keepalive_timeout_ms = 10'000;
};

class Link;

// A client of the agent's API over connections that `connector` makes, the next one when one breaks. A call
// whose connection broke is made again on the new one; requests with a request_id get a UUID (unless they
// have one), so that the repetition has no second effect. Any thread.
class Client {
 public:
  using Connector = std::function<base::Result<base::Fd>()>;

  explicit Client(Connector connector, ClientOptions options = {});
  // The agent's unix socket (gcs --listen-unix).
  static Connector UnixConnector(std::string path);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // client.Call(request): the response of the one RPC that takes such a request.
  template <typename Request>
  CallResult<typename Method<Request>::Response> Call(Request request, CallOptions options = {}) {
    typename Method<Request>::Response response;
    auto called = CallMethod(Method<Request>::kPath, request, response, options);
    if (!called) return std::unexpected(std::move(called).error());
    return response;
  }
  // By its path, "/gcs.v1.GuestService/Info".
  CallResult<> CallMethod(const std::string& path, google::protobuf::Message& request,
                          google::protobuf::Message& response, CallOptions options);

  // Events after `cursor`, which moves on; returns when `handle` says false, or, without `follow`, at the end
  // of what is kept. Reconnects with the cursor: nothing comes twice, nothing is missed.

  CallResult<> WatchEvents(uint64_t& cursor, bool follow,
                           const std::function<bool(const v1::Event&)>& handle);
  CallResult<> ReadLogs(uint64_t& cursor, bool follow,
                        const std::function<bool(const v1::LogRecord&)>& handle);
  // A tar stream into or out of a container's (or, with "", the guest's) directory.
  CallResult<v1::CopyInResponse> CopyIn(const std::string& container_id, const std::string& path,
                                        const std::function<base::Result<std::string>()>& read);
  CallResult<> CopyOut(const std::string& container_id, const std::string& path,
                       const std::function<base::Result<>(const std::string&)>& write);

  // grpc.health.v1: whether the agent serves `service` ("" for all of it).
  CallResult<bool> Healthy(const std::string& service);

  [[nodiscard]] const std::shared_ptr<Link>& link() const { return link_; }
  // How many connections have been made.
  [[nodiscard]] uint64_t connections() const;

 private:
  std::shared_ptr<Link> link_;
};

// A random UUID, as request ids are.
std::string NewUuid();

}  // namespace gcs::host
