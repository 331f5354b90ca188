// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace gcs::guest {

// Acts on the machine as a whole. They block only as long as the kernel takes.

// Sets CLOCK_REALTIME and returns by how much it moved. EINVAL unless positive.
base::Result<int64_t> SetWallClock(int64_t time_ns);

// Mixes `data` (1 to 4096 bytes) into the kernel's pool, credits all of it and makes the generator reseed at
// once (RNDADDENTROPY and RNDRESEEDCRNG, random(4)).
base::Result<> AddEntropy(std::string_view data);

}  // namespace gcs::guest
