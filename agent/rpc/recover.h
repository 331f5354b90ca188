// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "guest/containers.h"
#include "guest/journal.h"
#include "guest/pods.h"
#include "rpc/request_cache.h"
#include "storage/storage.h"

namespace gcs::rpc {

// Ends the calls that an agent that crashed was at, once the model has finished or undone what they were
// doing: with the answer that they would have had if what they asked for has come about since they began,
// else so that they can be made anew.
void EndOpenCalls(RequestCache& requests, const std::vector<RequestCache::Open>& open,
                  const guest::Containers& containers, const guest::Pods& pods,
                  const storage::Storage& storage, const guest::Journal& journal);

}  // namespace gcs::rpc
