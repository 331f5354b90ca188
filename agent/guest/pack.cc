// SPDX-License-Identifier: Apache-2.0
#include "guest/pack.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <string_view>

#include "base/paths.h"
#include "guest/tar.h"

namespace gcs::guest {

using base::MakeError;
using base::Result;

namespace {

constexpr size_t kMaxDepth = 256;
constexpr size_t kMaxName = 64 << 10;
// Further files of several names are packed as files of their own.
constexpr size_t kMaxLinks = 1 << 16;

// An O_PATH descriptor's object, opened: itself and nothing that has taken its name since.
Result<base::Fd> Reopen(const base::Fd& object, int flags) {
  return base::OpenFile("/proc/self/fd/" + std::to_string(object.get()), flags | O_RDONLY | O_NOCTTY);
}

bool Portable(std::string_view name) { return name.starts_with("user.") || name == "security.capability"; }

Result<> ReadXattrs(int fd, const std::string& path, TarEntry& entry) {
  std::string names(XATTR_LIST_MAX, '\0');
  const ssize_t length = flistxattr(fd, names.data(), names.size());
  if (length < 0) {
    if (errno == EOPNOTSUPP) return {};
    return base::ErrnoError("flistxattr", path);
  }
  names.resize(static_cast<size_t>(length));
  for (size_t at = 0; at < names.size(); at = names.find('\0', at) + 1) {
    const std::string name = names.substr(at, names.find('\0', at) - at);
    if (!Portable(name)) continue;
    std::string value(XATTR_SIZE_MAX, '\0');
    const ssize_t size = fgetxattr(fd, name.c_str(), value.data(), value.size());
    if (size < 0 && errno == ENODATA) continue;  // removed meanwhile
    if (size < 0) return base::ErrnoError("fgetxattr", path, name);
    value.resize(static_cast<size_t>(size));
    entry.xattrs.emplace_back(name, value);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Packer>> Packer::Create(const base::Fd& root, const std::string& path) {
  const bool follow = path.ends_with('/') || path.ends_with("/.") || path == "." || path.empty();
  base::Fd object(base::OpenInRoot(root.get(), path.c_str(), follow ? O_PATH : O_PATH | O_NOFOLLOW));
  if (!object) return MakeError(-object.get(), "open", path);
  std::string_view name = path;
  while (name.ends_with('/') || name.ends_with("/.")) name.remove_suffix(1);
  name = name.substr(name.rfind('/') + 1);  // npos + 1 is 0
  if (name.empty() || name == "..") name = ".";
  return std::unique_ptr<Packer>(new Packer(std::move(object), std::string(name)));
}

Result<> Packer::Add(base::Fd object, const std::string& name, std::string& out) {
  struct stat st{};
  if (fstat(object.get(), &st) != 0) return base::ErrnoError("fstat", name);
  if (S_ISSOCK(st.st_mode)) return {};
  TarEntry entry;
  entry.path = name;
  entry.mode = st.st_mode & 07777;
  entry.uid = st.st_uid;
  entry.gid = st.st_gid;
  entry.mtime = st.st_mtim.tv_sec;
  entry.mtime_ns = static_cast<uint32_t>(st.st_mtim.tv_nsec);
  const bool directory = S_ISDIR(st.st_mode);
  if (!directory && st.st_nlink > 1) {
    const auto known = links_.find({st.st_dev, st.st_ino});
    if (known != links_.end()) {
      entry.type = TarType::kHardLink;
      entry.link = known->second;
      AppendTarHeader(out, entry);
      return {};
    }
    if (links_.size() < kMaxLinks) links_.emplace(std::pair(st.st_dev, st.st_ino), name);
  }
  if (S_ISREG(st.st_mode)) {
    GCS_ASSIGN(file_, Reopen(object, 0));
    GCS_TRY(ReadXattrs(file_.get(), name, entry));
    entry.size = static_cast<uint64_t>(st.st_size);
    file_name_ = name;
    left_ = entry.size;
    padding_ = TarPadding(entry.size);
    if (left_ == 0) file_.Reset();
  } else if (directory) {
    if (levels_.size() == kMaxDepth) return MakeError(EINVAL, "pack", name, "deeper than 256 directories");
    GCS_ASSIGN(base::Fd fd, Reopen(object, O_DIRECTORY));
    GCS_TRY(ReadXattrs(fd.get(), name, entry));
    entry.type = TarType::kDirectory;
    entry.path += '/';
    Level level{entry.path, {fdopendir(fd.get()), closedir}};
    if (level.directory == nullptr) return base::ErrnoError("fdopendir", name);
    static_cast<void>(fd.Release());  // closedir's
    levels_.push_back(std::move(level));
  } else if (S_ISLNK(st.st_mode)) {
    entry.type = TarType::kSymlink;
    entry.link.resize(PATH_MAX);
    const ssize_t n = readlinkat(object.get(), "", entry.link.data(), entry.link.size());
    if (n < 0) return base::ErrnoError("readlinkat", name);
    entry.link.resize(static_cast<size_t>(n));
  } else {
    entry.type = S_ISFIFO(st.st_mode)  ? TarType::kFifo
                 : S_ISCHR(st.st_mode) ? TarType::kCharDevice
                                       : TarType::kBlockDevice;
    if (!S_ISFIFO(st.st_mode)) {
      entry.major = major(st.st_rdev);
      entry.minor = minor(st.st_rdev);
    }
  }
  AppendTarHeader(out, entry);
  return {};
}

// The next object of the directory being read.
Result<> Packer::Step(std::string& out) {
  Level& level = levels_.back();
  errno = 0;
  const dirent* next = readdir(level.directory.get());
  if (next == nullptr) {
    if (errno != 0) return base::ErrnoError("readdir", level.name);
    levels_.pop_back();
    return {};
  }
  const std::string_view leaf(next->d_name);
  if (leaf == "." || leaf == "..") return {};
  const std::string name = level.name + next->d_name;
  if (name.size() > kMaxName) return MakeError(ENAMETOOLONG, "pack", name.substr(0, 256));
  base::Fd object(base::OpenInRoot(dirfd(level.directory.get()), next->d_name, O_PATH | O_NOFOLLOW));
  if (object.get() == -ENOENT) return {};  // removed meanwhile
  if (!object) return MakeError(-object.get(), "open", name);
  return Add(std::move(object), name, out);
}

Result<> Packer::ReadFile(size_t most, std::string& out) {
  const size_t begin = out.size();
  const size_t want = std::min<uint64_t>(most, left_);
  out.resize(begin + want);
  size_t got = 0;
  while (got < want) {
    const ssize_t n = read(file_.get(), out.data() + begin + got, want - got);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::ErrnoError("read", file_name_);
    if (n == 0) break;  // shorter now: the rest of `out` is zeros
    got += static_cast<size_t>(n);
  }
  left_ -= want;
  if (left_ == 0) {
    file_.Reset();
    out.append(padding_, '\0');
  }
  return {};
}

Result<std::string> Packer::Next(size_t most) {
  std::string out;
  if (object_) GCS_TRY(Add(std::move(object_), name_, out));
  while (out.size() < most && !ended_) {
    if (left_ > 0) {
      GCS_TRY(ReadFile(most - out.size(), out));
    } else if (!levels_.empty()) {
      GCS_TRY(Step(out));
    } else {
      AppendTarEnd(out);
      ended_ = true;
    }
  }
  return out;
}

}  // namespace gcs::guest
