// SPDX-License-Identifier: Apache-2.0
#include "engine/source_mount.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <linux/nsfs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <initializer_list>
#include <utility>

#include "base/paths.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::Result;

namespace {

Result<> SetAttributes(int tree, uint64_t set, uint64_t clear, uint64_t propagation, bool recursive,
                       const PlanSource& source) {
  if (set == 0 && clear == 0 && propagation == 0) return {};
  mount_attr attr{.attr_set = set, .attr_clr = clear, .propagation = propagation, .userns_fd = 0};
  const unsigned flags = recursive ? AT_EMPTY_PATH | AT_RECURSIVE : AT_EMPTY_PATH;
  if (syscall(SYS_mount_setattr, tree, "", flags, &attr, sizeof attr) != 0) {
    return ErrnoError("mount_setattr", source.object);
  }
  return {};
}

Result<Fd> OpenNamespace(const PlanSource& source) {
  GCS_ASSIGN(Fd fd, base::OpenFile(source.path, O_RDONLY | O_NONBLOCK | O_NOCTTY));
  const int type = ioctl(fd.get(), NS_GET_NSTYPE);
  if (type < 0 && errno != ENOTTY) return ErrnoError("open namespace", source.path);
  if (type < 0) return base::MakeError(EINVAL, "open namespace", source.path, "is no namespace");
  if (type != source.flag)
    return base::MakeError(EINVAL, "open namespace", source.path, "is of another type");
  return fd;
}

Result<Fd> Duplicate(int fd, const PlanSource& source) {
  Fd copy(fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy) return ErrnoError("dup", source.object);
  return copy;
}

// A new file system of `type`: its context, for reconfiguring, and the detached mount.
struct NewMount {
  Fd context, tree;
};

Result<NewMount> MountDetached(const char* type,
                               std::initializer_list<std::pair<const char*, const char*>> options) {
  NewMount made{.context = Fd(static_cast<int>(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC))), .tree = {}};
  if (!made.context) return ErrnoError("fsopen", type);
  for (const auto& [key, value] : options) {
    if (syscall(SYS_fsconfig, made.context.get(), FSCONFIG_SET_STRING, key, value, 0) != 0) {
      return ErrnoError("fsconfig", type, key);
    }
  }
  if (syscall(SYS_fsconfig, made.context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return ErrnoError("mount", type);
  }
  made.tree = Fd(static_cast<int>(syscall(SYS_fsmount, made.context.get(), FSMOUNT_CLOEXEC, 0)));
  if (!made.tree) return ErrnoError("fsmount", type);
  return made;
}

Result<Fd> MakeDevices(const PlanSource& source) {
  GCS_ASSIGN(NewMount mount, MountDetached("tmpfs", {{"mode", "0755"}, {"size", "1m"}}));
  const int dir = mount.tree.get();
  for (size_t i = 0; i < source.nodes.size(); ++i) {
    const DeviceNode& node = source.nodes[i];
    const std::string name = std::to_string(i);
    // The mode once more, because the umask is the daemon's.
    if (mknodat(dir, name.c_str(), node.mode, makedev(node.major, node.minor)) != 0 ||
        fchmodat(dir, name.c_str(), node.mode & 07777, 0) != 0 ||
        fchownat(dir, name.c_str(), node.uid, node.gid, AT_SYMLINK_NOFOLLOW) != 0) {
      return ErrnoError("make device node", source.object, name);
    }
  }
  // The file system, not only this mount of it: the container gets mounts of its nodes.
  if (syscall(SYS_fsconfig, mount.context.get(), FSCONFIG_SET_FLAG, "ro", nullptr, 0) != 0 ||
      syscall(SYS_fsconfig, mount.context.get(), FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr, 0) != 0) {
    return ErrnoError("remount", source.object);
  }
  return std::move(mount.tree);
}

Result<> SetIdMap(int tree, const PlanSource& source, const SourceContext& context) {
  GCS_ASSIGN(const Fd ns, context.user_namespace(source.uid_mappings, source.gid_mappings, true));
  mount_attr attr{.attr_set = MOUNT_ATTR_IDMAP,
                  .attr_clr = 0,
                  .propagation = 0,
                  .userns_fd = static_cast<uint64_t>(ns.get())};
  const unsigned flags = source.recursive_id_map ? AT_EMPTY_PATH | AT_RECURSIVE : AT_EMPTY_PATH;
  if (syscall(SYS_mount_setattr, tree, "", flags, &attr, sizeof attr) != 0) {
    return ErrnoError("id-map mount", source.object, "the file system may not support it");
  }
  return {};
}

Result<Fd> OpenTree(const PlanSource& source, const Cgroup* own) {
  unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
  if (source.recursive) flags |= AT_RECURSIVE;
  const bool cgroup = source.kind == PlanSource::Kind::kCgroup;
  const Cgroup::Place place =
      cgroup ? own->PlaceOf(source.hierarchy) : Cgroup::Place{.dir = AT_FDCWD, .path = source.path};
  if (place.path.empty()) flags |= AT_EMPTY_PATH;
  Fd tree(static_cast<int>(syscall(SYS_open_tree, place.dir, place.path.c_str(), flags)));
  if (!tree)
    return ErrnoError("open mount source", source.object, cgroup ? "the container's cgroup" : source.path);
  return tree;
}

}  // namespace

Result<Fd> OpenSource(const PlanSource& source, const SourceContext& context) {
  switch (source.kind) {
    case PlanSource::Kind::kNamespace:
      return OpenNamespace(source);
    case PlanSource::Kind::kUserNamespace:
      return context.user_namespace(source.uid_mappings, source.gid_mappings, false);
    case PlanSource::Kind::kProc:
      return Duplicate(context.proc_fd, source);
    case PlanSource::Kind::kTarget:
      return Duplicate(context.target_pidfd, source);
    case PlanSource::Kind::kGiven:
      return Duplicate(source.given, source);
    case PlanSource::Kind::kDevices:
      return MakeDevices(source);
    case PlanSource::Kind::kSpareNetwork:
      return std::move(*context.spare_network);
    case PlanSource::Kind::kTree:
    case PlanSource::Kind::kCgroup:
      break;
  }
  GCS_ASSIGN(Fd tree, OpenTree(source, context.cgroup));
  if (source.sealed_later) return tree;
  // Private unless asked otherwise, and first: attributes of the copy must not travel to the original's
  // peers.
  GCS_TRY(SetAttributes(tree.get(), 0, 0, source.propagation != 0 ? source.propagation : uint64_t{MS_PRIVATE},
                        true, source));
  if (!source.uid_mappings.empty()) GCS_TRY(SetIdMap(tree.get(), source, context));
  GCS_TRY(SetAttributes(tree.get(), source.recursive_set, source.recursive_clear, 0, true, source));
  GCS_TRY(SetAttributes(tree.get(), source.set, source.clear, 0, false, source));
  return tree;
}

Result<Fd> DetachedProc() {
  GCS_ASSIGN(NewMount mount, MountDetached("proc", {}));
  return std::move(mount.tree);
}

}  // namespace gcs::engine
