// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace gcs::engine {

// Connects to the unix stream socket at `path` and sends `text`, with a copy of `fd` beside its first bytes.
// `step` names errors. Waits for a peer that accepts but does not read for at most the kernel's buffer: small
// texts only.
base::Result<> SendDescriptor(const std::string& path, std::string_view text, int fd, std::string_view step);

}  // namespace gcs::engine
