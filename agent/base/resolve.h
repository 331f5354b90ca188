// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gcs::base {

// openat2(2), the one look-up below a directory that somebody else controls; paths.h says how to use it. A
// file of its own, so that tests can link an engine without it and see their escapes succeed
// (tests/system/weak_double.cc). Returns a descriptor (O_CLOEXEC) or -errno; allocates nothing.
int OpenResolved(int dir, const char* path, uint64_t flags, uint64_t mode, uint64_t resolve) noexcept;

}  // namespace gcs::base
