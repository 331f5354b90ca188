// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/procfs.h"

namespace gcs::storage {

// A file system on its way: fsopen(2), fsconfig(2), fsmount(2). Errors carry what the kernel wrote into the
// context's log.
class FsContext {
 public:
  static base::Result<FsContext> Open(const std::string& fs_type);

  base::Result<> SetFlag(const std::string& key);
  base::Result<> SetString(const std::string& key, const std::string& value);
  // A directory as value. The kernel takes strings of at most 255 bytes and file systems give "\" and ","
  // meanings of their own; a path that could be hurt by either goes as /proc/self/fd/<directory>.
  base::Result<> SetDirectory(const std::string& key, const std::string& path, int directory);

  // Makes the superblock and a detached mount of it with MOUNT_ATTR_* bits. `object` names it in errors. May
  // block for as long as the device or the server does.
  base::Result<base::Fd> Create(uint64_t attributes, const std::string& object);

 private:
  FsContext(base::Fd fd, std::string fs_type) : fd_(std::move(fd)), fs_type_(std::move(fs_type)) {}
  std::unexpected<base::Error> Failure(int err, std::string_view step, const std::string& object);

  base::Fd fd_;
  std::string fs_type_;
};

// A detached mount of what `directory` shows (its mount alone, not what is mounted below it), with further
// MOUNT_ATTR_* bits.
base::Result<base::Fd> CloneMount(int directory, uint64_t attributes, const std::string& object);

// Puts a detached mount on the directory.
base::Result<> Attach(int mount, int directory, const std::string& path);

// The mounts of this mount namespace.
base::Result<std::vector<base::MountInfo>> ReadMounts();

// The kernel's id of the mount that a descriptor is on. Asks the mount, not the file system, whose server may
// be gone.
base::Result<uint64_t> MountIdOf(int fd, const std::string& object);

// Unmounts the mount `mount_id` from `path`, which the caller knows to be free of symbolic links. EBUSY while
// it is in use in this mount namespace or something else has been mounted over it. Success if it is no longer
// mounted at all. Blocks if the file system's server is silent.
base::Result<> UnmountAt(const std::string& path, uint64_t mount_id);

}  // namespace gcs::storage
