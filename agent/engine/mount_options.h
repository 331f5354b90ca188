// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace gcs::engine {

// The `options` of one mount of config.json, sorted by what they mean to the kernel (config.md, "Linux mount
// options").
struct MountOptions {
  bool bind = false;
  bool recursive = false;  // rbind
  // For mount_setattr(2): MOUNT_ATTR_* of the mount itself, and of all below it (rro, rnosuid, ...).
  uint64_t set = 0, clear = 0;
  uint64_t recursive_set = 0, recursive_clear = 0;
  uint64_t propagation = 0;  // MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE; 0: none named
  bool recursive_propagation = false;
  bool copy_up = false;  // tmpcopyup
  bool remount = false;
  bool id_mapped = false;         // idmap or ridmap
  bool recursive_id_map = false;  // ridmap
  // What is left goes to the file system: key and value, the value empty for a flag.
  std::vector<std::pair<std::string, std::string>> data;
  bool Has(std::string_view key) const;
};

// `object` names the mount in errors.
base::Result<MountOptions> ParseMountOptions(const std::vector<std::string>& options,
                                             std::string_view object);

}  // namespace gcs::engine
