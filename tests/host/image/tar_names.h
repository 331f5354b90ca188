// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace gcs::host {

// What one entry's header blocks say about names, byte for byte. libarchive converts pax names through the
// locale (and normalises UTF-8), and cuts them at a NUL; file names in a layer are bytes, so they are read
// here.
struct TarNames {
  char type = 0;  // typeflag of the entry's own header
  std::string path;
  std::string link;
};

// `headers` starts with the entry's first block: pax ('x') and GNU ('L', 'K') headers with their bodies, then
// its own. EBADMSG for names with NUL and malformed records.
base::Result<TarNames> ParseTarNames(std::string_view headers);

}  // namespace gcs::host
