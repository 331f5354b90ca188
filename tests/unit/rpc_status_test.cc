// SPDX-License-Identifier: Apache-2.0
#include "rpc/status.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <string>

#include "gcs/v1/common.pb.h"

namespace {

using grpc::StatusCode;

TEST_CASE("each errno has the code that the contract promises") {
  const struct {
    int err;
    StatusCode code;
  } rows[] = {
      {EINVAL, StatusCode::INVALID_ARGUMENT},
      {ENOENT, StatusCode::NOT_FOUND},
      {ESRCH, StatusCode::NOT_FOUND},
      {EEXIST, StatusCode::ALREADY_EXISTS},
      {EPERM, StatusCode::PERMISSION_DENIED},
      {EACCES, StatusCode::PERMISSION_DENIED},
      {ENOSYS, StatusCode::UNIMPLEMENTED},
      {EOPNOTSUPP, StatusCode::UNIMPLEMENTED},
      {ETIMEDOUT, StatusCode::DEADLINE_EXCEEDED},
      {ECANCELED, StatusCode::CANCELLED},
      {EBUSY, StatusCode::FAILED_PRECONDITION},
      {ENOTEMPTY, StatusCode::FAILED_PRECONDITION},
      {ERANGE, StatusCode::OUT_OF_RANGE},
      {ENOMEM, StatusCode::RESOURCE_EXHAUSTED},
      {ENOSPC, StatusCode::RESOURCE_EXHAUSTED},
      {EMFILE, StatusCode::RESOURCE_EXHAUSTED},
      {ENFILE, StatusCode::RESOURCE_EXHAUSTED},
      {EAGAIN, StatusCode::RESOURCE_EXHAUSTED},
      {E2BIG, StatusCode::RESOURCE_EXHAUSTED},
      {EFBIG, StatusCode::RESOURCE_EXHAUSTED},
      {EHOSTUNREACH, StatusCode::UNAVAILABLE},
      {ECONNREFUSED, StatusCode::UNAVAILABLE},
      {ECONNRESET, StatusCode::UNAVAILABLE},
      {ENOTCONN, StatusCode::UNAVAILABLE},
      {ENODEV, StatusCode::NOT_FOUND},
      {EPIPE, StatusCode::FAILED_PRECONDITION},
      {ENOTTY, StatusCode::FAILED_PRECONDITION},
      {EROFS, StatusCode::FAILED_PRECONDITION},
      {ENOEXEC, StatusCode::FAILED_PRECONDITION},
      {EIO, StatusCode::INTERNAL},
      {ENOTDIR, StatusCode::INTERNAL},
  };
  for (const auto& row : rows) {
    const grpc::Status status = gcs::rpc::ToStatus({"step", row.err, "object", "message"});
    INFO(gcs::base::ErrnoName(row.err));
    CHECK(status.error_code() == row.code);
    gcs::v1::StatusDetails details;
    REQUIRE(details.ParseFromString(status.error_details()));
    CHECK(details.code() == row.code);
    gcs::v1::ErrorDetail detail;
    REQUIRE(details.details_size() == 1);
    REQUIRE(detail.ParseFromString(details.details(0).value()));
    CHECK(detail.errno_number() == row.err);
    CHECK(detail.errno_name() == gcs::base::ErrnoName(row.err));
    CHECK(detail.step() == "step");
    CHECK(detail.object() == "object");
    CHECK(detail.message() == "message");
  }
}

TEST_CASE("an error without errno is no success") {
  CHECK(gcs::rpc::ToStatus({"step", 0, "", ""}).error_code() == StatusCode::INTERNAL);
}

TEST_CASE("texts are cut so that the status fits into headers, and stay UTF-8") {
  std::string umlauts;
  for (int i = 0; i < 10'000; ++i) umlauts += "ä";
  const grpc::Status status = gcs::rpc::ToStatus({"step", EINVAL, umlauts, "x\xff\xfe" + umlauts});
  CHECK(status.error_message().size() < 2048);
  CHECK(status.error_details().size() < 4096);
  gcs::v1::StatusDetails details;
  CHECK(details.ParseFromString(status.error_details()));  // fails on bytes that are no UTF-8
  CHECK(status.error_message().find("x??") != std::string::npos);
}

}  // namespace
