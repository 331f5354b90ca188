// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "host/image/layer_tree.h"

namespace gcs::host {

using HashSeed = std::array<uint32_t, 4>;

struct DirectoryData {
  std::string bytes;     // whole blocks, to be stored in this order
  bool indexed = false;  // has a hash tree: the inode needs EXT4_INDEX_FL
};

// The blocks of an ext4 directory whose inode and children are numbered: linear if it fits one block, else
// with a hash tree of half-MD4 (unsigned char), as `e2fsck -D` makes it.
// Documentation/filesystems/ext4/directory.rst.
base::Result<DirectoryData> BuildDirectory(const Inode& directory, uint32_t parent_number,
                                           const HashSeed& seed);

}  // namespace gcs::host
