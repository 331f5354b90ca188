// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"
#include "base/executor.h"
#include "base/fd.h"
#include "rpc/request_cache.h"

namespace gcs::rpc {

// What every service needs to serve calls. Outlives the server.
struct Core {
  base::Pool* quick = nullptr;  // for what never waits: signals, states, exits must not queue behind anything
  base::Pool* work = nullptr;   // for containers: processes, cgroups, mounts
  base::Pool* storage = nullptr;  // for what may wait long: devices, file servers of the host
  RequestCache requests;
};

inline constexpr int64_t kDefaultLimitNs = 300 * base::kNsPerSec;

// Whether a call changes something: those are logged at level info, the others at level debug.
enum class Access : uint8_t { kRead, kWrite };

// One call as handlers see it beside its request. Any thread.
class Call {
 public:
  Call(std::string_view method, Access access, const grpc::CallbackServerContext& context);
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  [[nodiscard]] std::string_view method() const { return method_; }  // "GuestService.Info"
  [[nodiscard]] const std::string& request_id() const { return request_id_; }
  [[nodiscard]] const std::string& peer() const { return peer_; }
  // The client's deadline as CLOCK_MONOTONIC ns; INT64_MAX without one.
  [[nodiscard]] int64_t deadline_ns() const { return deadline_ns_; }
  // The same for work that holds a thread: without a deadline of the client, kDefaultLimitNs after the call's
  // begin.
  [[nodiscard]] int64_t work_deadline_ns() const;

  [[nodiscard]] bool cancelled() const;
  // Calls `function` once when the client cancels, its connection breaks or the deadline passes; at once if
  // that has happened. A call with a request id is not cancelled by its client's end: the client will ask
  // again for its answer.
  void OnCancel(std::function<void()> function);
  // A descriptor (eventfd) that becomes readable when OnCancel would call; takes OnCancel's place.
  base::Result<std::shared_ptr<base::Fd>> CancelFd();

  // For the adapters of this folder.
  void SetSubject(std::string request_id, std::string object);
  void Cancel();
  // Drops the function of OnCancel, and with it what that holds; later ones are not kept.
  void Finished();
  void LogEnd(const grpc::Status& status, bool repeated) const;

 private:
  const std::string_view method_;
  const Access access_;
  const std::string peer_;
  const int64_t deadline_ns_;
  const int64_t begin_ns_;
  std::string request_id_;
  std::string object_;  // container, mount or pod
  mutable std::mutex mutex_;
  bool cancelled_ = false;
  bool finished_ = false;
  std::function<void()> on_cancel_;
};

using CallPtr = std::shared_ptr<Call>;

}  // namespace gcs::rpc
