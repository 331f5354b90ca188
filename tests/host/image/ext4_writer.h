// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

#include "base/error.h"
#include "host/image/digest.h"
#include "host/image/layer_tree.h"
#include "host/image/spool.h"

namespace gcs::host {

// Counts up with every change to the bytes that a layer becomes; part of the cache's file names.
inline constexpr int kDiskFormat = 1;

// Writes `tree` as an ext4 image into the empty file `fd`: block size 4096, no journal, sized to its content,
// marked read-only by feature flag. UUID, label, hash seed and times depend on `diff_id` only. Returns the
// image's bytes. `on_bytes` hears (done, total) of file data; may be empty.
base::Result<uint64_t> WriteExt4(LayerTree& tree, const Spool& spool, int fd, const Digest& diff_id,
                                 const std::function<void(uint64_t, uint64_t)>& on_bytes);

// True if the file looks like a whole image that WriteExt4 made for `diff_id`: superblock, identity, length.
bool IsLayerDisk(int fd, const Digest& diff_id);

}  // namespace gcs::host
