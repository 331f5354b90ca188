// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/support/status.h>

#include "base/error.h"

namespace gcs::rpc {

// The gRPC code that an errno of the agent or the kernel means to a caller.
grpc::StatusCode CodeOf(int err);

// The one way from an Error to a status: code by errno, text for people, and a StatusDetails with an
// ErrorDetail for programs (common.proto). Long texts are cut: a status travels in HTTP/2 headers, which
// peers limit to 8 KiB. Of the second form the caller knows a better code than the errno has.
grpc::Status ToStatus(const base::Error& error);
grpc::Status ToStatus(const base::Error& error, grpc::StatusCode code);

}  // namespace gcs::rpc
