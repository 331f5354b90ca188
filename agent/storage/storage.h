// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/executor.h"
#include "base/fd.h"
#include "storage/disk.h"

namespace gcs::storage {

class MountDirs;

struct Timing {
  std::string step;  // "wait", "format", "mount", "attach", "directories"
  int64_t duration_ns = 0;
};

enum class MountKind : uint8_t { kDisk, kOverlay, kShare, kTmpfs };
std::string_view MountKindName(MountKind kind);  // "disk", "overlay", "share", "tmpfs"

// Semantics of the fields: agent/api/gcs/v1/storage.proto. An empty `target` means <default_dir>/<mount_id>.

struct DiskMount {
  std::string mount_id;
  DiskAddress disk;
  uint32_t partition = 0;
  std::string fs_type;  // "ext4" if empty, "xfs", "erofs", "squashfs"
  bool read_only = false;
  bool format_if_empty = false;      // ext4, read-write
  std::vector<std::string> options;  // "name" or "name=value"
  std::string target;
};

struct OverlayMount {
  std::string mount_id;
  std::vector<std::string> layers;  // mount ids, uppermost first
  std::string scratch;              // mount id of a writable disk or tmpfs; empty: read-only
  std::string scratch_dir;          // relative, below the scratch; empty: mount_id
  std::string target;
  bool discard = false;  // delete upper and work directory at Unmount
};

enum class ShareEngine : uint8_t { kDefault, kV9fs, kCompletion };

struct ShareMount {
  std::string mount_id;
  uint32_t port = 0;       // for List only: the descriptor is what is used
  std::string share_name;  // 9P aname; may be empty, holds no comma
  bool read_only = false;
  uint32_t msize = 0;     // 0: 128 KiB; 4096 to 1 MiB
  std::string user_name;  // empty: "root"
  std::string target;
  ShareEngine engine = ShareEngine::kDefault;
  std::vector<std::string> allowed_names;
};

struct TmpfsMount {
  std::string mount_id;
  uint64_t size_bytes = 0;  // 0: half of memory
  uint32_t mode = 01777;
  std::string target;
};

// What a mount call answers.
struct Mounted {
  std::string path;
  std::string device;  // disks: "/dev/sda"
  bool formatted = false;
  std::vector<Timing> timings;
};

// One line of List.
struct MountInfo {
  std::string mount_id;
  MountKind kind = MountKind::kTmpfs;
  std::string path;
  std::string source;  // device; "vsock:<port> <share name>"
  std::string fs_type;
  bool read_only = false;
  std::vector<std::string> uses;   // mount ids
  std::string owner;               // container
  std::vector<std::string> users;  // containers
};

struct StorageOptions {
  std::string default_dir = "/run/gcs/mounts";
  // Targets must lie below one of these (and not be one). They are the agent's own directories: tmpfs, not
  // visible to containers.
  std::vector<std::string> target_roots = {"/run/gcs"};
  std::vector<std::string> reserved;  // below those, but somebody else's: no targets, no leftovers
  std::string sysfs = "/sys";
  std::string dev = "/dev";
  size_t max_workers = 16;  // kernel calls that may hang at the same time
  // What is to outlive the agent: the description of a mount as Restore wants it, with the descriptor of its
  // connection (-1: none) to be copied, as soon as it is there and before the call is answered. Any thread.
  std::function<base::Result<>(const std::string& mount_id, const std::string& description, int connection)>
      keep;
  // The mount is gone.
  std::function<void(const std::string& mount_id)> forget;
};

// All mounts that the agent made for the host, by mount id.
//
// Any thread may call anything. The lock guards the tables only: mount, format and unmount run on workers,
// one per mount id, and a caller whose deadline passes leaves at once. A mount is built detached and attached
// as the last step, so that a call that failed, was cancelled or ran out of time has never been visible; what
// the kernel still finishes for it later is thrown away, and its mount id answers EBUSY until then.
//
// Errors: EEXIST mount id in use; ENOENT unknown mount id (step "find mount"); EBUSY something uses it
// (object: the user) or the id is being worked on; EINVAL bad request; ETIMEDOUT, ECANCELED; ENOTEMPTY a disk
// to be formatted carries data that is no ext4; EOPNOTSUPP a feature that isn't built; else the kernel's,
// with the file system's own words as message.
class Storage {
 public:
  explicit Storage(StorageOptions options = {});
  ~Storage();  // waits for workers; leaves the mounts
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  base::Result<Mounted> MountDisk(const DiskMount& request, const Wait& wait);
  base::Result<Mounted> MountOverlay(const OverlayMount& request, const Wait& wait);
  // `connection` is a connected stream socket to the file server, kept until the unmount. At the deadline it
  // is shut down, which ends the kernel's wait.
  base::Result<Mounted> MountShare(const ShareMount& request, base::Fd connection, const Wait& wait);
  base::Result<Mounted> MountTmpfs(const TmpfsMount& request, const Wait& wait);

  // EBUSY while another mount or a container uses it or a process of this mount namespace holds it open. An
  // unmount that its caller no longer waits for goes on; until it ends the mount id answers EBUSY. A share's
  // connection is then shut down, which ends the kernel's wait for a server that says nothing.
  base::Result<> Unmount(const std::string& mount_id, const Wait& wait);

  // Takes over a mount that an earlier life of the agent made. Before the first mount. ESTALE: it is not
  // there any more.
  base::Result<> Restore(const std::string& mount_id, std::string_view description, base::Fd connection);

  // Unmounts what else an earlier life of the agent left below the target roots, innermost first, and removes
  // the directories. Before the first mount. Returns how many are gone; goes on after a failure and returns
  // the first.
  base::Result<size_t> ReleaseLeftovers(const Wait& wait);

  // Oldest first.
  [[nodiscard]] std::vector<MountInfo> List() const;
  // The mount that holds `path`: the one with the longest target that is a prefix of it. ENOENT if none does.
  [[nodiscard]] base::Result<MountInfo> FindByPath(const std::string& path) const;

  base::Result<Disk> WaitDisk(const DiskAddress& address, const Wait& wait);
  base::Result<> RemoveDisk(const DiskAddress& address, const Wait& wait);
  [[nodiscard]] base::Result<std::vector<Disk>> ListDisks() const;

  // Containers live in mount namespaces of their own, where the kernel keeps no count for us. A container
  // that uses a mount (its root.path or a bind source lies on it) says so; Unmount answers EBUSY until Unuse.
  base::Result<> Use(const std::string& mount_id, const std::string& container_id);
  void Unuse(const std::string& container_id);

  // Hands a mount to a container: it goes when the container goes, and Unmount by others answers EBUSY.
  base::Result<> SetOwner(const std::string& mount_id, const std::string& container_id);
  // Ends the container's uses and gives the mounts that it owns back to everybody.
  void Disown(const std::string& container_id);
  // Ends the container's uses and unmounts what it owns, newest first. Goes on after a failure and returns
  // the first; what could not be unmounted has no owner afterwards.
  base::Result<> ReleaseOwned(const std::string& container_id, const Wait& wait);

 private:
  struct Entry;
  struct Plan;

  base::Result<Mounted> Mount(const std::shared_ptr<Plan>& plan, const Wait& wait);
  base::Result<> DoUnmount(const std::string& mount_id, const std::string& as_owner, const Wait& wait);
  // With mutex_ held:
  base::Result<> Admit(Plan& plan);
  base::Result<> AdmitOverlay(Plan& plan);
  base::Result<> AdmitTarget(MountInfo& info);
  base::Result<std::shared_ptr<Entry>> FindMounted(const std::string& mount_id);

  base::Result<> Keep(const Entry& entry) const;
  void Forget(const std::string& mount_id);

  const StorageOptions options_;
  const Disks disks_;
  const std::unique_ptr<MountDirs> dirs_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Entry>> entries_;  // by mount id
  uint64_t next_sequence_ = 1;
  base::Pool pool_;  // last: its threads end before what they use
};

}  // namespace gcs::storage
