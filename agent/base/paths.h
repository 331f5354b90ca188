// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::base {

// Path-taking system calls live here and nowhere else (scripts/lint checks). Two families:
//
// *InRoot: below a directory that a container or an image controls. Every look-up is openat2(2) with
// RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS: symbolic links, also absolute ones and "..", stay inside `root`.
// New directories and files are made relative to the descriptor of their verified parent, one component at a
// time. They allocate nothing and return a descriptor (O_CLOEXEC) or -errno, so that a container's child
// process can use them.
//
// The rest: the agent's own paths (/proc, /sys, /run), which no container can change.

int OpenInRoot(int root, const char* path, int flags, mode_t mode = 0) noexcept;
// Makes the missing directories of `path` with `mode` (umask applies) and returns an O_PATH descriptor of the
// last.
int MkdirAllInRoot(int root, const char* path, mode_t mode) noexcept;
// Makes an empty regular file and its missing parents (0755); an existing object of any type but a directory
// will do.
int CreateFileInRoot(int root, const char* path, mode_t mode) noexcept;
// The entry `name` of directory `dir` itself: no symbolic link, no mount point, not below another directory.
int OpenEntry(int dir, const char* name, int flags) noexcept;
// An O_PATH descriptor of the directory that holds the last component, which is put into `leaf` (NAME_MAX + 1
// bytes); missing parents are made when `mkdir_mode` is not 0.
int OpenParentInRoot(int root, const char* path, mode_t mkdir_mode, char* leaf) noexcept;

Result<Fd> OpenFile(const std::string& path, int flags, mode_t mode = 0);
Result<Fd> OpenFileAt(int dir, const std::string& path, int flags, mode_t mode = 0);
// Names in a directory, sorted, without "." and "..".
Result<std::vector<std::string>> ListDir(const std::string& path);
Result<> MakeDirs(const std::string& path, mode_t mode);  // mkdir -p

// Whole content; fails with EFBIG past `limit` bytes.
Result<std::string> ReadFile(const std::string& path, size_t limit = 1 << 20);
Result<std::string> ReadFileAt(int dir, const std::string& name, size_t limit = 1 << 20);
Result<std::string> ReadFd(int fd, const std::string& name, size_t limit);
// One write(2) to an existing file (procfs, sysfs, cgroupfs): all or an error.
Result<> WriteFile(const std::string& path, std::string_view value);
Result<> WriteFileAt(int dir, const std::string& name, std::string_view value);
// Replaces a file by a temporary one and rename(2), synced if `sync`.
Result<> ReplaceFile(const std::string& path, std::string_view content, mode_t mode, bool sync = false);

}  // namespace gcs::base
