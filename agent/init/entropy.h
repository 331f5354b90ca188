// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"

namespace gcs::init {

// Gives the kernel's random pool what /dev/hwrng has ready, without waiting. Returns how many bytes; 0 when
// the pool does not need them or the machine has no such device.
base::Result<size_t> SeedFromHardware();

// Reads random bytes from vsock port `port` of the host to the end and gives them to the pool with full
// credit; the Windows shim serves 512 bytes on port 1 and starts no container before they were fetched. Takes
// at most two seconds.
base::Result<size_t> SeedFromHost(uint32_t port);

}  // namespace gcs::init
