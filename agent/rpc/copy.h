// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>

#include "gcs/v1/guest.pb.h"
#include "guest/containers.h"
#include "rpc/call.h"

namespace gcs::rpc {

// The tar streams of GuestService. Each piece is work of its own on `core->work`, so that a client that is
// slow holds no thread; at most kMaxCopies go on at a time.
class Copies {
 public:
  static constexpr int kMaxCopies = 32;
  static constexpr int64_t kLimitNs = 3600 * base::kNsPerSec;  // of a copy without a deadline of the client

  // `containers`: null where the agent has none.
  Copies(Core* core, guest::Containers* containers) : core_(core), containers_(containers) {}

  grpc::ServerReadReactor<gcs::v1::CopyInRequest>* In(grpc::CallbackServerContext* context,
                                                      gcs::v1::CopyInResponse* response);
  grpc::ServerWriteReactor<gcs::v1::CopyOutResponse>* Out(grpc::CallbackServerContext* context,
                                                          const gcs::v1::CopyOutRequest* request);

 private:
  Core* const core_;
  guest::Containers* const containers_;
  const std::shared_ptr<std::atomic<int>> going_on_ = std::make_shared<std::atomic<int>>(0);
};

}  // namespace gcs::rpc
