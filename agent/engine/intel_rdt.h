// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"
#include "engine/spec.h"

namespace gcs::engine {

// The resctrl file system (Documentation/filesystems/resctrl.rst): groups of tasks that share a class of
// service of the processor's caches and memory bandwidth.
class Resctrl {
 public:
  // `path` empty: where /proc/self/mountinfo has it. ENOTSUP if it is mounted nowhere.
  static base::Result<std::shared_ptr<Resctrl>> Open(const std::string& path);
  explicit Resctrl(base::Fd root) : root_(std::move(root)) {}
  Resctrl(const Resctrl&) = delete;
  Resctrl& operator=(const Resctrl&) = delete;
  virtual ~Resctrl() = default;

  [[nodiscard]] int root() const { return root_.get(); }
  // mkdir and rmdir, which the kernel takes as making and ending a group; as their namesakes in paths. A test
  // on a plain directory does here what the kernel would do with the files in there.
  virtual base::Result<> MakeGroup(int parent, const std::string& name);
  virtual base::Result<> EndGroup(int parent, const std::string& name);

 private:
  base::Fd root_;
};

// Where resctrl is mounted, /sys/fs/resctrl if it is there as well; empty: nowhere.
std::string FindResctrl(std::string_view mountinfo);

// What linux.intelRdt makes of one container.
class RdtGroup {
 public:
  // Makes the group if there is none and writes the schemata; one that is there must have them already
  // (config-linux.md, "IntelRdt"). On failure nothing is left.
  static base::Result<RdtGroup> Create(std::shared_ptr<Resctrl> resctrl, const IntelRdt& config,
                                       const std::string& container_id);
  // That of a container which another process has created; `made`: what made() was there.
  static RdtGroup Find(std::shared_ptr<Resctrl> resctrl, const IntelRdt& config,
                       const std::string& container_id, bool made);

  // Whether the group is there because of this container.
  [[nodiscard]] bool made() const { return made_; }
  // Puts a thread into it; its children come after it.
  [[nodiscard]] base::Result<> Enter(int pid) const;
  // Ends what was made: the container's monitoring group, and the group, unless others have come into it.
  base::Result<> Remove();

 private:
  RdtGroup() = default;
  [[nodiscard]] base::Result<base::Fd> OpenGroup() const;
  base::Result<> Prepare(const IntelRdt& config);

  std::shared_ptr<Resctrl> resctrl_;
  std::string group_;    // empty: the root
  std::string monitor_;  // the monitoring group's name; empty: none
  bool made_ = false;
  bool own_ = false;  // named after the container
};

}  // namespace gcs::engine
