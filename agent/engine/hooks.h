// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "engine/spec.h"

namespace gcs::engine {

// Runs hooks in the daemon's own namespaces, one after the other, each with `state` on its stdin, its output
// to the null device, its environment only what the configuration says, and `bundle` (if not empty) as
// working directory. The first that can't be run, ends with another code than 0, or runs past its timeout or
// `deadline_ns` (CLOCK_MONOTONIC) ends the row; such a late one is killed. `step` names errors.
base::Result<> RunHooks(const std::vector<Hook>& hooks, const base::Json& state, const std::string& bundle,
                        std::string_view step, int64_t deadline_ns);

}  // namespace gcs::engine
