// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dirent.h>
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::guest {

// Makes a tar stream of a file, or of a directory and all below it, piece by piece. Names begin with the last
// component of the path ("." of the root itself). A symbolic link at the end of the path is packed as one,
// unless a "/" follows.
//
// Confined to `root`, whatever a container changes meanwhile: below the path's own object only single names
// are looked up, and only regular files and directories are opened, once they have proved to be such. Sockets
// are left out, as tar has none; a file that shrinks while it is read is filled up with zeros. Extended
// attributes: user.* and security.capability.
//
// Not for more than one thread at a time.
class Packer {
 public:
  static base::Result<std::unique_ptr<Packer>> Create(const base::Fd& root, const std::string& path);
  Packer(const Packer&) = delete;
  Packer& operator=(const Packer&) = delete;

  // The stream's next bytes, `most` (at least 512) plus headers at most; empty: it has ended.
  base::Result<std::string> Next(size_t most);

 private:
  struct Level {
    std::string name;  // of the directory, with "/" at its end
    std::unique_ptr<DIR, int (*)(DIR*)> directory;
  };

  Packer(base::Fd object, std::string name) : object_(std::move(object)), name_(std::move(name)) {}
  base::Result<> Add(base::Fd object, const std::string& name, std::string& out);
  base::Result<> Step(std::string& out);
  base::Result<> ReadFile(size_t most, std::string& out);

  base::Fd object_;  // what to begin with
  const std::string name_;
  std::vector<Level> levels_;  // directories being read, each in the one before
  base::Fd file_;              // being read
  std::string file_name_;
  uint64_t left_ = 0;     // of it
  uint64_t padding_ = 0;  // behind it
  bool ended_ = false;
  // Names of files that have others.
  std::map<std::pair<dev_t, ino_t>, std::string> links_;
};

}  // namespace gcs::guest
