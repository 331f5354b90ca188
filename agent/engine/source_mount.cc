// SPDX-License-Identifier: Apache-2.0
#include "engine/source_mount.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <linux/nsfs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

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
  if (type < 0) return base::MakeError(EINVAL, "open namespace", source.path, "is no namespace");
  if (type != source.flag)
    return base::MakeError(EINVAL, "open namespace", source.path, "is of another type");
  return fd;
}

}  // namespace

Result<Fd> OpenSource(const PlanSource& source, int cgroup_fd) {
  if (source.kind == PlanSource::Kind::kNamespace) return OpenNamespace(source);
  unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
  if (source.recursive) flags |= AT_RECURSIVE;
  const bool cgroup = source.kind == PlanSource::Kind::kCgroup;
  Fd tree(static_cast<int>(cgroup ? syscall(SYS_open_tree, cgroup_fd, "", flags | AT_EMPTY_PATH)
                                  : syscall(SYS_open_tree, AT_FDCWD, source.path.c_str(), flags)));
  if (!tree)
    return ErrnoError("open mount source", source.object, cgroup ? "the container's cgroup" : source.path);
  // Private unless asked otherwise, and first: attributes of the copy must not travel to the original's
  // peers.
  GCS_TRY(SetAttributes(tree.get(), 0, 0, source.propagation != 0 ? source.propagation : uint64_t{MS_PRIVATE},
                        true, source));
  GCS_TRY(SetAttributes(tree.get(), source.recursive_set, source.recursive_clear, 0, true, source));
  GCS_TRY(SetAttributes(tree.get(), source.set, source.clear, 0, false, source));
  return tree;
}

}  // namespace gcs::engine
