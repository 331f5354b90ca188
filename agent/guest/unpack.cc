// SPDX-License-Identifier: Apache-2.0
#include "guest/unpack.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "base/paths.h"

namespace gcs::guest {

using base::MakeError;
using base::Result;

namespace {

constexpr size_t kMaxDepth = 256;

timespec Time(int64_t seconds, uint32_t ns) { return {.tv_sec = seconds, .tv_nsec = ns}; }

// The name without what means nothing in it; "" for the directory itself.
Result<std::string> Clean(std::string_view name) {
  std::string clean;
  while (!name.empty()) {
    const size_t end = std::min(name.find('/'), name.size());
    const std::string_view part = name.substr(0, end);
    name.remove_prefix(std::min(end + 1, name.size()));
    if (part.empty() || part == ".") continue;
    if (part == "..") return MakeError(EINVAL, "unpack", clean, "a name with \"..\"");
    if (!clean.empty()) clean += '/';
    clean += part;
  }
  if (clean.size() >= PATH_MAX) return MakeError(ENAMETOOLONG, "unpack", clean.substr(0, 64));
  return clean;
}

// In a directory that the container shares: no other name than ours, and none that can be foreseen.
Result<std::string> TemporaryName() {
  uint64_t random[2];
  if (getrandom(random, sizeof random, 0) != sizeof random) return base::ErrnoError("getrandom");
  char name[64];
  snprintf(name, sizeof name, ".gcs-copy.%016llx%016llx", static_cast<unsigned long long>(random[0]),
           static_cast<unsigned long long>(random[1]));
  return name;
}

}  // namespace

Result<std::unique_ptr<Unpacker>> Unpacker::Create(base::Fd root, std::string path) {
  const base::Fd directory(base::OpenInRoot(root.get(), path.c_str(), O_PATH | O_DIRECTORY));
  if (!directory) return MakeError(-directory.get(), "open directory", path);
  return std::unique_ptr<Unpacker>(new Unpacker(std::move(root), std::move(path)));
}

Unpacker::~Unpacker() {
  if (!temporary_.empty()) unlinkat(parent_.get(), temporary_.c_str(), 0);
}

Result<> Unpacker::Finish() {
  GCS_TRY(decoder_.Finish());
  return CloseDirectories("");
}

std::unexpected<base::Error> Unpacker::Failed(std::string_view step) const {
  return base::ErrnoError(step, entry_.path);
}

// Those that do not hold `keep` get their time: in a stream of any sane order nothing follows in them.
Result<> Unpacker::CloseDirectories(std::string_view keep) {
  while (!open_.empty()) {
    const Open& last = open_.back();
    if (keep.starts_with(last.path) && keep.size() > last.path.size() && keep[last.path.size()] == '/') break;
    const timespec times[2] = {Time(last.mtime, last.mtime_ns), Time(last.mtime, last.mtime_ns)};
    if (futimens(last.fd.get(), times) != 0) return base::ErrnoError("utimensat", last.path);
    open_.pop_back();
  }
  return {};
}

Result<> Unpacker::SetAttributes(int fd) const {
  // In this order: a new owner clears set-user-id bits and capabilities.
  if (fchown(fd, entry_.uid, entry_.gid) != 0) return Failed("fchown");
  if (fchmod(fd, entry_.mode) != 0) return Failed("fchmod");
  for (const auto& [name, value] : entry_.xattrs) {
    if (fsetxattr(fd, name.c_str(), value.data(), value.size(), 0) != 0) {
      return base::ErrnoError("fsetxattr", entry_.path, name.substr(0, 64));
    }
  }
  return {};
}

Result<> Unpacker::MakeDirectory(const std::string& path) {
  const base::Fd made(base::MkdirAllInRoot(root_.get(), path.c_str(), 0755));
  if (!made) return MakeError(-made.get(), "mkdir", entry_.path);
  base::Fd directory(base::OpenInRoot(made.get(), ".", O_RDONLY | O_DIRECTORY));
  if (!directory) return MakeError(-directory.get(), "open directory", entry_.path);
  GCS_TRY(SetAttributes(directory.get()));
  if (open_.size() == kMaxDepth)
    return MakeError(EINVAL, "unpack", entry_.path, "deeper than 256 directories");
  open_.push_back({entry_.path, std::move(directory), entry_.mtime, entry_.mtime_ns});
  return {};
}

Result<> Unpacker::MakeTemporary() {
  GCS_ASSIGN(const std::string name, TemporaryName());
  switch (entry_.type) {
    case TarType::kFile:
      file_.Reset(
          base::OpenInRoot(parent_.get(), name.c_str(), O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY, 0600));
      if (!file_) return MakeError(-file_.get(), "create", entry_.path);
      break;
    case TarType::kHardLink: {
      GCS_ASSIGN(const std::string target, Clean(entry_.link));
      char leaf[NAME_MAX + 1];
      const base::Fd parent(base::OpenParentInRoot(root_.get(), (path_ + "/" + target).c_str(), 0, leaf));
      if (!parent) return MakeError(-parent.get(), "link", entry_.path, entry_.link.substr(0, 256));
      if (linkat(parent.get(), leaf, parent_.get(), name.c_str(), 0) != 0) return Failed("link");
      break;
    }
    case TarType::kSymlink:
      if (symlinkat(entry_.link.c_str(), parent_.get(), name.c_str()) != 0) return Failed("symlink");
      break;
    default: {
      const mode_t type = entry_.type == TarType::kFifo         ? S_IFIFO
                          : entry_.type == TarType::kCharDevice ? S_IFCHR
                                                                : S_IFBLK;
      if (mknodat(parent_.get(), name.c_str(), type | 0600, makedev(entry_.major, entry_.minor)) != 0) {
        return Failed("mknod");
      }
    }
  }
  temporary_ = name;
  return {};
}

Result<> Unpacker::Begin(const TarEntry& entry) {
  if (++entries_ > kMaxEntries) return MakeError(EFBIG, "unpack", {}, "more than a million entries");
  if (entry.size > kMaxBytes - bytes_) return MakeError(EFBIG, "unpack", entry.path, "more than 1 TiB");
  entry_ = entry;
  GCS_ASSIGN(entry_.path, Clean(entry.path));
  GCS_TRY(CloseDirectories(entry_.path));
  if (entry_.path.empty()) {
    if (entry_.type == TarType::kDirectory) return {};
    return MakeError(EINVAL, "unpack", entry.path, "an entry without a name");
  }
  const std::string path = path_ + "/" + entry_.path;
  if (entry_.type == TarType::kDirectory) return MakeDirectory(path);
  char leaf[NAME_MAX + 1];
  parent_.Reset(base::OpenParentInRoot(root_.get(), path.c_str(), 0755, leaf));
  if (!parent_) return MakeError(-parent_.Release(), "open directory of", entry_.path);
  leaf_ = leaf;
  return MakeTemporary();
}

Result<> Unpacker::Data(std::string_view bytes) {
  bytes_ += bytes.size();
  while (!bytes.empty()) {
    const ssize_t n = write(file_.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failed("write");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

Result<> Unpacker::End() {
  if (temporary_.empty()) return {};  // a directory
  const timespec times[2] = {Time(entry_.mtime, entry_.mtime_ns), Time(entry_.mtime, entry_.mtime_ns)};
  if (entry_.type == TarType::kFile) {
    GCS_TRY(SetAttributes(file_.get()));
    if (futimens(file_.get(), times) != 0) return Failed("utimensat");
    file_.Reset();
  } else if (entry_.type != TarType::kHardLink) {
    const base::Fd made(base::OpenInRoot(parent_.get(), temporary_.c_str(), O_PATH | O_NOFOLLOW));
    if (!made) return MakeError(-made.get(), "open", entry_.path);
    if (fchownat(made.get(), "", entry_.uid, entry_.gid, AT_EMPTY_PATH) != 0) return Failed("fchownat");
    // A link has no permissions. By the descriptor: the name may have become a link meanwhile.
    const std::string self = "/proc/self/fd/" + std::to_string(made.get());
    if (entry_.type != TarType::kSymlink && chmod(self.c_str(), entry_.mode) != 0) return Failed("chmod");
    if (utimensat(made.get(), "", times, AT_EMPTY_PATH) != 0) return Failed("utimensat");
  }
  if (renameat(parent_.get(), temporary_.c_str(), parent_.get(), leaf_.c_str()) != 0) return Failed("rename");
  // Of two links to one file rename(2) leaves both.
  if (entry_.type == TarType::kHardLink) unlinkat(parent_.get(), temporary_.c_str(), 0);
  temporary_.clear();
  return {};
}

}  // namespace gcs::guest
