// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <archive.h>

#include <cerrno>
#include <memory>
#include <string_view>

#include "base/error.h"

namespace gcs::host {

struct FreeArchive {
  void operator()(archive* a) const { archive_free(a); }
};
using ArchiveReader = std::unique_ptr<archive, FreeArchive>;

// libarchive numbers format errors as EILSEQ (84), -1 or 0: all of these become EBADMSG, "the data is wrong".
inline std::unexpected<base::Error> ArchiveError(archive* a, std::string_view step, std::string_view object) {
  const int err = archive_errno(a);
  const char* text = archive_error_string(a);
  return base::MakeError(err <= 0 || err == EILSEQ || err == EINVAL ? EBADMSG : err, step, object,
                         text != nullptr ? text : "");
}

}  // namespace gcs::host
