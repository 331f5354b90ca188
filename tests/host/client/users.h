// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace gcs::host {

struct User {
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::vector<uint32_t> additional_gids;
  std::string home;  // empty: unknown
};

// Who "user[:group]" is in an image whose /etc/passwd and /etc/group have this content (nullopt: the image
// has no such file). Numbers need no entry; a number's or name's entry gives group and home; a name's entry
// in /etc/group gives further groups, unless a group is named. Empty: root. ENOENT: no such name.
base::Result<User> ResolveUser(const std::string& spec, const std::optional<std::string>& passwd,
                               const std::optional<std::string>& group);

// A file of an image out of its layer disks (lowest first), as the stacked file system would show it: the
// uppermost layer that has it, unless a whiteout or an opaque directory above hides it. Nothing: there is no
// such file. ELOOP: it or one of its directories is a symbolic link, which is not followed. At most 1 MiB
// (EFBIG).
base::Result<std::optional<std::string>> ReadFromLayers(const std::vector<std::string>& disks,
                                                        const std::string& path);

// Both together.
base::Result<User> FindUser(const std::string& spec, const std::vector<std::string>& disks);

}  // namespace gcs::host
