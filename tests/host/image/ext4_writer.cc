// SPDX-License-Identifier: Apache-2.0
#include "host/image/ext4_writer.h"

extern "C" {  // Debian 12's header has no C++ guard
#include <et/com_err.h>
}
#include <ext2fs/ext2_fs.h>
#include <ext2fs/ext2fs.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "host/image/ext4_dir.h"

namespace gcs::host {
namespace {

constexpr uint32_t kInodeSize = 256;
constexpr uint32_t kExtraSize = sizeof(ext2_inode_large) - EXT2_GOOD_OLD_INODE_SIZE;
constexpr uint32_t kInodesPerBlock = kBlockSize / kInodeSize;
constexpr uint32_t kFirstInode = 11;
constexpr uint32_t kMaxGroupBlocks = kBlockSize * 8;
constexpr uint32_t kMaxGroupInodes = kBlockSize * 8;
constexpr uint32_t kGroupsPerFlexLog = 4;
constexpr uint64_t kMaxExtent = 32768;  // EXT_INIT_MAX_LEN
constexpr uint32_t kMaxDirectoryLinks = 65000;
constexpr size_t kFastSymlink = 60;
constexpr uint32_t kFixedTime = 1'704'067'200;  // 2024-01-01T00:00:00Z: superblock times, not files'

struct Seeds {
  std::array<uint8_t, 16> uuid{};
  HashSeed hash{};
};

Seeds SeedsOf(const Digest& diff_id) {
  std::array<uint8_t, 32> raw{};
  for (size_t i = 0; i < raw.size(); ++i) {
    raw[i] = static_cast<uint8_t>(std::stoul(diff_id.hex.substr(i * 2, 2), nullptr, 16));
  }
  Seeds seeds;
  std::copy_n(raw.begin(), 16, seeds.uuid.begin());
  seeds.uuid[6] = (seeds.uuid[6] & 0x0f) | 0x80;  // RFC 9562 version 8, custom
  seeds.uuid[8] = (seeds.uuid[8] & 0x3f) | 0x80;
  memcpy(seeds.hash.data(), raw.data() + 16, 16);
  return seeds;
}

std::unexpected<base::Error> Ext2Error(errcode_t err, std::string_view step, std::string_view object) {
  // Below com_err's first table are plain errnos.
  const int number = err > 0 && err < 4096             ? static_cast<int>(err)
                     : err == EXT2_ET_BLOCK_ALLOC_FAIL ? ENOSPC
                                                       : EIO;
  return base::MakeError(number, step, object, error_message(err));
}

struct FreeFs {
  void operator()(ext2_filsys fs) const { ext2fs_free(fs); }
};

class Writer {
 public:
  Writer(LayerTree& tree, const Spool& spool, int fd, const Digest& diff_id,
         const std::function<void(uint64_t, uint64_t)>& on_bytes)
      : root_(tree.root()),
        spool_(spool),
        fd_(fd),
        diff_id_(diff_id),
        seeds_(SeedsOf(diff_id)),
        on_bytes_(on_bytes) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() {
    if (map_ != nullptr) munmap(map_, map_size_);
  }

  base::Result<uint64_t> Run() {
    Number(root_, 2);
    GCS_TRY(Measure());
    GCS_TRY(MapSpool());
    GCS_TRY(MakeFileSystem());
    for (const Item& item : items_) GCS_TRY(WriteItem(item));
    return Finish();
  }

 private:
  struct Item {
    Inode* inode;
    uint32_t parent;  // of a directory
  };
  struct PhysicalRun {
    uint64_t block;
    uint64_t count;
  };

  // Numbers inodes in the order of names, depth first: what is near in the tree is near in the table.
  void Number(Inode& inode, uint32_t parent) {
    inode.number = items_.empty() ? EXT2_ROOT_INO : next_inode_++;
    items_.push_back({&inode, parent});
    for (const auto& [name, child] : inode.children) {
      if (child->number == 0) Number(*child, inode.number);
    }
  }

  base::Result<> Measure() {
    uint64_t blocks = 0;
    for (const Item& item : items_) {
      const Inode& inode = *item.inode;
      uint64_t extents = 0;
      if (S_ISDIR(inode.mode)) {
        GCS_ASSIGN(const DirectoryData data, BuildDirectory(inode, item.parent, seeds_.hash));
        blocks += data.bytes.size() / kBlockSize;
        extents = 1 + data.bytes.size() / kBlockSize / kMaxExtent;
      } else if (S_ISLNK(inode.mode)) {
        blocks += inode.target.size() >= kFastSymlink ? 1 : 0;
      } else {
        for (const BlockRun& run : inode.runs) {
          blocks += run.count;
          data_blocks_ += run.count;
          extents += 1 + run.count / kMaxExtent;
        }
      }
      if (!inode.xattrs.empty()) ++blocks;
      // Half-full leaves of 340 extents is the worst that libext2fs' splitting leaves.
      if (extents > 4) blocks += extents / 170 + 3;
    }
    inodes_ = (next_inode_ - 1 + kInodesPerBlock - 1) / kInodesPerBlock * kInodesPerBlock;
    // Groups of equal size, as many as blocks or inodes need; the tables of each count as content.
    uint64_t groups = 1;
    while (true) {
      const uint64_t group_inodes =
          (inodes_ + groups * kInodesPerBlock - 1) / (groups * kInodesPerBlock) * kInodesPerBlock;
      const uint64_t tables = groups * (2 + group_inodes / kInodesPerBlock);
      const uint64_t descriptors = (groups * 32 + kBlockSize - 1) / kBlockSize;
      // A file's run is cut wherever a group's tables lie in its way: an extent tree may need a block more
      // each time.
      blocks_ = 1 + descriptors + tables + blocks + 64 + groups * 2;
      if (blocks_ > 0xffff'ff00ULL)
        return base::MakeError(EFBIG, "lay out ext4", diff_id_.hex, "beyond 16 TiB");
      group_blocks_ = std::min<uint64_t>(kMaxGroupBlocks, ((blocks_ + groups - 1) / groups + 7) / 8 * 8);
      const uint64_t needed = (blocks_ + kMaxGroupBlocks - 1) / kMaxGroupBlocks;
      if (needed <= groups && group_inodes <= kMaxGroupInodes) {
        // Whole groups: libext2fs would cut off a short last one. Unused blocks are holes in the file.
        group_blocks_ = std::max<uint64_t>(group_blocks_, 256);
        blocks_ = groups == 1 ? blocks_ : groups * group_blocks_;
        inodes_ = groups * group_inodes;
        return {};
      }
      groups = std::max(needed, groups + 1);
    }
  }

  base::Result<> MapSpool() {
    map_size_ = spool_.blocks() * kBlockSize;
    if (map_size_ == 0) return {};
    void* map = mmap(nullptr, map_size_, PROT_READ, MAP_PRIVATE, spool_.fd(), 0);
    if (map == MAP_FAILED) return base::ErrnoError("mmap", "layer data");
    map_ = static_cast<char*>(map);
    return {};
  }

  base::Result<> MakeFileSystem() {
    if (ftruncate(fd_, static_cast<off_t>(blocks_ * kBlockSize)) != 0) {
      return base::ErrnoError("ftruncate", "layer disk");
    }
    ext2_super_block param{};
    param.s_rev_level = EXT2_DYNAMIC_REV;
    param.s_log_block_size = 2;
    param.s_log_cluster_size = 2;
    param.s_inode_size = kInodeSize;
    param.s_first_ino = kFirstInode;
    param.s_inodes_count = static_cast<uint32_t>(inodes_);
    param.s_log_groups_per_flex = kGroupsPerFlexLog;
    ext2fs_blocks_count_set(&param, blocks_);
    if (group_blocks_ < kMaxGroupBlocks && blocks_ > group_blocks_) {
      param.s_blocks_per_group = static_cast<uint32_t>(group_blocks_);
    }
    ext2fs_set_feature_dir_index(&param);
    ext2fs_set_feature_xattr(&param);
    ext2fs_set_feature_sparse_super2(&param);
    ext2fs_set_feature_filetype(&param);
    ext2fs_set_feature_extents(&param);
    ext2fs_set_feature_flex_bg(&param);
    ext2fs_set_feature_large_file(&param);
    ext2fs_set_feature_huge_file(&param);
    ext2fs_set_feature_dir_nlink(&param);
    ext2fs_set_feature_extra_isize(&param);
    const std::string name = "/proc/self/fd/" + std::to_string(fd_);
    ext2_filsys fs = nullptr;
    errcode_t err = ext2fs_initialize(name.c_str(), EXT2_FLAG_64BITS, &param, unix_io_manager, &fs);
    if (err != 0) return Ext2Error(err, "ext2fs_initialize", diff_id_.hex);
    fs_.reset(fs);
    fs->now = kFixedTime;
    fs->priv_data = this;
    ext2_super_block& super = *fs->super;
    super.s_mkfs_time = super.s_lastcheck = super.s_wtime = kFixedTime;
    super.s_backup_bgs[0] = super.s_backup_bgs[1] = 0;
    super.s_max_mnt_count = -1;
    super.s_checkinterval = 0;
    super.s_min_extra_isize = super.s_want_extra_isize = kExtraSize;
    super.s_def_hash_version = EXT2_HASH_HALF_MD4;
    super.s_flags = (super.s_flags & ~EXT2_FLAGS_SIGNED_HASH) | EXT2_FLAGS_UNSIGNED_HASH;
    super.s_default_mount_opts = EXT2_DEFM_XATTR_USER | EXT2_DEFM_ACL;
    memcpy(super.s_uuid, seeds_.uuid.data(), sizeof super.s_uuid);
    memcpy(super.s_hash_seed, seeds_.hash.data(), sizeof super.s_hash_seed);
    memcpy(super.s_volume_name, diff_id_.hex.data(), sizeof super.s_volume_name);
    err = ext2fs_allocate_tables(fs);
    if (err != 0) return Ext2Error(err, "ext2fs_allocate_tables", diff_id_.hex);
    for (uint32_t reserved = 1; reserved < kFirstInode; ++reserved) {
      if (reserved != EXT2_ROOT_INO) ext2fs_inode_alloc_stats2(fs, reserved, +1, 0);
    }
    // Every block comes from one cursor, also those that libext2fs takes for attributes and extent trees.
    ext2fs_set_alloc_block_callback(
        fs,
        [](ext2_filsys self, blk64_t, blk64_t* out) -> errcode_t {
          return static_cast<Writer*>(self->priv_data)->NextFree(out);
        },
        nullptr);
    return {};
  }

  errcode_t NextFree(blk64_t* out) {
    const errcode_t err = ext2fs_find_first_zero_block_bitmap2(fs_->block_map, cursor_,
                                                               ext2fs_blocks_count(fs_->super) - 1, out);
    if (err == ENOENT) return EXT2_ET_BLOCK_ALLOC_FAIL;
    if (err == 0) cursor_ = *out;
    return err;
  }

  // `count` blocks in as few runs as the tables between them allow; none longer than an extent.
  base::Result<std::vector<PhysicalRun>> Allocate(uint64_t count) {
    std::vector<PhysicalRun> runs;
    while (count > 0) {
      blk64_t first = 0;
      errcode_t err =
          cursor_ >= ext2fs_blocks_count(fs_->super) ? EXT2_ET_BLOCK_ALLOC_FAIL : NextFree(&first);
      if (err != 0) return Ext2Error(err, "allocate blocks", diff_id_.hex);
      const blk64_t limit =
          std::min(first + std::min(count, kMaxExtent), ext2fs_blocks_count(fs_->super)) - 1;
      blk64_t end = 0;
      err = ext2fs_find_first_set_block_bitmap2(fs_->block_map, first, limit, &end);
      if (err == ENOENT) end = limit + 1;
      if (err != 0 && err != ENOENT) return Ext2Error(err, "allocate blocks", diff_id_.hex);
      ext2fs_block_alloc_stats_range(fs_.get(), first, static_cast<blk_t>(end - first), +1);
      runs.push_back({first, end - first});
      cursor_ = end;
      count -= end - first;
    }
    return runs;
  }

  base::Result<> WriteAt(uint64_t block, const char* data, size_t size) {
    auto at = static_cast<off_t>(block * kBlockSize);
    while (size > 0) {
      const ssize_t n = pwrite(fd_, data, size, at);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return base::ErrnoError("write layer disk", diff_id_.hex);
      data += n;
      at += n;
      size -= static_cast<size_t>(n);
    }
    return {};
  }

  // Stores `data` (whole blocks) from logical block `logical` on and notes its extents.
  base::Result<> Store(const char* data, uint64_t count, uint64_t logical,
                       std::vector<ext2fs_extent>& extents) {
    GCS_ASSIGN(const std::vector<PhysicalRun> runs, Allocate(count));
    for (const PhysicalRun& run : runs) {
      GCS_TRY(WriteAt(run.block, data, run.count * kBlockSize));
      ext2fs_extent extent{};
      extent.e_lblk = logical;
      extent.e_pblk = run.block;
      extent.e_len = static_cast<uint32_t>(run.count);
      extents.push_back(extent);
      logical += run.count;
      data += run.count * kBlockSize;
    }
    return {};
  }

  base::Result<> WriteItem(const Item& item) {
    const Inode& inode = *item.inode;
    ext2_inode_large disk{};
    disk.i_mode = static_cast<uint16_t>(inode.mode);
    disk.i_links_count = static_cast<uint16_t>(inode.links);
    SetOwnerAndTimes(inode, disk);
    std::vector<ext2fs_extent> extents;
    uint64_t size = inode.size;
    const bool directory = S_ISDIR(inode.mode);
    bool has_extents = directory || S_ISREG(inode.mode);
    if (directory) {
      GCS_ASSIGN(const DirectoryData data, BuildDirectory(inode, item.parent, seeds_.hash));
      size = data.bytes.size();
      if (data.indexed) disk.i_flags |= EXT2_INDEX_FL;
      GCS_TRY(Store(data.bytes.data(), size / kBlockSize, 0, extents));
      const auto subdirectories = static_cast<uint64_t>(std::ranges::count_if(
          inode.children, [](const auto& child) { return S_ISDIR(child.second->mode); }));
      // With dir_nlink 1 says "more than can be counted".
      disk.i_links_count =
          static_cast<uint16_t>(subdirectories + 2 >= kMaxDirectoryLinks ? 1 : subdirectories + 2);
    } else if (S_ISLNK(inode.mode)) {
      size = inode.target.size();
      if (size < kFastSymlink) {
        memcpy(disk.i_block, inode.target.data(), size);
      } else {
        has_extents = true;
        std::string block = inode.target;
        block.resize(kBlockSize, '\0');
        GCS_TRY(Store(block.data(), 1, 0, extents));
      }
    } else if (S_ISCHR(inode.mode) || S_ISBLK(inode.mode)) {
      const uint32_t major = inode.rdev_major;
      const uint32_t minor = inode.rdev_minor;
      if (major < 256 && minor < 256) {
        disk.i_block[0] = major << 8 | minor;
      } else {
        disk.i_block[1] = (minor & 0xff) | major << 8 | (minor & ~0xffU) << 12;
      }
    } else {
      for (const BlockRun& run : inode.runs) {
        GCS_TRY(Store(map_ + run.spool * kBlockSize, run.count, run.logical, extents));
        written_ += run.count;
        if (on_bytes_) on_bytes_(written_ * kBlockSize, data_blocks_ * kBlockSize);
      }
    }
    disk.i_size = static_cast<uint32_t>(size);
    disk.i_size_high = static_cast<uint32_t>(size >> 32);
    if (has_extents) disk.i_flags |= EXT4_EXTENTS_FL;
    return WriteInode(inode, disk, extents, directory);
  }

  static void SetOwnerAndTimes(const Inode& inode, ext2_inode_large& disk) {
    disk.i_uid = static_cast<uint16_t>(inode.uid);
    disk.osd2.linux2.l_i_uid_high = static_cast<uint16_t>(inode.uid >> 16);
    disk.i_gid = static_cast<uint16_t>(inode.gid);
    disk.osd2.linux2.l_i_gid_high = static_cast<uint16_t>(inode.gid >> 16);
    disk.i_extra_isize = kExtraSize;
    // 34 bits of seconds around the epoch; the kernel clamps in the same way.
    const int64_t seconds = std::clamp<int64_t>(inode.mtime, INT32_MIN, (int64_t{3} << 32) + INT32_MAX);
    const auto low = static_cast<int32_t>(static_cast<uint32_t>(seconds & 0xffff'ffff));
    const auto epoch = static_cast<uint32_t>((seconds - low) >> 32) & 3;
    const uint32_t extra = inode.mtime_ns << 2 | epoch;
    disk.i_atime = disk.i_ctime = disk.i_mtime = disk.i_crtime = static_cast<uint32_t>(low);
    disk.i_atime_extra = disk.i_ctime_extra = disk.i_mtime_extra = disk.i_crtime_extra = extra;
  }

  base::Result<> WriteInode(const Inode& inode, ext2_inode_large& disk, std::vector<ext2fs_extent>& extents,
                            bool directory) {
    const std::string object = diff_id_.hex.substr(0, 12) + " inode " + std::to_string(inode.number);
    auto* plain = reinterpret_cast<ext2_inode*>(&disk);
    ext2fs_inode_alloc_stats2(fs_.get(), inode.number, +1, directory ? 1 : 0);
    errcode_t err = 0;
    if ((disk.i_flags & EXT4_EXTENTS_FL) != 0) {
      ext2_extent_handle_t handle = nullptr;
      // libext2fs makes an empty extent tree in a zeroed i_block, and stores the inode's first half at every
      // insert.
      err = ext2fs_extent_open2(fs_.get(), inode.number, plain, &handle);
      if (err != 0) return Ext2Error(err, "ext2fs_extent_open", object);
      uint64_t blocks = 0;
      for (const ext2fs_extent& extent : extents) blocks += extent.e_len;
      ext2fs_iblk_add_blocks(fs_.get(), plain, blocks);
      err = ext2fs_write_inode_full(fs_.get(), inode.number, plain, sizeof disk);
      for (size_t i = 0; err == 0 && i < extents.size(); ++i) {
        err = ext2fs_extent_insert(handle, EXT2_EXTENT_INSERT_AFTER, &extents[i]);
        if (err == 0 && extents.size() > 4) err = ext2fs_extent_fix_parents(handle);
      }
      ext2fs_extent_free(handle);
      if (err != 0) return Ext2Error(err, "ext2fs_extent_insert", object);
    }
    err = ext2fs_write_inode_full(fs_.get(), inode.number, plain, sizeof disk);
    if (err != 0) return Ext2Error(err, "ext2fs_write_inode", object);
    return WriteXattrs(inode, object);
  }

  base::Result<> WriteXattrs(const Inode& inode, const std::string& object) {
    if (inode.xattrs.empty()) return {};
    ext2_xattr_handle* handle = nullptr;
    errcode_t err = ext2fs_xattrs_open(fs_.get(), inode.number, &handle);
    if (err != 0) return Ext2Error(err, "ext2fs_xattrs_open", object);
    for (const auto& [name, value] : inode.xattrs) {
      err = ext2fs_xattr_set(handle, name.c_str(), value.data(), value.size());
      if (err != 0) {
        ext2fs_xattrs_close(&handle);
        if (err == EXT2_ET_EA_NO_SPACE) {
          return base::MakeError(E2BIG, "ext2fs_xattr_set", object + " " + name,
                                 "attributes beyond one block");
        }
        return Ext2Error(err, "ext2fs_xattr_set", object + " " + name);
      }
    }
    ext2fs_xattrs_close(&handle);
    return {};
  }

  base::Result<uint64_t> Finish() {
    // A mount that forgets "ro" becomes read-only all the same: the bytes are shared by all containers of the
    // layer.
    ext2fs_set_feature_readonly(fs_->super);
    fs_->super->s_state |= EXT2_VALID_FS;
    ext2fs_mark_super_dirty(fs_.get());
    const uint64_t bytes = ext2fs_blocks_count(fs_->super) * kBlockSize;
    ext2_filsys fs = fs_.release();
    const errcode_t err = ext2fs_close_free(&fs);
    if (err != 0) return Ext2Error(err, "ext2fs_close", diff_id_.hex);
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) return base::ErrnoError("ftruncate", "layer disk");
    return bytes;
  }

  Inode& root_;
  const Spool& spool_;
  const int fd_;
  const Digest& diff_id_;
  const Seeds seeds_;
  const std::function<void(uint64_t, uint64_t)>& on_bytes_;

  std::vector<Item> items_;
  uint32_t next_inode_ = kFirstInode;
  uint64_t blocks_ = 0;
  uint64_t inodes_ = 0;
  uint64_t group_blocks_ = 0;
  uint64_t data_blocks_ = 0;
  uint64_t written_ = 0;
  blk64_t cursor_ = 1;
  char* map_ = nullptr;
  size_t map_size_ = 0;
  std::unique_ptr<struct_ext2_filsys, FreeFs> fs_;
};

}  // namespace

base::Result<uint64_t> WriteExt4(LayerTree& tree, const Spool& spool, int fd, const Digest& diff_id,
                                 const std::function<void(uint64_t, uint64_t)>& on_bytes) {
  return Writer(tree, spool, fd, diff_id, on_bytes).Run();
}

bool IsLayerDisk(int fd, const Digest& diff_id) {
  ext2_super_block super{};
  struct stat st{};
  const Seeds seeds = SeedsOf(diff_id);
  return fstat(fd, &st) == 0 && pread(fd, &super, sizeof super, SUPERBLOCK_OFFSET) == sizeof super &&
         super.s_magic == EXT2_SUPER_MAGIC &&
         memcmp(super.s_uuid, seeds.uuid.data(), sizeof super.s_uuid) == 0 &&
         static_cast<uint64_t>(st.st_size) == uint64_t{super.s_blocks_count} * kBlockSize;
}

}  // namespace gcs::host
