// SPDX-License-Identifier: Apache-2.0
#include "rpc/call.h"

#include <grpc/support/time.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace gcs::rpc {

namespace {

int64_t DeadlineNs(const grpc::CallbackServerContext& context) {
  const gpr_timespec deadline = context.raw_deadline();
  if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) return INT64_MAX;
  const gpr_timespec monotonic = gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC);
  if (monotonic.tv_sec > INT64_MAX / base::kNsPerSec - 1) return INT64_MAX;
  return monotonic.tv_sec * base::kNsPerSec + monotonic.tv_nsec;
}

std::string_view CodeName(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK:
      return "OK";
    case grpc::StatusCode::CANCELLED:
      return "CANCELLED";
    case grpc::StatusCode::INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "DEADLINE_EXCEEDED";
    case grpc::StatusCode::NOT_FOUND:
      return "NOT_FOUND";
    case grpc::StatusCode::ALREADY_EXISTS:
      return "ALREADY_EXISTS";
    case grpc::StatusCode::PERMISSION_DENIED:
      return "PERMISSION_DENIED";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "RESOURCE_EXHAUSTED";
    case grpc::StatusCode::FAILED_PRECONDITION:
      return "FAILED_PRECONDITION";
    case grpc::StatusCode::ABORTED:
      return "ABORTED";
    case grpc::StatusCode::OUT_OF_RANGE:
      return "OUT_OF_RANGE";
    case grpc::StatusCode::UNIMPLEMENTED:
      return "UNIMPLEMENTED";
    case grpc::StatusCode::UNAVAILABLE:
      return "UNAVAILABLE";
    case grpc::StatusCode::INTERNAL:
      return "INTERNAL";
    default:
      return "UNKNOWN";
  }
}

}  // namespace

Call::Call(std::string_view method, Access access, const grpc::CallbackServerContext& context)
    : method_(method),
      access_(access),
      peer_(context.peer()),
      deadline_ns_(DeadlineNs(context)),
      begin_ns_(base::MonotonicNs()) {}

void Call::SetSubject(std::string request_id, std::string object) {
  request_id_ = std::move(request_id);
  object_ = std::move(object);
}

bool Call::cancelled() const {
  const std::lock_guard lock(mutex_);
  return cancelled_;
}

void Call::OnCancel(std::function<void()> function) {
  {
    const std::lock_guard lock(mutex_);
    if (finished_) return;
    if (!cancelled_) {
      on_cancel_ = std::move(function);
      return;
    }
  }
  function();
}

void Call::Cancel() {
  std::function<void()> function;
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    function = std::exchange(on_cancel_, nullptr);
  }
  if (function) function();
}

void Call::Finished() {
  std::function<void()> function;  // destroyed after the lock is released
  const std::lock_guard lock(mutex_);
  finished_ = true;
  function.swap(on_cancel_);
}

int64_t Call::work_deadline_ns() const {
  return deadline_ns_ == INT64_MAX ? begin_ns_ + kDefaultLimitNs : deadline_ns_;
}

base::Result<std::shared_ptr<base::Fd>> Call::CancelFd() {
  auto fd = std::make_shared<base::Fd>(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!*fd) return base::ErrnoError("eventfd");
  OnCancel([fd] {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n =
        write(fd->get(), &one, sizeof one);  // fails only when it is readable already
  });
  return fd;
}

void Call::LogEnd(const grpc::Status& status, bool repeated) const {
  const base::Level level = access_ == Access::kRead ? base::Level::kDebug : base::Level::kInfo;
  base::Log(level, "rpc",
            {{"method", std::string(method_)},
             {"request_id", request_id_},
             {"object", object_},
             {"duration_us", std::to_string((base::MonotonicNs() - begin_ns_) / 1000)},
             {"status", std::string(CodeName(status.error_code()))},
             {"repeated", repeated ? "true" : "false"},
             {"error", status.error_message()}});
}

}  // namespace gcs::rpc
