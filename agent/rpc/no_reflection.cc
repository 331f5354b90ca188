// SPDX-License-Identifier: Apache-2.0
#include "rpc/services.h"

namespace gcs::rpc {

std::unique_ptr<grpc::Service> MakeReflectionService() { return nullptr; }

}  // namespace gcs::rpc
