// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "base/error.h"
#include "host/gcsctl/machine.h"

namespace gcs::gcsctl {

// A host directory that a 9P server (Debian's diod) offers to the guest on a vsock port. The server outlives
// gcsctl, as containers do; <state>/<vm>/share-<port>.json remembers it.
struct Share {
  uint32_t port = 0;
  std::string directory;
};

// ENOENT: no diod, or no such directory.
base::Result<Share> StartShare(const Machine& machine, const std::string& container_id,
                               const std::string& directory, bool read_only);
// Ends the servers of all containers but those in `keep`.
void EndShares(const std::string& state_dir, const std::set<std::string>& keep);

}  // namespace gcs::gcsctl
