// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"

namespace gcs::storage {

// What the beginning of a disk says about it.
enum class DiskContent : uint8_t {
  kEmpty,  // the first 64 KiB are all zero
  kExt4,   // a superblock of the ext family
  kOther,
};
base::Result<DiskContent> ProbeContent(const std::string& device);

struct Ext4Options {
  // Write zeros to every inode table now (mke2fs -E lazy_itable_init=0). Otherwise the tables of unused
  // groups are left as they are, marked uninitialised under the checksummed group descriptors; the kernel
  // then initialises each block at its first use and, unless mounted with noinit_itable, all others in the
  // background.
  bool zero_inode_tables = false;
  // Share of blocks that only root may use, in percent: 5 as mke2fs, 0 for a scratch disk.
  uint32_t reserved_percent = 0;
};

// Writes an ext4 file system without journal on the whole of `device` (a block device or a regular file): 4
// KiB blocks, 256-byte inodes, extents, flex_bg, 64bit, metadata_csum, sparse_super2, dir_index. EBUSY if the
// device is in use, ENOSPC if it is too small (below about 256 KiB). Syncs before it returns. Process-wide:
// the umask is not used, no signal handlers, no stdio.
base::Result<> FormatExt4(const std::string& device, const Ext4Options& options);

}  // namespace gcs::storage
