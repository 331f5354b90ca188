// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"

// The directory of what is expensive to make, which scripts/lib.sh uses as well.
namespace gcs::host {

inline std::string HomeDirectory() {
  const char* home = getenv("HOME");
  return home != nullptr && *home == '/' ? home : "/root";
}

// ${GCS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lcow-gcs}; not created. EINVAL: GCS_CACHE is relative.
inline base::Result<std::string> CacheRoot() {
  const char* cache = getenv("GCS_CACHE");
  if (cache != nullptr && *cache != '\0') {
    if (*cache == '/') return cache;
    return base::MakeError(EINVAL, "find cache", cache, "GCS_CACHE must be an absolute path");
  }
  const char* xdg = getenv("XDG_CACHE_HOME");
  if (xdg != nullptr && *xdg == '/') return std::string(xdg) + "/lcow-gcs";
  return HomeDirectory() + "/.cache/lcow-gcs";
}

// Removes the files of a cache directory that nobody has touched for 30 days. Only saves room: what can't be
// removed stays.
inline void TidyCache(const std::string& dir) {
  constexpr time_t kKeep = time_t{30} * 24 * 3600;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    struct stat st{};
    if (lstat(entry.path().c_str(), &st) != 0 || !S_ISREG(st.st_mode)) continue;
    std::error_code ignored;
    if (time(nullptr) - st.st_mtime > kKeep) std::filesystem::remove(entry.path(), ignored);
  }
}

}  // namespace gcs::host
