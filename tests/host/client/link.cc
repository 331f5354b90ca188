// SPDX-License-Identifier: Apache-2.0
#include "host/client/link.h"

#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "gcs/v1/common.pb.h"

namespace gcs::host {

namespace {

constexpr int kMaxMessageBytes = 16 << 20;
constexpr int64_t kFirstPauseNs = 10 * base::kNsPerMs;
constexpr int64_t kLongestPauseNs = 500 * base::kNsPerMs;

int ErrnoOf(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::CANCELLED:
      return ECANCELED;
    case grpc::StatusCode::INVALID_ARGUMENT:
      return EINVAL;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return ETIMEDOUT;
    case grpc::StatusCode::NOT_FOUND:
      return ENOENT;
    case grpc::StatusCode::ALREADY_EXISTS:
      return EEXIST;
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      return EACCES;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return ENOSPC;
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::ABORTED:
      return EBUSY;
    case grpc::StatusCode::OUT_OF_RANGE:
      return ERANGE;
    case grpc::StatusCode::UNIMPLEMENTED:
      return ENOSYS;
    case grpc::StatusCode::UNAVAILABLE:
      return ENOTCONN;
    default:
      return EIO;
  }
}

void Pause(int64_t ns) {
  const timespec pause = {.tv_sec = ns / base::kNsPerSec, .tv_nsec = ns % base::kNsPerSec};
  nanosleep(&pause, nullptr);
}

}  // namespace

CallError ToCallError(const grpc::Status& status, const std::string& what) {
  CallError error;
  error.code = status.error_code();
  v1::StatusDetails details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    for (const v1::StatusDetail& any : details.details()) {
      v1::ErrorDetail detail;
      if (any.type_url() != "type.googleapis.com/gcs.v1.ErrorDetail" ||
          !detail.ParseFromString(any.value())) {
        continue;
      }
      error.step = detail.step();
      error.err = detail.errno_number();
      error.object = detail.object();
      error.message = detail.message();
      error.from_agent = true;
      return error;
    }
  }
  error.step = what;
  error.err = ErrnoOf(status.error_code());
  error.message = status.error_message();
  return error;
}

CallError ToCallError(base::Error error) {
  CallError out;
  static_cast<base::Error&>(out) = std::move(error);
  out.code = out.err == ETIMEDOUT ? grpc::StatusCode::DEADLINE_EXCEEDED : grpc::StatusCode::UNAVAILABLE;
  return out;
}

bool IsLost(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty();
}

bool Losses::Retry(Link& link, uint64_t generation, int64_t begin_ns) {
  link.Broken(generation);
  const int64_t now = base::MonotonicNs();
  // A connection that lasted was none that was dropped at once.
  if (since_ns_ == 0 || now - begin_ns > base::kNsPerSec) since_ns_ = now;
  if (now - since_ns_ > link.options().reconnect_timeout_ms * base::kNsPerMs) return false;
  if (now - begin_ns < 5 * base::kNsPerMs) Pause(20 * base::kNsPerMs);
  return true;
}

CallResult<Link::Connection> Link::Get(int64_t deadline_ns) {
  const std::lock_guard connecting(connecting_);
  {
    const std::lock_guard lock(mutex_);
    if (channel_ != nullptr) return Connection{channel_, generation_};
  }
  int64_t end = base::MonotonicNs() + (options_.reconnect_timeout_ms * base::kNsPerMs);
  if (deadline_ns != 0) end = std::min(end, deadline_ns);
  int64_t pause = kFirstPauseNs;
  while (true) {
    auto fd = connector_();
    if (fd) {
      const int flags = fcntl(fd->get(), F_GETFL);
      if (flags < 0 || fcntl(fd->get(), F_SETFL, flags | O_NONBLOCK) != 0) {
        return std::unexpected(ToCallError({"fcntl", errno, {}, {}}));
      }
      grpc::ChannelArguments arguments;
      arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
      arguments.SetMaxSendMessageSize(kMaxMessageBytes);
      arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, options_.keepalive_time_ms);
      arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options_.keepalive_timeout_ms);
      arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
      arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
      arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
      auto channel = grpc::CreateCustomInsecureChannelFromFd("gcs", fd->Release(), arguments);
      const std::lock_guard lock(mutex_);
      channel_ = std::move(channel);
      return Connection{channel_, ++generation_};
    }
    if (base::MonotonicNs() + pause >= end) return std::unexpected(ToCallError(std::move(fd).error()));
    Pause(pause);
    pause = std::min(pause * 2, kLongestPauseNs);
  }
}

void Link::Broken(uint64_t generation) {
  const std::lock_guard lock(mutex_);
  if (generation == generation_) channel_.reset();
}

uint64_t Link::generation() const {
  const std::lock_guard lock(mutex_);
  return generation_;
}

}  // namespace gcs::host
