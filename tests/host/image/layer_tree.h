// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "host/image/image.h"
#include "host/image/spool.h"
#include "host/image/tar_reader.h"

namespace gcs::host {

// An inode of the layer. Owned by its LayerTree; directories name their children in byte order.
struct Inode {
  uint32_t mode = 0;  // with S_IFMT
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t mtime = 0;
  uint32_t mtime_ns = 0;
  uint32_t rdev_major = 0;
  uint32_t rdev_minor = 0;
  uint32_t links = 0;  // names of a file; of a directory 1 while it is in the tree
  uint64_t size = 0;   // of a regular file
  bool whiteout = false;
  std::string target;  // of a symbolic link
  std::vector<BlockRun> runs;
  std::vector<std::pair<std::string, std::string>> xattrs;
  std::map<std::string, Inode*, std::less<>> children;
  uint32_t number = 0;  // for the writer
};

// What a layer archive describes, as a tree in memory. Paths are resolved in it and nowhere else: absolute
// names start at its root, ".." in an entry's name is refused, symbolic links on the way are followed inside
// (".." stops at the root). Whiteouts have overlayfs' form: a character device 0:0, and
// trusted.overlay.opaque on a directory.
class LayerTree {
 public:
  explicit LayerTree(const ImageLimits& limits);
  LayerTree(const LayerTree&) = delete;
  LayerTree& operator=(const LayerTree&) = delete;

  // Adds an entry; a later one replaces an earlier one of the same path, but a directory keeps its children
  // when the new entry is one too. Returns the inode whose data follow, nullptr when there are none.
  base::Result<Inode*> Add(const TarEntry& entry);

  [[nodiscard]] Inode& root() { return *root_; }
  [[nodiscard]] uint64_t dropped() const { return dropped_; }

 private:
  using Path = std::vector<std::string>;
  base::Result<Path> Split(std::string_view name, std::string_view entry) const;
  // The directory that `path` but for its last component leads to; made when missing if `make`.
  base::Result<Inode*> Parent(const Path& path, bool make, const std::string& entry);
  // Of a new name for it.
  base::Result<Inode*> NewInode(uint32_t mode, std::string_view name, const std::string& entry);
  // Counts bytes that are kept for `entry`.
  base::Result<> Charge(uint64_t bytes, const std::string& entry);
  base::Result<Inode*> MakeDirectory(Inode& parent, const std::string& name, const std::string& entry);
  base::Result<Inode*> AddWhiteout(Inode& parent, std::string_view name, const std::string& entry);
  base::Result<Inode*> AddHardLink(Inode& parent, const std::string& leaf, const TarEntry& entry);
  base::Result<> SetMetadata(Inode& inode, const TarEntry& entry);
  base::Result<> SetXattrs(Inode& inode, const TarEntry& entry);
  void SetOpaque(Inode& directory);
  void Release(Inode& inode);

  const ImageLimits limits_;
  std::deque<Inode> inodes_;
  Inode* root_;
  uint64_t entries_ = 0;
  uint64_t content_ = 0;
  uint64_t metadata_ = 0;
  uint64_t dropped_ = 0;
};

}  // namespace gcs::host
