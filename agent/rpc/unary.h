// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <concepts>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "rpc/call.h"
#include "rpc/request_cache.h"
#include "rpc/status.h"

namespace gcs::rpc {

inline constexpr size_t kMaxRequestIdBytes = 256;

// Ends a call. To be called once, from any thread; copies share the one answer, and when the last is gone
// without an answer the call fails with EIO instead of hanging.
template <typename Response>
class Done {
 public:
  using ResponseType = Response;
  using Function = std::function<void(base::Result<Response>)>;
  explicit Done(Function function) : state_(std::make_shared<State>(std::move(function))) {}
  void operator()(base::Result<Response> result) const { state_->Answer(std::move(result)); }

 private:
  struct State {
    explicit State(Function f) : function(std::move(f)) {}
    ~State() { Answer(base::MakeError(EIO, "serve call", {}, "the handler gave no answer")); }
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    void Answer(base::Result<Response> result) {
      if (!answered.exchange(true)) function(std::move(result));
    }
    const Function function;
    std::atomic<bool> answered = false;
  };
  std::shared_ptr<State> state_;
};

// Runs on a gRPC thread and must not block; the request lives until the Done is called.
template <typename Request, typename Response>
using Handler = std::function<void(const CallPtr&, const Request&, Done<Response>)>;

class UnaryReactor final : public grpc::ServerUnaryReactor {
 public:
  explicit UnaryReactor(CallPtr call, bool cancellable) : call_(std::move(call)), cancellable_(cancellable) {}
  void OnCancel() override {
    if (cancellable_) call_->Cancel();
  }
  void OnDone() override { delete this; }

 private:
  const CallPtr call_;
  const bool cancellable_;
};

// What the request says the call is about.
template <typename Request>
std::string ObjectOf(const Request& request) {
  if constexpr (requires {
                  { request.container_id() } -> std::convertible_to<std::string>;
                }) {
    return request.container_id();
  } else if constexpr (requires {
                         { request.mount_id() } -> std::convertible_to<std::string>;
                       }) {
    return request.mount_id();
  } else if constexpr (requires {
                         { request.pod_id() } -> std::convertible_to<std::string>;
                       }) {
    return request.pod_id();
  } else {
    return {};
  }
}

// The same with the process, as rpc/recover.h reads it.
template <typename Request>
std::string SubjectOf(const Request& request) {
  if constexpr (requires { request.process_id(); }) {
    return ObjectOf(request) + '\n' + request.process_id();
  } else {
    return ObjectOf(request);
  }
}

// The way of every unary call: request id, handler, status, log line.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* Serve(Core& core, std::string_view method, Access access,
                                grpc::CallbackServerContext* context, const Request* request,
                                Response* response, const Handler<Request, Response>& handler) {
  auto call = std::make_shared<Call>(method, access, *context);
  std::string request_id;
  if constexpr (requires { request->request_id(); }) request_id = request->request_id();
  call->SetSubject(request_id, ObjectOf(*request));
  auto* reactor = new UnaryReactor(call, request_id.empty());
  const auto finish = [call, reactor](const grpc::Status& status, bool repeated) {
    call->LogEnd(status, repeated);
    call->Finished();
    reactor->Finish(status);
  };
  if (request_id.size() > kMaxRequestIdBytes) {
    finish(ToStatus({"check request", EINVAL, "request_id", "longer than 256 bytes"}), false);
    return reactor;
  }
  if (request_id.empty()) {
    handler(call, *request, Done<Response>([response, finish](base::Result<Response> result) {
              const grpc::Status status = result ? grpc::Status::OK : ToStatus(result.error());
              if (result) *response = *std::move(result);
              finish(status, false);
            }));
    return reactor;
  }
  std::string key = std::string(method) + '\n' + request_id;
  const bool first = core.requests.Begin(
      key, SubjectOf(*request),
      [response, finish](const RequestCache::Answer& answer) {
        if (answer.status.ok() && !response->ParseFromString(answer.response)) {
          finish(ToStatus({"decode kept answer", EIO, {}, {}}), true);
          return;
        }
        finish(answer.status, true);
      },
      base::MonotonicNs());
  if (!first) return reactor;
  handler(call, *request, Done<Response>([&core, key, response, finish](base::Result<Response> result) {
            const grpc::Status status = result ? grpc::Status::OK : ToStatus(result.error());
            core.requests.Complete(key, {status, result ? result->SerializeAsString() : std::string()},
                                   base::MonotonicNs());
            if (result) *response = *std::move(result);
            finish(status, false);
          }));
  return reactor;
}

// Whether anybody waits for a call that a thread has become free for.
inline base::Result<> CheckWanted(const Call& call) {
  constexpr std::string_view kStep = "wait for a thread";
  if (call.deadline_ns() <= base::MonotonicNs())
    return base::MakeError(ETIMEDOUT, kStep, {}, "the deadline passed before the call began");
  if (call.cancelled())
    return base::MakeError(ECANCELED, kStep, {}, "the client has gone before the call began");
  return {};
}

// A handler that may block, run on `pool`.
template <typename Request, typename Response>
Handler<Request, Response> On(base::Pool* pool,
                              std::function<base::Result<Response>(const Call&, const Request&)> work) {
  return [pool, work = std::move(work)](const CallPtr& call, const Request& request, Done<Response> done) {
    pool->Post([call, &request, work, done = std::move(done)] {
      if (auto wanted = CheckWanted(*call); !wanted) {
        done(std::unexpected(wanted.error()));
        return;
      }
      done(work(*call, request));
    });
  };
}

// The same for work that ends early when its client has gone: `cancel_fd` is the call's CancelFd, valid
// during the work.
template <typename Request, typename Response>
Handler<Request, Response> OnCancellable(
    base::Pool* pool,
    std::function<base::Result<Response>(const Call&, const Request&, int cancel_fd)> work) {
  return [pool, work = std::move(work)](const CallPtr& call, const Request& request, Done<Response> done) {
    auto cancel = call->CancelFd();
    if (!cancel) {
      done(std::unexpected(cancel.error()));
      return;
    }
    pool->Post([call, &request, work, done = std::move(done), cancel = *cancel] {
      if (auto wanted = CheckWanted(*call); !wanted) {
        done(std::unexpected(wanted.error()));
        return;
      }
      done(work(*call, request, cancel->get()));
    });
  };
}

}  // namespace gcs::rpc
