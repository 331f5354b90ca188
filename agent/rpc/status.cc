// SPDX-License-Identifier: Apache-2.0
#include "rpc/status.h"

#include <cerrno>
#include <string>
#include <utility>

#include "gcs/v1/common.pb.h"
#include "rpc/convert.h"

namespace gcs::rpc {

namespace {

// The texts appear twice, in the message (percent-encoded) and in the detail (base64).
constexpr size_t kMaxText = 384;
constexpr char kTypeUrl[] = "type.googleapis.com/gcs.v1.ErrorDetail";

// Cuts at a character's start.
std::string Clean(const std::string& text) {
  std::string out = text.substr(0, kMaxText);
  if (text.size() > kMaxText) {
    while (!out.empty() && (static_cast<unsigned char>(text[out.size()]) & 0xc0) == 0x80) out.pop_back();
    out += "...";
  }
  return ToUtf8(std::move(out));
}

}  // namespace

grpc::StatusCode CodeOf(int err) {
  switch (err) {
    case EINVAL:
    case ENAMETOOLONG:
      return grpc::StatusCode::INVALID_ARGUMENT;
    case ENOENT:
    case ENODEV:
    case ESRCH:
      return grpc::StatusCode::NOT_FOUND;
    case EEXIST:
      return grpc::StatusCode::ALREADY_EXISTS;
    case EPERM:
    case EACCES:
      return grpc::StatusCode::PERMISSION_DENIED;
    case ENOSYS:
    case EOPNOTSUPP:
      return grpc::StatusCode::UNIMPLEMENTED;
    case ETIMEDOUT:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    case ECANCELED:
      return grpc::StatusCode::CANCELLED;
    case EBUSY:
    case ENOTEMPTY:
    case EPIPE:
    case ENOTTY:   // no terminal to resize
    case EROFS:    // a writable mount wanted
    case ENOEXEC:  // a file that is no program for this machine
      return grpc::StatusCode::FAILED_PRECONDITION;
    case ERANGE:
      return grpc::StatusCode::OUT_OF_RANGE;
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
    case EAGAIN:
    case E2BIG:
    case EFBIG:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case EHOSTUNREACH:
    case ECONNREFUSED:
    case ECONNRESET:
    case ENOTCONN:
      return grpc::StatusCode::UNAVAILABLE;
    default:
      return grpc::StatusCode::INTERNAL;
  }
}

grpc::Status ToStatus(const base::Error& error) { return ToStatus(error, CodeOf(error.err)); }

grpc::Status ToStatus(const base::Error& error, grpc::StatusCode code) {
  base::Error clean{Clean(error.step), error.err == 0 ? EIO : error.err, Clean(error.object),
                    Clean(error.message)};
  const std::string text = clean.ToString();
  gcs::v1::ErrorDetail detail;
  detail.set_errno_number(clean.err);
  detail.set_errno_name(base::ErrnoName(clean.err));
  detail.set_step(std::move(clean.step));
  detail.set_object(std::move(clean.object));
  detail.set_message(std::move(clean.message));
  gcs::v1::StatusDetails details;
  details.set_code(code);
  details.set_message(text);
  gcs::v1::StatusDetail* any = details.add_details();
  any->set_type_url(kTypeUrl);
  any->set_value(detail.SerializeAsString());
  return {code, text, details.SerializeAsString()};
}

}  // namespace gcs::rpc
