// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace gcs::engine {

// Moves the calling process into a mount namespace of its own whose only mount is a read-only tmpfs with
// "null" (c 1:3), the directory "empty", and the mount points "root", "proc", "sys" and "dev". Each container
// starts from a copy of that: nothing to tear down, nothing of the VM to see, and the sources for masked
// paths at hand. 0 or -errno.
int EnterZygoteRoot() noexcept;

}  // namespace gcs::engine
