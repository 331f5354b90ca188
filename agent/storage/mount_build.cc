// SPDX-License-Identifier: Apache-2.0
#include "storage/mount_build.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string_view>

#include "base/paths.h"
#include "storage/mount_api.h"
#include "storage/mount_dirs.h"

namespace gcs::storage {

namespace {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

struct AttributeWord {
  std::string_view word;
  uint64_t attribute;
};
constexpr std::array kAttributeWords{
    AttributeWord{"nosuid", MOUNT_ATTR_NOSUID},           AttributeWord{"nodev", MOUNT_ATTR_NODEV},
    AttributeWord{"noexec", MOUNT_ATTR_NOEXEC},           AttributeWord{"noatime", MOUNT_ATTR_NOATIME},
    AttributeWord{"strictatime", MOUNT_ATTR_STRICTATIME}, AttributeWord{"nodiratime", MOUNT_ATTR_NODIRATIME},
    AttributeWord{"nosymfollow", MOUNT_ATTR_NOSYMFOLLOW},
};
// What a new mount is without being asked.
constexpr std::array<std::string_view, 6> kDefaultWords{"defaults", "suid",     "dev",
                                                        "exec",     "relatime", "async"};
// Words of mount(8) that ask for another operation than a new mount.
constexpr std::array<std::string_view, 13> kForeignWords{
    "remount", "bind",  "rbind",  "move",       "private",     "rprivate", "shared",
    "rshared", "slave", "rslave", "unbindable", "runbindable", "loop"};

bool Holds(const auto& words, std::string_view word) { return std::ranges::find(words, word) != words.end(); }

Result<Fd> OpenDirectory(const std::string& path) {
  return base::OpenFile(path, O_PATH | O_DIRECTORY | O_NOFOLLOW);
}

// The merged root shows the upper directory's owner and mode, so it starts as a copy of the uppermost
// layer's.
Result<> CopyRootMode(int layer, int upper, const std::string& object) {
  struct stat st;
  if (fstat(layer, &st) != 0) return ErrnoError("fstat", object);
  const std::string path =
      "/proc/self/fd/" + std::to_string(upper);  // O_PATH descriptors know no fchmod before 6.6
  if (fchownat(upper, "", st.st_uid, st.st_gid, AT_EMPTY_PATH) != 0) return ErrnoError("chown", object);
  if (chmod(path.c_str(), st.st_mode & 07777) != 0) return ErrnoError("chmod", object);
  return {};
}

Result<std::vector<Fd>> AddLayers(FsContext& context, const OverlayBuild& build) {
  std::vector<Fd> held;
  for (const auto& path : build.lower) {
    GCS_ASSIGN(Fd dir, OpenDirectory(path));
    // One layer a call (6.5): no separator to escape, and 500 layers don't fit the one page of mount(2).
    GCS_TRY(context.SetDirectory("lowerdir+", path, dir.get()));
    held.push_back(std::move(dir));
  }
  return held;
}

Result<> SetCommonOverlayOptions(FsContext& context) {
  GCS_TRY(context.SetString("source", "overlay"));
  // metacopy and index trust what is written in the layers' attributes; images come from anybody. xino gives
  // files of different layer disks distinct inode numbers on one device, which tar, cp and find compare.
  GCS_TRY(context.SetString("metacopy", "off"));
  GCS_TRY(context.SetString("index", "off"));
  return context.SetString("xino", "auto");
}

struct UpperDirs {
  Fd upper;
  Fd work;
  bool made_upper = false;
};

// Makes `dir`/upper and `dir`/work in the scratch.
Result<UpperDirs> MakeUpperDirs(const OverlayUpper& where, MadeDirs& made) {
  const auto make = [&](const Fd& parent, const std::string& name, bool* new_one) -> Result<Fd> {
    auto dir = made.OpenOrMake(parent.get(), name, 0755, new_one);
    if (!dir) dir.error().object = where.scratch_path + "/" + where.dir + ": " + name;
    return dir;
  };
  UpperDirs dirs;
  bool ignored = false;
  GCS_ASSIGN(const auto parts, SplitRelative(where.dir, "check scratch_dir"));
  GCS_ASSIGN(Fd dir, base::OpenFileAt(where.scratch, ".", O_PATH | O_DIRECTORY));
  for (const auto& part : parts) {
    GCS_ASSIGN(Fd next, make(dir, part, &ignored));
    dir = std::move(next);
  }
  GCS_ASSIGN(dirs.upper, make(dir, "upper", &dirs.made_upper));
  GCS_ASSIGN(dirs.work, make(dir, "work", &ignored));
  return dirs;
}

}  // namespace

Result<MountOptions> ParseMountOptions(const std::vector<std::string>& options, bool read_only) {
  constexpr std::string_view kStep = "parse mount options";
  MountOptions parsed{.read_only = read_only};
  bool atime_chosen = false;
  for (const auto& option : options) {
    const size_t equals = option.find('=');
    const std::string key = option.substr(0, equals);
    if (key.empty() || option.find('\0') != std::string::npos) return MakeError(EINVAL, kStep, option);
    if (Holds(kForeignWords, key)) return MakeError(EINVAL, kStep, option, "no option of a new mount");
    if (equals != std::string::npos) {
      if (equals + 1 == option.size()) return MakeError(EINVAL, kStep, option, "no value");
      parsed.fs.emplace_back(key, option.substr(equals + 1));
      continue;
    }
    const auto word = std::ranges::find(kAttributeWords, key, &AttributeWord::word);
    if (word != kAttributeWords.end()) {
      const bool atime = word->attribute == MOUNT_ATTR_NOATIME || word->attribute == MOUNT_ATTR_STRICTATIME;
      if (atime && atime_chosen) return MakeError(EINVAL, kStep, option, "two atime modes");
      atime_chosen |= atime;
      parsed.attributes |= word->attribute;
    } else if (key == "ro") {
      parsed.read_only = true;
    } else if (key == "rw") {
      if (read_only) return MakeError(EINVAL, kStep, option, "the mount is to be read-only");
    } else if (!Holds(kDefaultWords, key)) {
      parsed.fs.emplace_back(key, std::string());
    }
  }
  if (parsed.read_only) {
    parsed.attributes |= MOUNT_ATTR_RDONLY;
    if (!atime_chosen) parsed.attributes |= MOUNT_ATTR_NOATIME;
  }
  return parsed;
}

Result<Fd> BuildDisk(const DiskBuild& build) {
  GCS_ASSIGN(FsContext context, FsContext::Open(build.fs_type));
  GCS_TRY(context.SetString("source", build.device));
  if (build.options.read_only) {
    GCS_TRY(context.SetFlag("ro"));
    // No journal replay: it would write to a layer that several VMs may read.
    if (build.fs_type == "ext4") GCS_TRY(context.SetFlag("noload"));
    if (build.fs_type == "xfs") GCS_TRY(context.SetFlag("norecovery"));
  } else if (build.scratch && build.fs_type == "ext4") {
    // The kernel would zero the inode tables of the whole disk in the background: for 20 GB, 320 MB of writes
    // for a container that may live a second. Blocks of a table are initialised at first use without it.
    GCS_TRY(context.SetFlag("noinit_itable"));
  }
  for (const auto& [key, value] : build.options.fs) {
    if (value.empty()) {
      GCS_TRY(context.SetFlag(key));
    } else {
      GCS_TRY(context.SetString(key, value));
    }
  }
  return context.Create(build.options.attributes, build.device);
}

Result<Fd> BuildReadOnlyOverlay(const OverlayBuild& build) {
  constexpr uint64_t kAttributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME;
  if (build.lower.size() == 1) {
    GCS_ASSIGN(const Fd dir, OpenDirectory(build.lower.front()));
    return CloneMount(dir.get(), kAttributes, build.lower.front());
  }
  GCS_ASSIGN(FsContext context, FsContext::Open("overlay"));
  GCS_TRY(SetCommonOverlayOptions(context));
  GCS_TRY(context.SetFlag("ro"));
  GCS_ASSIGN(const auto held, AddLayers(context, build));
  return context.Create(kAttributes, build.object);
}

Result<Fd> BuildOverlay(const OverlayBuild& build, const OverlayUpper& upper, MadeDirs& made) {
  GCS_ASSIGN(const UpperDirs dirs, MakeUpperDirs(upper, made));
  GCS_ASSIGN(FsContext context, FsContext::Open("overlay"));
  GCS_TRY(SetCommonOverlayOptions(context));
  // Lets programs rename directories that come from a layer (dpkg, npm); without it they get EXDEV.
  GCS_TRY(context.SetString("redirect_dir", "on"));
  // The upper directory dies with the VM, so syncing it protects nothing: fsync in a container's root costs
  // nothing. A clean unmount of the scratch still writes all, and CleanOverlayUpper makes the directory
  // usable again.
  GCS_TRY(context.SetFlag("volatile"));
  GCS_ASSIGN(const auto held, AddLayers(context, build));
  if (dirs.made_upper) GCS_TRY(CopyRootMode(held.front().get(), dirs.upper.get(), build.object));
  const std::string path = upper.scratch_path + "/" + upper.dir;
  GCS_TRY(context.SetDirectory("upperdir", path + "/upper", dirs.upper.get()));
  GCS_TRY(context.SetDirectory("workdir", path + "/work", dirs.work.get()));
  return context.Create(0, build.object);
}

Result<> CleanOverlayUpper(const OverlayUpper& upper, bool discard) {
  GCS_ASSIGN(auto parts, SplitRelative(upper.dir, "check scratch_dir"));
  const std::string last = parts.back();
  parts.pop_back();
  GCS_ASSIGN(Fd dir, base::OpenFileAt(upper.scratch, ".", O_PATH | O_DIRECTORY));
  for (const auto& part : parts) {
    GCS_ASSIGN(Fd next, base::OpenFileAt(dir.get(), part, O_PATH | O_DIRECTORY | O_NOFOLLOW));
    dir = std::move(next);
  }
  if (discard) return RemoveTree(dir.get(), last);
  for (const auto& part : {last, std::string("work"), std::string("work")}) {
    auto next = base::OpenFileAt(dir.get(), part, O_PATH | O_DIRECTORY | O_NOFOLLOW);
    if (!next) {
      if (next.error().err == ENOENT) return {};
      return std::unexpected(next.error());
    }
    dir = std::move(*next);
  }
  return RemoveTree(dir.get(), "incompat");
}

Result<Fd> BuildShare(const ShareBuild& build) {
  GCS_ASSIGN(FsContext context, FsContext::Open("9p"));
  const std::string descriptor = std::to_string(build.connection);
  GCS_TRY(context.SetString("source", build.share_name.empty() ? "9p" : build.share_name));
  GCS_TRY(context.SetString("trans", "fd"));
  GCS_TRY(context.SetString("rfdno", descriptor));
  GCS_TRY(context.SetString("wfdno", descriptor));
  GCS_TRY(context.SetString("version", "9p2000.L"));
  GCS_TRY(context.SetString("msize", std::to_string(build.msize)));
  GCS_TRY(context.SetString("uname", build.user_name));
  if (!build.share_name.empty()) GCS_TRY(context.SetString("aname", build.share_name));
  // No "cache=": none is the default, and what the Windows shim's guest uses; the host's changes are seen at
  // once.
  if (build.read_only) GCS_TRY(context.SetFlag("ro"));
  // Device nodes on a share are the host's business only.
  uint64_t attributes = MOUNT_ATTR_NODEV;
  if (build.read_only) attributes |= MOUNT_ATTR_RDONLY;
  return context.Create(attributes, build.object);
}

Result<Fd> BuildTmpfs(uint64_t size_bytes, uint32_t mode, const std::string& object) {
  GCS_ASSIGN(FsContext context, FsContext::Open("tmpfs"));
  GCS_TRY(context.SetString("source", "tmpfs"));
  if (size_bytes != 0) GCS_TRY(context.SetString("size", std::to_string(size_bytes)));
  std::array<char, 8> octal;
  snprintf(octal.data(), octal.size(), "%04o", mode);
  GCS_TRY(context.SetString("mode", octal.data()));
  return context.Create(0, object);
}

}  // namespace gcs::storage
