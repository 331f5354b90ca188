// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::host::vsock {

// A non-blocking listening stream socket; replaces a socket that a dead process left at `path`. ENAMETOOLONG
// past 107 bytes.
base::Result<base::Fd> ListenUnix(const std::string& path, int backlog);
// A non-blocking connected stream socket. EAGAIN: the listener's backlog is full.
base::Result<base::Fd> ConnectUnix(const std::string& path);

}  // namespace gcs::host::vsock
