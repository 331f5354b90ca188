// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "base/error.h"

namespace gcs::init {

// Loads the modules that `base`/<kernel release>/modules.load names, one path relative to that directory on a
// line, in the order of dependency; does nothing where there is no such file. On Hyper-V nothing is loaded:
// the list is virtio's vsock transport, and the one built-in guest transport there is hv_sock, which must
// keep the slot. Returns how many were loaded.
base::Result<int> LoadModules(const std::string& base);

}  // namespace gcs::init
