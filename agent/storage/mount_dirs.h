// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::storage {

// The directories that mounts are put on. Each is made below one of the roots, component by component,
// without following symbolic links, and goes again, with the parents that were made for it, when its mount
// goes. Any thread.
class MountDirs {
 public:
  // `reserved`: below the roots, but not for mounts.
  explicit MountDirs(std::vector<std::string> roots, std::vector<std::string> reserved = {})
      : roots_(std::move(roots)), reserved_(std::move(reserved)) {}

  // EINVAL unless `path` is absolute, free of empty, "." and ".." components and strictly below a root,
  // outside of what is reserved.
  [[nodiscard]] base::Result<> Check(const std::string& path) const;

  // An O_PATH descriptor of the directory, made with its parents (0755) as far as missing. What is made here
  // is gone again if this fails. ELOOP or ENOTDIR if a symbolic link or a file is in the way.
  base::Result<base::Fd> Make(const std::string& path);

  // Takes `path` and its parents for made here: by an earlier life of the agent.
  void Adopt(const std::string& path);

  // Removes what Make made for `path` and nobody else needs; directories that were there before or hold
  // something stay.
  void Remove(const std::string& path);

 private:
  [[nodiscard]] const std::string* RootOf(const std::string& path) const;
  void RemoveLocked(std::string path);

  const std::vector<std::string> roots_, reserved_;
  std::mutex mutex_;  // makes the walk of Make and the removal of an empty parent exclude each other
  std::set<std::string> made_;
};

// True if `path` is `ancestor` or lies below it; both absolute and normal.
bool IsAtOrBelow(std::string_view path, std::string_view ancestor);

// Splits "a/b/c". EINVAL for an empty path, an absolute one, or one with empty, "." or ".." components or NUL
// bytes.
base::Result<std::vector<std::string>> SplitRelative(std::string_view path, std::string_view step);

// Opens (O_PATH) the directory `name` in `parent`, made with `mode` if missing; `made` tells. Follows no
// symbolic link and, unless it made it, crosses no mount.
base::Result<base::Fd> OpenOrMakeDir(int parent, const std::string& name, mode_t mode, bool* made);

// rm -rf of `name` in `parent`: follows no symbolic link, crosses no mount (EBUSY). ENOENT is success.
base::Result<> RemoveTree(int parent, const std::string& name);

// Directories that an operation made and takes back unless it succeeds.
class MadeDirs {
 public:
  MadeDirs() = default;
  MadeDirs(const MadeDirs&) = delete;
  MadeDirs& operator=(const MadeDirs&) = delete;
  ~MadeDirs() { RemoveAll(); }

  // OpenOrMakeDir that remembers what it made.
  base::Result<base::Fd> OpenOrMake(int parent, const std::string& name, mode_t mode, bool* made);
  void Keep() { made_.clear(); }
  void RemoveAll();

 private:
  struct Made {
    base::Fd parent;
    std::string name;
  };
  std::vector<Made> made_;
};

}  // namespace gcs::storage
