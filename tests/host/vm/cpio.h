// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace gcs::host {

// An initial RAM file system in the kernel's newc format
// (Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: for the small initrds of
// tests. The product's image is packed by initrd/.
class Cpio {
 public:
  // `path` without a leading slash, parents first.
  void AddDirectory(const std::string& path) { Add(path, 0040755, {}); }
  void AddFile(const std::string& path, const std::string& content, mode_t mode) {
    Add(path, 0100000 | mode, content);
  }
  base::Result<> AddFileFrom(const std::string& path, const std::string& source, mode_t mode);
  base::Result<> WriteTo(const std::string& file) const;

 private:
  void Add(const std::string& path, mode_t mode, const std::string& content);
  std::string archive_;
  unsigned inode_ = 1;
};

}  // namespace gcs::host
