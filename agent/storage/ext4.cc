// SPDX-License-Identifier: Apache-2.0
#include "storage/ext4.h"

#include <et/com_err.h>
#include <ext2fs/ext2fs.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>
#include <memory>
#include <vector>

#include "base/fd.h"
#include "base/paths.h"

namespace gcs::storage {

namespace {

using base::ErrnoError;
using base::MakeError;
using base::Result;

constexpr size_t kProbeBytes = 64 * 1024;
constexpr size_t kSuperblockOffset = 1024;
constexpr size_t kMagicOffset = kSuperblockOffset + 56;  // s_magic
constexpr uint32_t kLogBlockSize = 2;                    // 1024 << 2
constexpr uint64_t kBlockSize = 4096;
constexpr uint32_t kInodeSize = 256;
// Nothing smaller holds the metadata and lost+found with any room left.
constexpr uint64_t kSmallestDisk = 256 * 1024;
constexpr uint32_t kLogGroupsPerFlex = 4;  // as mke2fs: 16 groups keep their tables together
constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kTiB = uint64_t{1} << 40;

// Bytes per inode, by the steps of mke2fs.conf.
uint64_t InodeRatio(uint64_t bytes) {
  if (bytes < 512 * kMiB) return 8192;
  if (bytes < 4 * kTiB) return 16384;
  if (bytes < 16 * kTiB) return 32768;
  return 65536;
}

std::unexpected<base::Error> ExtError(errcode_t code, std::string_view step, const std::string& device) {
  // Codes below the com_err tables are errnos.
  constexpr errcode_t kLargestErrno = 4095;
  if (code > 0 && code <= kLargestErrno) return MakeError(static_cast<int>(code), step, device);
  const int err = code == EXT2_ET_TOOSMALL || code == EXT2_ET_BLOCK_ALLOC_FAIL ? ENOSPC
                  : code == EXT2_ET_NO_MEMORY                                  ? ENOMEM
                                                                               : EIO;
  return MakeError(err, step, device, "libext2fs error " + std::to_string(code - EXT2_ET_BASE));
}

struct FsDeleter {
  // Without flushing: whoever got here after a failure must not make a half-made file system look whole.
  void operator()(ext2_filsys fs) const { ext2fs_free(fs); }
};
using Filesystem = std::unique_ptr<struct_ext2_filsys, FsDeleter>;

Result<uint64_t> SizeOf(int fd, const std::string& device) {
  struct stat st;
  if (fstat(fd, &st) != 0) return ErrnoError("fstat", device);
  if (S_ISREG(st.st_mode)) return static_cast<uint64_t>(st.st_size);
  if (!S_ISBLK(st.st_mode))
    return MakeError(ENOTBLK, "format", device, "neither a block device nor a regular file");
  uint64_t size = 0;
  if (ioctl(fd, BLKGETSIZE64, &size) != 0) return ErrnoError("ioctl BLKGETSIZE64", device);
  return size;
}

void RandomUuid(std::array<uint8_t, 16>& uuid) {
  // 16 bytes are never cut short once the pool is seeded (getrandom(2)), and init seeds it first.
  while (getrandom(uuid.data(), uuid.size(), 0) != static_cast<ssize_t>(uuid.size())) {
  }
  uuid[6] = (uuid[6] & 0x0f) | 0x40;  // RFC 4122 version 4
  uuid[8] = (uuid[8] & 0x3f) | 0x80;
}

// The parameters that ext2fs_initialize copies; everything else of the superblock it decides itself.
Result<ext2_super_block> Parameters(uint64_t bytes, const Ext4Options& options, const std::string& device) {
  ext2_super_block super{};
  super.s_rev_level = EXT2_DYNAMIC_REV;
  super.s_log_block_size = kLogBlockSize;
  super.s_log_cluster_size = kLogBlockSize;
  super.s_inode_size = kInodeSize;
  super.s_log_groups_per_flex = kLogGroupsPerFlex;
  super.s_desc_size = EXT2_MIN_DESC_SIZE_64BIT;
  const uint64_t blocks = bytes / kBlockSize;
  ext2fs_blocks_count_set(&super, blocks);
  ext2fs_r_blocks_count_set(&super, blocks * options.reserved_percent / 100);
  const uint64_t inodes = bytes / InodeRatio(bytes);
  if (inodes > UINT32_MAX) return MakeError(EFBIG, "format", device, "more than 2^32 inodes");
  super.s_inodes_count = static_cast<uint32_t>(inodes);
  // Two copies of the superblock are enough for a disk that can be made anew; the classic scheme writes
  // dozens.
  super.s_backup_bgs[0] = 1;
  super.s_backup_bgs[1] = ~0U;  // the last group

  ext2fs_set_feature_xattr(&super);
  ext2fs_set_feature_dir_index(&super);
  ext2fs_set_feature_sparse_super2(&super);
  ext2fs_set_feature_filetype(&super);
  ext2fs_set_feature_extents(&super);
  ext2fs_set_feature_64bit(&super);
  ext2fs_set_feature_flex_bg(&super);
  ext2fs_set_feature_large_file(&super);
  ext2fs_set_feature_huge_file(&super);
  ext2fs_set_feature_dir_nlink(&super);
  ext2fs_set_feature_extra_isize(&super);
  ext2fs_set_feature_metadata_csum(&super);
  return super;
}

// What ext2fs_initialize leaves at zero and mke2fs sets.
Result<> FillSuperblock(ext2_filsys fs, const std::string& device) {
  ext2_super_block* super = fs->super;
  std::array<uint8_t, 16> uuid;
  RandomUuid(uuid);
  memcpy(super->s_uuid, uuid.data(), uuid.size());
  RandomUuid(uuid);
  memcpy(super->s_hash_seed, uuid.data(), uuid.size());
  super->s_checksum_type = EXT2_CRC32C_CHKSUM;
  ext2fs_init_csum_seed(fs);
  super->s_def_hash_version = EXT2_HASH_HALF_MD4;
  super->s_flags |= EXT2_FLAGS_SIGNED_HASH;  // char is signed on x86-64
  super->s_default_mount_opts = EXT2_DEFM_XATTR_USER | EXT2_DEFM_ACL;
  super->s_max_mnt_count = -1;  // no periodic check
  super->s_checkinterval = 0;
  super->s_mkfs_time = static_cast<uint32_t>(time(nullptr));
  super->s_lastcheck = super->s_mkfs_time;
  // ext2fs_initialize marks groups uninitialised under metadata_csum; that they are is what the directories
  // below rely on.
  if (!ext2fs_has_group_desc_csum(fs))
    return MakeError(EIO, "format", device, "group descriptors have no checksum");
  return {};
}

Result<> WriteInodeTables(ext2_filsys fs, const std::string& device) {
  for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
    const int blocks = static_cast<int>(fs->inode_blocks_per_group);
    if (const errcode_t code =
            ext2fs_zero_blocks2(fs, ext2fs_inode_table_loc(fs, group), blocks, nullptr, nullptr)) {
      return ExtError(code, "write inode table", device);
    }
    ext2fs_bg_flags_set(fs, group, EXT2_BG_INODE_ZEROED);
    ext2fs_group_desc_csum_set(fs, group);
  }
  return {};
}

// Groups that are in use have to have a whole table also when the rest is left for later: the kernel and
// e2fsck read inode blocks of group 0 before anything has written them.
Result<> WriteFirstInodeTable(ext2_filsys fs, const std::string& device) {
  const int blocks = static_cast<int>(fs->inode_blocks_per_group);
  if (const errcode_t code =
          ext2fs_zero_blocks2(fs, ext2fs_inode_table_loc(fs, 0), blocks, nullptr, nullptr)) {
    return ExtError(code, "write inode table", device);
  }
  ext2fs_bg_flags_set(fs, 0, EXT2_BG_INODE_ZEROED);
  ext2fs_group_desc_csum_set(fs, 0);
  return {};
}

Result<> MakeRoot(ext2_filsys fs, const std::string& device) {
  if (const errcode_t code = ext2fs_mkdir(fs, EXT2_ROOT_INO, EXT2_ROOT_INO, nullptr)) {
    return ExtError(code, "make root directory", device);
  }
  ext2_inode root;
  if (const errcode_t code = ext2fs_read_inode(fs, EXT2_ROOT_INO, &root)) {
    return ExtError(code, "read root directory", device);
  }
  root.i_mode = LINUX_S_IFDIR | 0755;  // libext2fs takes its own umask off
  if (const errcode_t code = ext2fs_write_inode(fs, EXT2_ROOT_INO, &root)) {
    return ExtError(code, "write root directory", device);
  }

  ext2_ino_t inode = 0;
  constexpr const char* kName = "lost+found";
  if (const errcode_t code = ext2fs_mkdir(fs, EXT2_ROOT_INO, 0, kName))
    return ExtError(code, "make lost+found", device);
  if (const errcode_t code =
          ext2fs_lookup(fs, EXT2_ROOT_INO, kName, static_cast<int>(strlen(kName)), nullptr, &inode)) {
    return ExtError(code, "find lost+found", device);
  }
  ext2_inode lost;
  if (const errcode_t code = ext2fs_read_inode(fs, inode, &lost))
    return ExtError(code, "read lost+found", device);
  lost.i_mode = LINUX_S_IFDIR | 0700;
  if (const errcode_t code = ext2fs_write_inode(fs, inode, &lost))
    return ExtError(code, "write lost+found", device);
  // e2fsck wants room to put names into without allocating: 16 KiB, as mke2fs.
  while (lost.i_size < 4 * kBlockSize) {
    if (const errcode_t code = ext2fs_expand_dir(fs, inode)) return ExtError(code, "grow lost+found", device);
    if (const errcode_t code = ext2fs_read_inode(fs, inode, &lost))
      return ExtError(code, "read lost+found", device);
  }
  return {};
}

Result<> ReserveInodes(ext2_filsys fs, const std::string& device) {
  for (ext2_ino_t inode = EXT2_ROOT_INO + 1; inode < EXT2_FIRST_INODE(fs->super); ++inode) {
    ext2fs_inode_alloc_stats2(fs, inode, +1, 0);
  }
  ext2fs_mark_ib_dirty(fs);
  ext2fs_inode_alloc_stats2(fs, EXT2_BAD_INO, +1, 0);
  if (const errcode_t code = ext2fs_update_bb_inode(fs, nullptr))
    return ExtError(code, "write bad block inode", device);
  return {};
}

}  // namespace

Result<DiskContent> ProbeContent(const std::string& device) {
  GCS_ASSIGN(const base::Fd fd, base::OpenFile(device, O_RDONLY));
  std::vector<uint8_t> head(kProbeBytes);
  size_t done = 0;
  while (done < head.size()) {
    const ssize_t n = pread(fd.get(), head.data() + done, head.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError("read", device);
    if (n == 0) break;  // a disk smaller than that
    done += static_cast<size_t>(n);
  }
  head.resize(done);
  if (head.size() > kMagicOffset + 1 && head[kMagicOffset] == (EXT2_SUPER_MAGIC & 0xff) &&
      head[kMagicOffset + 1] == EXT2_SUPER_MAGIC >> 8) {
    return DiskContent::kExt4;
  }
  const bool empty = std::ranges::all_of(head, [](uint8_t byte) { return byte == 0; });
  return empty ? DiskContent::kEmpty : DiskContent::kOther;
}

Result<> FormatExt4(const std::string& device, const Ext4Options& options) {
  // O_EXCL on a block device fails with EBUSY while somebody has mounted it, and keeps mounts away while we
  // write.
  GCS_ASSIGN(const base::Fd fd, base::OpenFile(device, O_RDWR));
  GCS_ASSIGN(const uint64_t bytes, SizeOf(fd.get(), device));
  if (bytes < kSmallestDisk) {
    return MakeError(ENOSPC, "format", device, std::to_string(bytes) + " bytes are too few for ext4");
  }
  GCS_ASSIGN(ext2_super_block parameters, Parameters(bytes, options, device));

  ext2_filsys raw = nullptr;
  if (const errcode_t code = ext2fs_initialize(device.c_str(), EXT2_FLAG_EXCLUSIVE | EXT2_FLAG_64BITS,
                                               &parameters, unix_io_manager, &raw)) {
    return ExtError(code, "initialize ext4", device);
  }
  Filesystem fs(raw);
  GCS_TRY(FillSuperblock(raw, device));
  if (const errcode_t code = ext2fs_allocate_tables(raw)) return ExtError(code, "allocate tables", device);
  if (options.zero_inode_tables) {
    GCS_TRY(WriteInodeTables(raw, device));
  } else {
    GCS_TRY(WriteFirstInodeTable(raw, device));
  }
  GCS_TRY(MakeRoot(raw, device));
  GCS_TRY(ReserveInodes(raw, device));

  raw->super->s_state |= EXT2_VALID_FS;
  ext2fs_mark_super_dirty(raw);
  raw = fs.release();
  if (const errcode_t code = ext2fs_close_free(&raw)) {
    if (raw != nullptr) ext2fs_free(raw);
    return ExtError(code, "write ext4", device);
  }
  if (fsync(fd.get()) != 0) return ErrnoError("fsync", device);
  return {};
}

}  // namespace gcs::storage
