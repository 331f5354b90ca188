// SPDX-License-Identifier: Apache-2.0
#include <dirent.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "host/image/pack.h"

namespace gcs::host {
namespace {

using Names = std::vector<std::string>;
// Where a file with several names was seen first.
using Seen = std::map<std::pair<dev_t, ino_t>, std::string>;

base::Result<Names> List(const std::string& dir) {
  struct Close {
    void operator()(DIR* d) const { closedir(d); }
  };
  const std::unique_ptr<DIR, Close> open_dir(opendir(dir.c_str()));
  if (!open_dir) return base::ErrnoError("opendir", dir);
  Names names;
  errno = 0;
  while (const dirent* entry = readdir(open_dir.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  if (errno != 0) return base::ErrnoError("readdir", dir);
  std::ranges::sort(names);
  return names;
}

base::Result<> ReadXattrs(const std::string& path, PackFile& file) {
  std::string list(64 << 10, '\0');
  const ssize_t size = llistxattr(path.c_str(), list.data(), list.size());
  if (size < 0) return errno == EOPNOTSUPP ? base::Result<>() : base::ErrnoError("llistxattr", path);
  list.resize(static_cast<size_t>(size));
  for (size_t at = 0; at < list.size();) {
    const std::string name = list.c_str() + at;
    at += name.size() + 1;
    if (!name.starts_with("user.") && !name.starts_with("security.") && !name.starts_with("trusted."))
      continue;
    std::string value(64 << 10, '\0');
    const ssize_t got = lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
    if (got < 0) return base::ErrnoError("lgetxattr", path + " " + name);
    value.resize(static_cast<size_t>(got));
    file.xattrs.emplace_back(name, std::move(value));
  }
  std::ranges::sort(file.xattrs);
  return {};
}

base::Result<> Walk(const std::string& dir, const std::string& prefix, const TreeOptions& options, Seen& seen,
                    std::vector<PackFile>& out) {
  GCS_ASSIGN(const Names names, List(dir));
  for (const std::string& name : names) {
    const std::string path = dir + "/" + name;
    struct stat st{};
    if (lstat(path.c_str(), &st) != 0) return base::ErrnoError("lstat", path);
    if (S_ISSOCK(st.st_mode)) return base::MakeError(ENOTSUP, "pack", path, "tar has no sockets");
    PackFile file;
    file.path = prefix + name;
    file.mode = st.st_mode;
    file.uid = options.keep_owners ? st.st_uid : 0;
    file.gid = options.keep_owners ? st.st_gid : 0;
    file.mtime = options.mtime;
    file.rdev_major = major(st.st_rdev);
    file.rdev_minor = minor(st.st_rdev);
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1) {
      const auto [first, added] = seen.try_emplace({st.st_dev, st.st_ino}, file.path);
      if (!added) file.hard_link = first->second;
    }
    if (S_ISREG(st.st_mode)) file.source = path;
    if (S_ISLNK(st.st_mode)) {
      file.link.resize(4096);
      const ssize_t size = readlink(path.c_str(), file.link.data(), file.link.size());
      if (size < 0) return base::ErrnoError("readlink", path);
      file.link.resize(static_cast<size_t>(size));
    }
    GCS_TRY(ReadXattrs(path, file));
    const bool directory = S_ISDIR(st.st_mode);
    out.push_back(std::move(file));
    if (directory) GCS_TRY(Walk(path, prefix + name + "/", options, seen, out));
  }
  return {};
}

}  // namespace

base::Result<std::vector<PackFile>> ListTree(const std::string& dir, const TreeOptions& options) {
  std::vector<PackFile> out;
  Seen seen;
  GCS_TRY(Walk(dir, "", options, seen, out));
  return out;
}

}  // namespace gcs::host
