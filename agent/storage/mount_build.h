// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "storage/mount_dirs.h"

namespace gcs::storage {

// One function per kind of mount. Each returns a detached mount: closing the descriptor throws it away.

struct MountOptions {
  std::vector<std::pair<std::string, std::string>> fs;  // for fsconfig; an empty value means a flag
  uint64_t attributes = 0;                              // MOUNT_ATTR_*
  bool read_only = false;
};
// mount(8) -o words: those of the VFS become attributes, the rest goes to the file system. EINVAL for what is
// no option of a new mount (remount, bind, propagation), for "rw" together with `read_only` and for two atime
// modes.
base::Result<MountOptions> ParseMountOptions(const std::vector<std::string>& options, bool read_only);

struct DiskBuild {
  std::string device;
  std::string fs_type;
  bool scratch = false;  // formatted by us or by a caller who would have us format it
  MountOptions options;
};
base::Result<base::Fd> BuildDisk(const DiskBuild& build);

// The directories of a writable overlay inside its scratch.
struct OverlayUpper {
  int scratch = -1;          // descriptor of the scratch's root; the caller's
  std::string scratch_path;  // where it is mounted
  std::string dir;           // relative, checked by SplitRelative
};
struct OverlayBuild {
  std::vector<std::string> lower;  // paths of the layers, uppermost first
  std::string object;              // names the mount in errors
};
// Read-only stack; the one layer itself if there is only one.
base::Result<base::Fd> BuildReadOnlyOverlay(const OverlayBuild& build);
// Makes upper and work directory where missing, noted in `made`: to be taken back, after the mount's
// descriptor is closed, if the mount is not used.
base::Result<base::Fd> BuildOverlay(const OverlayBuild& build, const OverlayUpper& upper, MadeDirs& made);
// After the overlay is gone: with `discard` its directories, else only the kernel's note that the upper
// directory was written without syncs, which would forbid to use it again.
base::Result<> CleanOverlayUpper(const OverlayUpper& upper, bool discard);

struct ShareBuild {
  int connection = -1;  // the caller's; the kernel takes a reference of its own
  std::string share_name;
  std::string user_name;
  uint32_t msize = 0;
  bool read_only = false;
  std::string object;
};
base::Result<base::Fd> BuildShare(const ShareBuild& build);

base::Result<base::Fd> BuildTmpfs(uint64_t size_bytes, uint32_t mode, const std::string& object);

}  // namespace gcs::storage
