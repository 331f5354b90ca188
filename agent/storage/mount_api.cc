// SPDX-License-Identifier: Apache-2.0
#include "storage/mount_api.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/paths.h"

namespace gcs::storage {

namespace {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

constexpr size_t kLongestValue = 255;  // fsconfig(2): strndup_user(value, 256)
constexpr size_t kMountInfoLimit = 16 << 20;

}  // namespace

Result<FsContext> FsContext::Open(const std::string& fs_type) {
  Fd fd(fsopen(fs_type.c_str(), FSOPEN_CLOEXEC));
  if (!fd) {
    if (errno == ENODEV) return MakeError(ENODEV, "fsopen", fs_type, "the kernel has no such file system");
    return ErrnoError("fsopen", fs_type);
  }
  return FsContext(std::move(fd), fs_type);
}

std::unexpected<base::Error> FsContext::Failure(int err, std::string_view step, const std::string& object) {
  // One message a read, "e text\n", "w text\n" or "i text\n"; ENODATA ends.
  std::string message;
  std::array<char, 1024> line;
  for (ssize_t n = read(fd_.get(), line.data(), line.size()); n > 0;
       n = read(fd_.get(), line.data(), line.size())) {
    std::string_view text(line.data(), static_cast<size_t>(n));
    if (text.size() > 2 && text[1] == ' ') text.remove_prefix(2);
    while (text.ends_with('\n')) text.remove_suffix(1);
    if (!message.empty()) message += "; ";
    message += text;
  }
  return MakeError(err, step, object, message);
}

Result<> FsContext::SetFlag(const std::string& key) {
  if (fsconfig(fd_.get(), FSCONFIG_SET_FLAG, key.c_str(), nullptr, 0) != 0) {
    return Failure(errno, "fsconfig", fs_type_ + " " + key);
  }
  return {};
}

Result<> FsContext::SetString(const std::string& key, const std::string& value) {
  if (value.size() > kLongestValue) {
    return MakeError(ENAMETOOLONG, "fsconfig", fs_type_ + " " + key, "the value has more than 255 bytes");
  }
  if (fsconfig(fd_.get(), FSCONFIG_SET_STRING, key.c_str(), value.c_str(), 0) != 0) {
    return Failure(errno, "fsconfig", fs_type_ + " " + key + "=" + value);
  }
  return {};
}

Result<> FsContext::SetDirectory(const std::string& key, const std::string& path, int directory) {
  if (path.size() <= kLongestValue && path.find_first_of("\\,:") == std::string::npos)
    return SetString(key, path);
  return SetString(key, "/proc/self/fd/" + std::to_string(directory));
}

Result<Fd> FsContext::Create(uint64_t attributes, const std::string& object) {
  if (fsconfig(fd_.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return Failure(errno, "mount " + fs_type_, object);
  }
  Fd mount(fsmount(fd_.get(), FSMOUNT_CLOEXEC, static_cast<unsigned>(attributes)));
  if (!mount) return Failure(errno, "fsmount " + fs_type_, object);
  return mount;
}

Result<Fd> CloneMount(int directory, uint64_t attributes, const std::string& object) {
  Fd mount(open_tree(directory, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH));
  if (!mount) return ErrnoError("open_tree", object);
  if (attributes != 0) {
    mount_attr change{.attr_set = attributes};
    // The atime modes are a field of their own: to set one, the whole field has to be given up
    // (mount_setattr(2)).
    if ((attributes & MOUNT_ATTR__ATIME) != 0) change.attr_clr = MOUNT_ATTR__ATIME;
    if (mount_setattr(mount.get(), "", AT_EMPTY_PATH, &change, sizeof change) != 0) {
      return ErrnoError("mount_setattr", object);
    }
  }
  return mount;
}

Result<> Attach(int mount, int directory, const std::string& path) {
  if (move_mount(mount, "", directory, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0) {
    return ErrnoError("move_mount", path);
  }
  return {};
}

Result<std::vector<base::MountInfo>> ReadMounts() {
  GCS_ASSIGN(const std::string text, base::ReadFile("/proc/self/mountinfo", kMountInfoLimit));
  return base::ParseMountInfo(text);
}

Result<uint64_t> MountIdOf(int fd, const std::string& object) {
  // Not statx: it asks the file system for the other attributes whatever the mask says (v9fs by a message).
  GCS_ASSIGN(const std::string info, base::ReadFile("/proc/self/fdinfo/" + std::to_string(fd)));
  constexpr std::string_view kKey = "mnt_id:";
  const size_t at = info.find(kKey);
  if (at == std::string::npos) return MakeError(ENOSYS, "read fdinfo", object, "no mnt_id");
  return std::strtoull(info.c_str() + at + kKey.size(), nullptr, 10);
}

Result<> UnmountAt(const std::string& path, uint64_t mount_id) {
  uint64_t seen = 0;
  {
    // Closed before umount2: it would keep the mount busy. An O_PATH descriptor costs no message to a server.
    const auto top = base::OpenFile(path, O_PATH | O_NOFOLLOW);
    if (top) {
      GCS_ASSIGN(seen, MountIdOf(top->get(), path));
    }
  }
  if (seen != mount_id) {
    GCS_ASSIGN(const std::vector<base::MountInfo> mounts, ReadMounts());
    const auto own = std::ranges::find(mounts, mount_id, &base::MountInfo::id);
    if (own == mounts.end()) return {};
    if (own->target != path || std::ranges::find(mounts, mount_id, &base::MountInfo::parent) != mounts.end())
      return MakeError(EBUSY, "umount2", path, "something else is mounted over it");
    // A server that is gone can let even the look-up fail. umount2 does without one.
  }
  if (umount2(path.c_str(), UMOUNT_NOFOLLOW) != 0) return ErrnoError("umount2", path);
  return {};
}

}  // namespace gcs::storage
