// SPDX-License-Identifier: Apache-2.0
#include "storage/mount_dirs.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <memory>

#include "base/log.h"
#include "base/paths.h"

namespace gcs::storage {

namespace {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

// The agent's stack is not the place for the depth of a directory tree that a container made.
constexpr int kDeepestTree = 2048;

Fd OpenBelow(int parent, const char* name, int flags, uint64_t resolve) {
  open_how how{.flags = static_cast<unsigned>(flags | O_CLOEXEC | O_NOFOLLOW),
               .resolve = resolve | RESOLVE_NO_SYMLINKS};
  return Fd(static_cast<int>(syscall(SYS_openat2, parent, name, &how, sizeof how)));
}

Result<> RemoveContent(Fd directory, const std::string& path, int depth) {
  if (depth > kDeepestTree) return MakeError(ELOOP, "remove", path, "the tree is too deep");
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(fdopendir(directory.get()), closedir);
  if (!dir) return ErrnoError("fdopendir", path);
  const int fd = directory.Release();
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(dir.get());
    if (entry == nullptr) break;
    const char* name = entry->d_name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
    if (unlinkat(fd, name, 0) == 0 || errno == ENOENT) continue;
    if (errno != EISDIR && errno != EPERM) return ErrnoError("unlink", path + "/" + name);
    Fd child = OpenBelow(fd, name, O_RDONLY | O_DIRECTORY, RESOLVE_NO_XDEV | RESOLVE_BENEATH);
    if (!child) return MakeError(errno == EXDEV ? EBUSY : errno, "open", path + "/" + name);
    GCS_TRY(RemoveContent(std::move(child), path + "/" + name, depth + 1));
    if (unlinkat(fd, name, AT_REMOVEDIR) != 0) return ErrnoError("rmdir", path + "/" + name);
  }
  if (errno != 0) return ErrnoError("readdir", path);
  return {};
}

}  // namespace

bool IsAtOrBelow(std::string_view path, std::string_view ancestor) {
  return path.starts_with(ancestor) && (path.size() == ancestor.size() || path[ancestor.size()] == '/');
}

Result<std::vector<std::string>> SplitRelative(std::string_view path, std::string_view step) {
  std::vector<std::string> parts;
  for (std::string_view rest = path;;) {
    const size_t slash = rest.find('/');
    const std::string_view part = rest.substr(0, slash);
    if (part.empty() || part == "." || part == ".." || part.find('\0') != std::string_view::npos) {
      return MakeError(EINVAL, step, path, "the path has to be normal: no empty, \".\" or \"..\" component");
    }
    if (part.size() > NAME_MAX) return MakeError(ENAMETOOLONG, step, path);
    parts.emplace_back(part);
    if (slash == std::string_view::npos) return parts;
    rest.remove_prefix(slash + 1);
  }
}

Result<Fd> OpenOrMakeDir(int parent, const std::string& name, mode_t mode, bool* made) {
  *made = false;
  Fd dir = OpenBelow(parent, name.c_str(), O_PATH | O_DIRECTORY, RESOLVE_BENEATH);
  if (!dir && errno == ENOENT) {
    if (mkdirat(parent, name.c_str(), 0700) == 0) {
      *made = true;
    } else if (errno != EEXIST) {
      return ErrnoError("mkdir", name);
    }
    dir = OpenBelow(parent, name.c_str(), O_PATH | O_DIRECTORY, RESOLVE_BENEATH);
    // The umask is the process's, and another thread may be changing it.
    if (dir && *made && fchmodat(parent, name.c_str(), mode, 0) != 0) {
      const auto error = ErrnoError("chmod", name);
      unlinkat(parent, name.c_str(), AT_REMOVEDIR);
      return error;
    }
  }
  if (!dir) return ErrnoError("open", name);
  return dir;
}

Result<> RemoveTree(int parent, const std::string& name) {
  Fd dir = OpenBelow(parent, name.c_str(), O_RDONLY | O_DIRECTORY, RESOLVE_NO_XDEV | RESOLVE_BENEATH);
  if (!dir) {
    if (errno == ENOENT) return {};
    return MakeError(errno == EXDEV ? EBUSY : errno, "open", name);
  }
  GCS_TRY(RemoveContent(std::move(dir), name, 0));
  if (unlinkat(parent, name.c_str(), AT_REMOVEDIR) != 0) return ErrnoError("rmdir", name);
  return {};
}

Result<Fd> MadeDirs::OpenOrMake(int parent, const std::string& name, mode_t mode, bool* made) {
  GCS_ASSIGN(Fd dir, OpenOrMakeDir(parent, name, mode, made));
  if (*made) {
    auto held = base::OpenFileAt(parent, ".", O_PATH | O_DIRECTORY);
    if (!held) {
      unlinkat(parent, name.c_str(), AT_REMOVEDIR);
      return held;
    }
    made_.push_back({std::move(*held), name});
  }
  return dir;
}

void MadeDirs::RemoveAll() {
  for (; !made_.empty(); made_.pop_back()) {
    const auto removed = RemoveTree(made_.back().parent.get(), made_.back().name);
    if (!removed) base::LogError("directory not taken back", removed.error());
  }
}

const std::string* MountDirs::RootOf(const std::string& path) const {
  const auto root = std::ranges::find_if(
      roots_, [&](const std::string& r) { return path.size() > r.size() && IsAtOrBelow(path, r); });
  return root == roots_.end() ? nullptr : &*root;
}

Result<> MountDirs::Check(const std::string& path) const {
  constexpr std::string_view kStep = "check target";
  if (!path.starts_with('/')) return MakeError(EINVAL, kStep, path, "the target has to be an absolute path");
  if (path.size() >= PATH_MAX) return MakeError(ENAMETOOLONG, kStep, path.substr(0, NAME_MAX));
  GCS_TRY(SplitRelative(std::string_view(path).substr(1), kStep));
  if (RootOf(path) == nullptr) {
    std::string roots;
    for (const auto& root : roots_) roots += (roots.empty() ? "" : ", ") + root;
    return MakeError(EINVAL, kStep, path, "the target has to lie below " + roots);
  }
  for (const auto& reserved : reserved_) {
    if (IsAtOrBelow(path, reserved)) return MakeError(EINVAL, kStep, path, reserved + " is the agent's own");
  }
  return {};
}

Result<Fd> MountDirs::Make(const std::string& path) {
  GCS_TRY(Check(path));
  const std::string& root = *RootOf(path);
  const std::lock_guard lock(mutex_);
  GCS_TRY(base::MakeDirs(root, 0755));
  GCS_ASSIGN(Fd dir, base::OpenFile(root, O_PATH | O_DIRECTORY));
  GCS_ASSIGN(const auto parts, SplitRelative(std::string_view(path).substr(root.size() + 1), "check target"));
  std::string at = root;
  std::string last_made;
  for (const auto& part : parts) {
    at += "/" + part;
    bool made = false;
    auto next = OpenOrMakeDir(dir.get(), part, 0755, &made);
    if (!next) {
      if (!last_made.empty()) RemoveLocked(last_made);
      next.error().object = at;
      return next;
    }
    if (made) {
      made_.insert(at);
      last_made = at;
    }
    dir = std::move(*next);
  }
  return dir;
}

void MountDirs::Adopt(const std::string& path) {
  const std::string* root = RootOf(path);
  if (root == nullptr) return;
  const std::lock_guard lock(mutex_);
  for (std::string at = path; at.size() > root->size(); at.resize(at.rfind('/'))) made_.insert(at);
}

void MountDirs::Remove(const std::string& path) {
  const std::lock_guard lock(mutex_);
  RemoveLocked(path);
}

void MountDirs::RemoveLocked(std::string path) {
  // Ends at the first directory that somebody else made or still needs.
  while (made_.contains(path) && (rmdir(path.c_str()) == 0 || errno == ENOENT)) {
    made_.erase(path);
    path.resize(path.rfind('/'));
  }
}

}  // namespace gcs::storage
