// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "host/client/client.h"
#include "host/gcsctl/machine.h"

namespace gcs::gcsctl {

// A host directory that a 9P server (Debian's diod) offers to the guest on a vsock port. The server outlives
// gcsctl, as containers do; <state>/<vm>/share-<port>.json remembers it.
struct Share {
  uint32_t port = 0;
  std::string name;  // that the guest asks for
  std::string state_file;
  base::Fd lock;  // on that file: while it is held, EndUnusedShares leaves the server alone
};

// To be kept until the container that is named owns the mount, or to be ended by EndShare. With `read_only`
// the server itself can't write. ENOENT: no diod, or no such directory.
base::Result<Share> StartShare(const Machine& machine, const std::string& container_id,
                               const std::string& directory, bool read_only);
void EndShare(const Share& share);
// Ends the servers whose container the agent does not know.
void EndUnusedShares(host::Client& client, const Machine& machine);
// Of a VM that has ended.
void EndAllShares(const std::string& state_dir);

}  // namespace gcs::gcsctl
