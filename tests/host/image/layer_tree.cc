// SPDX-License-Identifier: Apache-2.0
#include "host/image/layer_tree.h"

#include <linux/limits.h>
#include <sys/stat.h>

#include <algorithm>
#include <limits>

namespace gcs::host {
namespace {

constexpr std::string_view kWhiteout = ".wh.";
constexpr std::string_view kOpaque = ".wh..wh..opq";
constexpr std::string_view kAufs = ".wh..wh.";
constexpr char kOpaqueXattr[] = "trusted.overlay.opaque";
constexpr std::string_view kOverlayXattrs = "trusted.overlay.";
constexpr int kMaxSymlinks = 40;                     // as the kernel
constexpr uint32_t kMaxLinks = 65'000;               // EXT4_LINK_MAX
constexpr uint64_t kMaxFileBlocks = 0xffff'fffeULL;  // logical block numbers have 32 bits
constexpr uint64_t kMaxMajor = 0xfff;                // what ext4's 32-bit device number holds
constexpr uint64_t kMaxMinor = 0xfffff;

bool IsDirectory(const Inode& inode) { return S_ISDIR(inode.mode); }

std::unexpected<base::Error> Refuse(int err, std::string_view entry, std::string_view why) {
  return base::MakeError(err, "add layer entry", entry, why);
}

// struct posix_acl_xattr_header and _entry (uapi/linux/posix_acl_xattr.h): libext2fs trusts their form.
bool IsAcl(std::string_view value) {
  if (value.size() < 4 || (value.size() - 4) % 8 != 0 ||
      value.substr(0, 4) != std::string_view("\2\0\0\0", 4)) {
    return false;
  }
  for (size_t at = 4; at < value.size(); at += 8) {
    const auto tag = static_cast<unsigned char>(value[at]);
    const bool known = tag == 1 || tag == 2 || tag == 4 || tag == 8 || tag == 0x10 || tag == 0x20;
    if (!known || value[at + 1] != 0) return false;
  }
  return true;
}

}  // namespace

LayerTree::LayerTree(const ImageLimits& limits) : limits_(limits), root_(&inodes_.emplace_back()) {
  root_->mode = S_IFDIR | 0755;
  root_->links = 1;
}

base::Result<LayerTree::Path> LayerTree::Split(std::string_view name, std::string_view entry) const {
  if (name.empty()) return Refuse(EINVAL, entry, "empty name");
  if (name.size() > limits_.path_bytes) return Refuse(ENAMETOOLONG, name.substr(0, 64), "path too long");
  Path path;
  while (!name.empty()) {
    const size_t end = std::min(name.find('/'), name.size());
    const std::string_view part = name.substr(0, end);
    name.remove_prefix(std::min(end + 1, name.size()));
    if (part.empty() || part == ".") continue;
    if (part == "..") return Refuse(EINVAL, entry, "\"..\" in a name");
    if (part.size() > NAME_MAX) return Refuse(ENAMETOOLONG, entry, "a component is longer than 255 bytes");
    path.emplace_back(part);
  }
  if (path.size() > limits_.depth + 1) {
    return Refuse(ENAMETOOLONG, entry, "deeper than " + std::to_string(limits_.depth) + " directories");
  }
  return path;
}

base::Result<> LayerTree::Charge(uint64_t bytes, const std::string& entry) {
  if (bytes > limits_.metadata_bytes - metadata_) {
    return Refuse(E2BIG, entry,
                  "names, link targets and attributes of more than " +
                      std::to_string(limits_.metadata_bytes) + " bytes");
  }
  metadata_ += bytes;
  return {};
}

base::Result<Inode*> LayerTree::NewInode(uint32_t mode, std::string_view name, const std::string& entry) {
  GCS_TRY(Charge(name.size(), entry));
  if (inodes_.size() > limits_.entries) {
    return Refuse(E2BIG, entry, "more than " + std::to_string(limits_.entries) + " inodes");
  }
  Inode& inode = inodes_.emplace_back();
  inode.mode = mode;
  inode.links = 1;
  return &inode;
}

base::Result<Inode*> LayerTree::MakeDirectory(Inode& parent, const std::string& name,
                                              const std::string& entry) {
  GCS_ASSIGN(Inode * made, NewInode(S_IFDIR | 0755, name, entry));
  const auto [at, inserted] = parent.children.try_emplace(name, made);
  if (!inserted) {
    // What was hidden below and what is there now come from the same archive: the directory hides the lower
    // layers'.
    if (at->second->whiteout) SetOpaque(*made);
    Release(*at->second);
    at->second = made;
  }
  return made;
}

base::Result<Inode*> LayerTree::Parent(const Path& path, bool make, const std::string& entry) {
  // The path still to go, last component first, and the directories passed: ".." of a link target goes back
  // there.
  Path rest(path.rbegin() + (path.empty() ? 0 : 1), path.rend());
  std::vector<Inode*> stack = {root_};
  int symlinks = 0;
  while (!rest.empty()) {
    const std::string part = std::move(rest.back());
    rest.pop_back();
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      if (stack.size() > 1) stack.pop_back();
      continue;
    }
    if (part.size() > NAME_MAX)
      return Refuse(ENAMETOOLONG, entry, "through a link with a name beyond 255 bytes");
    if (stack.size() > limits_.depth) return Refuse(ENAMETOOLONG, entry, "too deep after following links");
    Inode& at = *stack.back();
    const auto found = at.children.find(part);
    Inode* next = found == at.children.end() ? nullptr : found->second;
    if (next == nullptr || next->whiteout) {
      if (!make) return Refuse(ENOENT, entry, "directory \"" + part + "\" is missing");
      GCS_ASSIGN(next, MakeDirectory(at, part, entry));
      stack.push_back(next);
    } else if (IsDirectory(*next)) {
      stack.push_back(next);
    } else if (S_ISLNK(next->mode)) {
      if (++symlinks > kMaxSymlinks) return Refuse(ELOOP, entry, "too many symbolic links on the way");
      if (next->target.starts_with('/')) stack.resize(1);
      const size_t mark = rest.size();
      for (std::string_view target = next->target; !target.empty();) {
        const size_t end = std::min(target.find('/'), target.size());
        rest.emplace_back(target.substr(0, end));
        target.remove_prefix(std::min(end + 1, target.size()));
      }
      std::reverse(rest.begin() + static_cast<std::ptrdiff_t>(mark), rest.end());
    } else {
      return Refuse(ENOTDIR, entry, "\"" + part + "\" on the way is no directory");
    }
  }
  return stack.back();
}

void LayerTree::SetOpaque(Inode& directory) {
  std::erase_if(directory.xattrs, [](const auto& xattr) { return xattr.first == kOpaqueXattr; });
  directory.xattrs.emplace_back(kOpaqueXattr, "y");
}

void LayerTree::Release(Inode& inode) {
  --inode.links;
  for (const auto& [name, child] : inode.children) Release(*child);
  inode.children.clear();
}

base::Result<> LayerTree::SetXattrs(Inode& inode, const TarEntry& entry) {
  const bool opaque =
      std::ranges::any_of(inode.xattrs, [](const auto& x) { return x.first == kOpaqueXattr; });
  inode.xattrs.clear();
  uint64_t bytes = 0;
  for (const auto& [name, value] : entry.xattrs) {
    const bool acl = name == "system.posix_acl_access" || name == "system.posix_acl_default";
    const bool prefixed = (name.starts_with("user.") && name.size() > 5) ||
                          (name.starts_with("trusted.") && name.size() > 8) ||
                          (name.starts_with("security.") && name.size() > 9);
    // overlayfs would act on its own attributes in a layer (redirect into another directory, metadata-only
    // copies); others, like com.apple.*, mean nothing to Linux.
    if (name.starts_with(kOverlayXattrs) || (!acl && !prefixed)) {
      ++dropped_;
      continue;
    }
    if (name.size() > XATTR_NAME_MAX)
      return Refuse(ENAMETOOLONG, entry.path, "attribute name beyond 255 bytes");
    if (acl && !IsAcl(value)) return Refuse(EBADMSG, entry.path, "malformed " + name);
    if (acl && S_ISLNK(inode.mode)) return Refuse(EINVAL, entry.path, "ACL on a symbolic link");
    // Rounded as on disk: a header of 16 bytes, name and value padded to 4.
    bytes += 16 + ((name.size() + 3) & ~3ULL) + ((value.size() + 3) & ~3ULL);
    if (bytes > limits_.xattr_bytes) {
      return Refuse(E2BIG, entry.path,
                    "more than " + std::to_string(limits_.xattr_bytes) + " bytes of attributes, at " + name);
    }
    inode.xattrs.emplace_back(name, value);
  }
  GCS_TRY(Charge(bytes, entry.path));
  if (opaque) SetOpaque(inode);
  return {};
}

base::Result<> LayerTree::SetMetadata(Inode& inode, const TarEntry& entry) {
  constexpr uint64_t kMaxId = 0xffff'fffeULL;  // (uid_t)-1 means "none"
  if (entry.uid > kMaxId || entry.gid > kMaxId) return Refuse(EOVERFLOW, entry.path, "owner beyond 32 bits");
  inode.mode = (inode.mode & S_IFMT) | (S_ISLNK(inode.mode) ? 0777 : (entry.mode & 07777));
  inode.uid = static_cast<uint32_t>(entry.uid);
  inode.gid = static_cast<uint32_t>(entry.gid);
  inode.mtime = entry.mtime;
  inode.mtime_ns = entry.mtime_ns;
  return SetXattrs(inode, entry);
}

base::Result<Inode*> LayerTree::AddWhiteout(Inode& parent, std::string_view name, const std::string& entry) {
  if (name == kOpaque) {
    SetOpaque(parent);
    return nullptr;
  }
  if (name.starts_with(kAufs)) {  // aufs' own bookkeeping, which no other storage driver understands
    ++dropped_;
    return nullptr;
  }
  const std::string hidden(name.substr(kWhiteout.size()));
  if (hidden.empty() || hidden == "." || hidden == "..") return Refuse(EINVAL, entry, "whiteout of no name");
  const auto found = parent.children.find(hidden);
  if (found != parent.children.end()) {
    // It hides what lower layers have, never what its own layer adds (image-spec layer.md, "Whiteouts").
    if (IsDirectory(*found->second)) SetOpaque(*found->second);
    return nullptr;
  }
  GCS_ASSIGN(Inode * made, NewInode(S_IFCHR, hidden, entry));
  made->whiteout = true;
  parent.children[hidden] = made;
  return nullptr;
}

base::Result<Inode*> LayerTree::AddHardLink(Inode& parent, const std::string& leaf, const TarEntry& entry) {
  if (entry.size != 0) return Refuse(ENOTSUP, entry.path, "hard link with data of its own");
  GCS_ASSIGN(const Path path, Split(entry.link, entry.path));
  if (path.empty()) return Refuse(EPERM, entry.path, "hard link to the root");
  GCS_ASSIGN(Inode * from, Parent(path, /*make=*/false, entry.path));
  const auto found = from->children.find(path.back());
  if (found == from->children.end() || found->second->whiteout) {
    return Refuse(ENOENT, entry.path, "hard link to \"" + entry.link + "\", which is missing");
  }
  Inode* target = found->second;
  if (IsDirectory(*target)) return Refuse(EPERM, entry.path, "hard link to a directory");
  const auto old = parent.children.find(leaf);
  if (old != parent.children.end()) {
    if (old->second == target) return nullptr;
    // The old file may be a directory above the target.
    target->links++;
    Release(*old->second);
    target->links--;
    if (target->links == 0)
      return Refuse(EINVAL, entry.path, "hard link replaces a directory above its target");
  }
  if (target->links >= kMaxLinks) return Refuse(EMLINK, entry.path, "more than 65000 links");
  GCS_TRY(Charge(leaf.size(), entry.path));
  ++target->links;
  parent.children[leaf] = target;
  return nullptr;
}

base::Result<Inode*> LayerTree::Add(const TarEntry& entry) {
  if (++entries_ > limits_.entries) {
    return Refuse(E2BIG, entry.path, "more than " + std::to_string(limits_.entries) + " entries");
  }
  GCS_ASSIGN(const Path path, Split(entry.path, entry.path));
  for (size_t i = 0; i + 1 < path.size(); ++i) {
    if (path[i].starts_with(kAufs)) {
      ++dropped_;
      return nullptr;
    }
    if (path[i].starts_with(kWhiteout)) return Refuse(EINVAL, entry.path, "a whiteout has no content");
  }
  const bool directory = !entry.hard_link && S_ISDIR(entry.mode);
  if (path.empty()) {
    if (!directory) return Refuse(EINVAL, entry.path, "the root must be a directory");
    GCS_TRY(SetMetadata(*root_, entry));
    return nullptr;
  }
  GCS_ASSIGN(Inode * parent, Parent(path, /*make=*/true, entry.path));
  const std::string& leaf = path.back();
  if (leaf.starts_with(kWhiteout)) return AddWhiteout(*parent, leaf, entry.path);
  if (entry.hard_link) return AddHardLink(*parent, leaf, entry);

  const auto found = parent->children.find(leaf);
  if (directory) {
    Inode* inode = nullptr;
    if (found != parent->children.end() && IsDirectory(*found->second)) {
      inode = found->second;
    } else {
      GCS_ASSIGN(inode, MakeDirectory(*parent, leaf, entry.path));
    }
    GCS_TRY(SetMetadata(*inode, entry));
    return nullptr;
  }

  const uint32_t type = entry.mode & S_IFMT;
  if (type != S_IFREG && type != S_IFLNK && type != S_IFCHR && type != S_IFBLK && type != S_IFIFO &&
      type != S_IFSOCK) {
    return Refuse(ENOTSUP, entry.path, "unknown type of file");
  }
  if (type != S_IFREG && entry.size != 0 && type != S_IFLNK)
    return Refuse(EBADMSG, entry.path, "data in a special file");
  GCS_ASSIGN(Inode * inode, NewInode(type, leaf, entry.path));
  GCS_TRY(SetMetadata(*inode, entry));
  if (type == S_IFREG) {
    if (entry.size > limits_.content_bytes - content_) {
      return Refuse(EFBIG, entry.path,
                    "files of more than " + std::to_string(limits_.content_bytes) + " bytes");
    }
    if (entry.size / kBlockSize > kMaxFileBlocks) return Refuse(EFBIG, entry.path, "beyond ext4's file size");
    content_ += entry.size;
    inode->size = entry.size;
  } else if (type == S_IFLNK) {
    if (entry.link.empty()) return Refuse(EINVAL, entry.path, "symbolic link to nothing");
    if (entry.link.size() >= std::min<uint32_t>(limits_.path_bytes, PATH_MAX)) {
      return Refuse(ENAMETOOLONG, entry.path, "target of a symbolic link");
    }
    GCS_TRY(Charge(entry.link.size(), entry.path));
    inode->target = entry.link;
  } else if (type == S_IFCHR || type == S_IFBLK) {
    if (entry.rdev_major > kMaxMajor || entry.rdev_minor > kMaxMinor) {
      return Refuse(EINVAL, entry.path, "device number beyond 12:20 bits");
    }
    if (type == S_IFCHR && entry.rdev_major == 0 && entry.rdev_minor == 0) {
      return Refuse(EINVAL, entry.path, "character device 0:0 is overlayfs' whiteout");
    }
    inode->rdev_major = static_cast<uint32_t>(entry.rdev_major);
    inode->rdev_minor = static_cast<uint32_t>(entry.rdev_minor);
  }
  if (found != parent->children.end()) {
    Release(*found->second);
    found->second = inode;
  } else {
    parent->children[leaf] = inode;
  }
  return type == S_IFREG ? inode : nullptr;
}

}  // namespace gcs::host
