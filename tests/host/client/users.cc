// SPDX-License-Identifier: Apache-2.0
#include "host/client/users.h"

#include <ext2fs/ext2fs.h>

#include <charconv>
#include <memory>
#include <string_view>

namespace gcs::host {

namespace {

constexpr size_t kMaxFile = 1 << 20;

struct CloseFs {
  void operator()(ext2_filsys fs) const { ext2fs_free(fs); }
};
using FsPtr = std::unique_ptr<struct_ext2_filsys, CloseFs>;

std::optional<uint32_t> Number(std::string_view text) {
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> out;
  while (true) {
    const size_t end = text.find(separator);
    out.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return out;
    text.remove_prefix(end + 1);
  }
}

// The fields of the first line whose field `index` is `value`, and that has at least `count` fields.
std::vector<std::string_view> FindLine(std::string_view file, size_t index, std::string_view value,
                                       size_t count) {
  for (const std::string_view line : Split(file, '\n')) {
    std::vector<std::string_view> fields = Split(line, ':');
    if (fields.size() >= count && fields[index] == value) return fields;
  }
  return {};
}

base::Result<std::string> ReadInode(ext2_filsys fs, ext2_ino_t inode, const std::string& name) {
  ext2_file_t file = nullptr;
  if (ext2fs_file_open(fs, inode, 0, &file) != 0) return base::MakeError(EIO, "open in layer", name);
  std::string out;
  base::Result<std::string> result;
  while (true) {
    char buffer[16384];
    unsigned got = 0;
    if (ext2fs_file_read(file, buffer, sizeof buffer, &got) != 0) {
      result = base::MakeError(EIO, "read in layer", name);
      break;
    }
    if (got == 0) {
      result = std::move(out);
      break;
    }
    out.append(buffer, got);
    if (out.size() > kMaxFile) {
      result = base::MakeError(EFBIG, "read in layer", name);
      break;
    }
  }
  ext2fs_file_close(file);
  return result;
}

bool IsOpaque(ext2_filsys fs, ext2_ino_t inode) {
  struct ext2_xattr_handle* handle = nullptr;
  if (ext2fs_xattrs_open(fs, inode, &handle) != 0) return false;
  bool opaque = false;
  if (ext2fs_xattrs_read(handle) == 0) {
    void* value = nullptr;
    size_t size = 0;
    if (ext2fs_xattr_get(handle, "trusted.overlay.opaque", &value, &size) == 0) {
      opaque = size == 1 && *static_cast<char*>(value) == 'y';
      ext2fs_free_mem(&value);
    }
  }
  ext2fs_xattrs_close(&handle);
  return opaque;
}

enum class Verdict : uint8_t { kFound, kBelow, kHidden };

// Looks into one layer: the file, or whether layers below still count.
base::Result<Verdict> Look(ext2_filsys fs, const std::string& path, ext2_ino_t& found) {
  ext2_ino_t at = EXT2_ROOT_INO;
  bool hides = false;
  const std::vector<std::string_view> parts = Split(std::string_view(path).substr(1), '/');
  for (size_t i = 0; i < parts.size(); ++i) {
    hides = hides || IsOpaque(fs, at);
    ext2_ino_t next = 0;
    const std::string name(parts[i]);
    if (ext2fs_lookup(fs, at, name.c_str(), static_cast<int>(name.size()), nullptr, &next) != 0) {
      return hides ? Verdict::kHidden : Verdict::kBelow;
    }
    ext2_inode inode{};
    if (ext2fs_read_inode(fs, next, &inode) != 0) return base::MakeError(EIO, "read in layer", path);
    if (LINUX_S_ISLNK(inode.i_mode)) return base::MakeError(ELOOP, "read in layer", path, "a symbolic link");
    const bool last = i + 1 == parts.size();
    if (!last && LINUX_S_ISDIR(inode.i_mode)) {
      at = next;
      continue;
    }
    // A whiteout (device 0:0), or another type than asked for, hides what is below.
    if (!last || !LINUX_S_ISREG(inode.i_mode)) return Verdict::kHidden;
    at = next;
  }
  found = at;
  return Verdict::kFound;
}

}  // namespace

base::Result<std::optional<std::string>> ReadFromLayers(const std::vector<std::string>& disks,
                                                        const std::string& path) {
  for (auto disk = disks.rbegin(); disk != disks.rend(); ++disk) {
    ext2_filsys raw = nullptr;
    if (ext2fs_open(disk->c_str(), 0, 0, 0, unix_io_manager, &raw) != 0) {
      return base::MakeError(EIO, "open layer disk", *disk);
    }
    const FsPtr fs(raw);
    ext2_ino_t inode = 0;
    GCS_ASSIGN(const Verdict verdict, Look(raw, path, inode));
    if (verdict == Verdict::kHidden) return std::nullopt;
    if (verdict == Verdict::kBelow) continue;
    GCS_ASSIGN(std::string content, ReadInode(raw, inode, path));
    return content;
  }
  return std::nullopt;
}

base::Result<User> ResolveUser(const std::string& spec, const std::optional<std::string>& passwd,
                               const std::optional<std::string>& group) {
  const size_t colon = spec.find(':');
  const std::string name = spec.substr(0, colon);
  const std::string group_name = colon == std::string::npos ? "" : spec.substr(colon + 1);
  User user;
  std::string login;
  const std::optional<uint32_t> number = name.empty() ? std::optional<uint32_t>(0) : Number(name);
  const std::string_view users = passwd ? std::string_view(*passwd) : std::string_view();
  const auto entry = number ? FindLine(users, 2, std::to_string(*number), 6) : FindLine(users, 0, name, 6);
  if (entry.empty() && !number) {
    return base::MakeError(ENOENT, "find user", name,
                           passwd ? "not in the image's /etc/passwd" : "the image has no /etc/passwd");
  }
  if (number) user.uid = *number;
  if (!entry.empty()) {
    const auto uid = Number(entry[2]);
    const auto gid = Number(entry[3]);
    if (!uid || !gid)
      return base::MakeError(EINVAL, "find user", name, "the image's /etc/passwd is malformed");
    user.uid = *uid;
    user.gid = *gid;
    user.home = entry[5];
    login = entry[0];
  }
  const std::string_view groups = group ? std::string_view(*group) : std::string_view();
  if (!group_name.empty()) {
    const auto gid = Number(group_name);
    if (gid) {
      user.gid = *gid;
      return user;
    }
    const auto line = FindLine(groups, 0, group_name, 3);
    const auto found = line.empty() ? std::nullopt : Number(line[2]);
    if (!found) return base::MakeError(ENOENT, "find group", group_name, "not in the image's /etc/group");
    user.gid = *found;
    return user;
  }
  if (login.empty()) return user;
  for (const std::string_view line : Split(groups, '\n')) {
    const auto fields = Split(line, ':');
    if (fields.size() < 4) continue;
    const auto gid = Number(fields[2]);
    for (const std::string_view member : Split(fields[3], ',')) {
      if (gid && member == login && *gid != user.gid) user.additional_gids.push_back(*gid);
    }
  }
  return user;
}

base::Result<User> FindUser(const std::string& spec, const std::vector<std::string>& disks) {
  auto passwd = ReadFromLayers(disks, "/etc/passwd");
  auto group = ReadFromLayers(disks, "/etc/group");
  // Numbers don't need the files: an image may keep them where we don't look.
  const bool numeric = spec.find_first_not_of("0123456789:") == std::string::npos;
  if (!numeric && !passwd) return std::unexpected(passwd.error());
  if (!numeric && !group) return std::unexpected(group.error());
  return ResolveUser(spec, passwd ? *passwd : std::nullopt, group ? *group : std::nullopt);
}

}  // namespace gcs::host
