// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace gcs::engine {

// Sets up "lo" of the calling thread's network namespace. 0 or -errno; allocates nothing.
int SetLoopbackUp() noexcept;

}  // namespace gcs::engine
