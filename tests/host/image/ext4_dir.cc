// SPDX-License-Identifier: Apache-2.0
#include "host/image/ext4_dir.h"

extern "C" {  // Debian 12's header has no C++ guard
#include <et/com_err.h>
}
#include <ext2fs/ext2_fs.h>
#include <ext2fs/ext2fs.h>
#include <sys/stat.h>

#include <algorithm>
#include <string_view>
#include <vector>

namespace gcs::host {
namespace {

constexpr size_t kEntryHeader = 8;   // inode, rec_len, name_len, file_type
constexpr size_t kRootEntries = 32;  // "." and ".." (12 bytes each), then the hash tree's info (8 bytes)
constexpr size_t kNodeEntries = 8;   // an empty entry that spans the block
constexpr size_t kRootLimit = (kBlockSize - kRootEntries) / 8;
constexpr size_t kNodeLimit = (kBlockSize - kNodeEntries) / 8;

struct Name {
  std::string_view name;
  const Inode* inode = nullptr;
  uint32_t hash = 0;
  uint32_t minor = 0;
};

// A block of entries and the hash that its index entry carries.
struct Leaf {
  uint32_t hash = 0;
  std::string bytes;
};

void Put16(std::string& block, size_t at, uint32_t value) {
  block[at] = static_cast<char>(value & 0xff);
  block[at + 1] = static_cast<char>(value >> 8 & 0xff);
}

void Put32(std::string& block, size_t at, uint32_t value) {
  Put16(block, at, value & 0xffff);
  Put16(block, at + 2, value >> 16);
}

size_t RecordLength(size_t name) { return (kEntryHeader + name + 3) & ~size_t{3}; }

uint8_t FileType(uint32_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return EXT2_FT_REG_FILE;
    case S_IFDIR:
      return EXT2_FT_DIR;
    case S_IFCHR:
      return EXT2_FT_CHRDEV;
    case S_IFBLK:
      return EXT2_FT_BLKDEV;
    case S_IFIFO:
      return EXT2_FT_FIFO;
    case S_IFSOCK:
      return EXT2_FT_SOCK;
    case S_IFLNK:
      return EXT2_FT_SYMLINK;
    default:
      return EXT2_FT_UNKNOWN;
  }
}

void AppendEntry(std::string& block, uint32_t inode, std::string_view name, uint8_t type, size_t length) {
  const size_t at = block.size();
  block.resize(at + length, '\0');
  Put32(block, at, inode);
  Put16(block, at + 4, static_cast<uint32_t>(length));
  block[at + 6] = static_cast<char>(name.size());
  block[at + 7] = static_cast<char>(type);
  std::ranges::copy(name, block.begin() + static_cast<std::ptrdiff_t>(at + kEntryHeader));
}

// Gives the last entry, which starts at `last`, the rest of the block.
void CloseBlock(std::string& block, size_t last) {
  Put16(block, last + 4, static_cast<uint32_t>(kBlockSize - last));
  block.resize(kBlockSize, '\0');
}

// Entries in order into as few blocks as they need.
std::vector<Leaf> Pack(const std::vector<Name>& names, std::string first) {
  std::vector<Leaf> leaves(1);
  leaves[0].bytes = std::move(first);
  size_t last = leaves[0].bytes.empty() ? 0 : leaves[0].bytes.size() - RecordLength(2);
  uint32_t previous = 0;
  bool any = false;
  for (const Name& name : names) {
    const size_t length = RecordLength(name.name.size());
    if (leaves.back().bytes.size() + length > kBlockSize) {
      CloseBlock(leaves.back().bytes, last);
      // The low bit tells a look-up that the hash goes on from the block before.
      leaves.push_back({any && name.hash == previous ? name.hash | 1 : name.hash, {}});
    }
    last = leaves.back().bytes.size();
    AppendEntry(leaves.back().bytes, name.inode->number, name.name, FileType(name.inode->mode), length);
    previous = name.hash;
    any = true;
  }
  CloseBlock(leaves.back().bytes, last);
  return leaves;
}

// Index entries from `from` on: the first one's hash is the place of count and limit.
void PutIndex(std::string& block, size_t at, size_t limit,
              const std::vector<std::pair<uint32_t, uint32_t>>& entries, size_t from, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    Put32(block, at + i * 8, entries[from + i].first);
    Put32(block, at + i * 8 + 4, entries[from + i].second);
  }
  Put16(block, at, static_cast<uint32_t>(limit));
  Put16(block, at + 2, static_cast<uint32_t>(count));
}

}  // namespace

base::Result<DirectoryData> BuildDirectory(const Inode& directory, uint32_t parent_number,
                                           const HashSeed& seed) {
  std::vector<Name> names;
  names.reserve(directory.children.size());
  size_t linear = 24;
  for (const auto& [name, inode] : directory.children) {
    names.push_back({name, inode});
    linear += RecordLength(name.size());
  }
  std::string dots;
  AppendEntry(dots, directory.number, ".", EXT2_FT_DIR, 12);
  AppendEntry(dots, parent_number, "..", EXT2_FT_DIR, 12);
  if (linear <= kBlockSize) return DirectoryData{Pack(names, std::move(dots))[0].bytes, false};

  for (Name& name : names) {
    const errcode_t err =
        ext2fs_dirhash2(EXT2_HASH_HALF_MD4_UNSIGNED, name.name.data(), static_cast<int>(name.name.size()),
                        nullptr, 0, seed.data(), &name.hash, &name.minor);
    if (err != 0) return base::MakeError(EINVAL, "hash directory entry", name.name, error_message(err));
  }
  std::ranges::sort(names, [](const Name& a, const Name& b) {
    return std::tie(a.hash, a.minor, a.name) < std::tie(b.hash, b.minor, b.name);
  });
  const std::vector<Leaf> leaves = Pack(names, {});
  const bool two_levels = leaves.size() > kRootLimit;
  const size_t nodes = two_levels ? (leaves.size() + kNodeLimit - 1) / kNodeLimit : 0;
  if (nodes > kRootLimit)
    return base::MakeError(EFBIG, "build directory", {}, "too many entries for its hash tree");

  // Block 0 is the root, then the nodes of the second level, then the leaves.
  std::vector<std::pair<uint32_t, uint32_t>> index;
  for (size_t i = 0; i < leaves.size(); ++i)
    index.emplace_back(leaves[i].hash, static_cast<uint32_t>(1 + nodes + i));
  std::string root = std::move(dots);
  CloseBlock(root, 12);
  root[24 + 4] = EXT2_HASH_HALF_MD4;
  root[24 + 5] = 8;  // length of the info
  root[24 + 6] = two_levels ? 1 : 0;
  std::string out;
  if (!two_levels) {
    PutIndex(root, kRootEntries, kRootLimit, index, 0, index.size());
    out = std::move(root);
  } else {
    std::vector<std::pair<uint32_t, uint32_t>> top;
    for (size_t i = 0; i < nodes; ++i)
      top.emplace_back(index[i * kNodeLimit].first, static_cast<uint32_t>(1 + i));
    PutIndex(root, kRootEntries, kRootLimit, top, 0, top.size());
    out = std::move(root);
    for (size_t i = 0; i < nodes; ++i) {
      std::string node(kBlockSize, '\0');
      Put16(node, 4, kBlockSize);
      PutIndex(node, kNodeEntries, kNodeLimit, index, i * kNodeLimit,
               std::min(kNodeLimit, index.size() - i * kNodeLimit));
      out += node;
    }
  }
  out.reserve(out.size() + leaves.size() * kBlockSize);
  for (const Leaf& leaf : leaves) out += leaf.bytes;
  return DirectoryData{std::move(out), true};
}

}  // namespace gcs::host
