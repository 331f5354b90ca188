// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "host/image/digest.h"

namespace gcs::host {

// A byte range of a readable file: one blob. The descriptor is shared; reads use pread(2).
struct Blob {
  std::shared_ptr<base::Fd> file;
  uint64_t offset = 0;
  uint64_t size = 0;
  std::string name;  // for errors

  // Reads at most `size` bytes at `at` within the blob; 0 at its end. EIO when the file is shorter than it
  // was.
  [[nodiscard]] base::Result<size_t> ReadAt(uint64_t at, void* buffer, size_t size) const;
  // The whole content, refused (EFBIG) beyond `limit` bytes.
  [[nodiscard]] base::Result<std::string> ReadAll(size_t limit) const;
};

// Where an image's files are: a directory, or a tar archive that is indexed once and then read in place.
class BlobStore {
 public:
  virtual ~BlobStore() = default;
  // `name` is relative to the image's root ("index.json"). ENOENT when it is missing.
  [[nodiscard]] virtual base::Result<Blob> Open(const std::string& name) const = 0;
  [[nodiscard]] base::Result<Blob> OpenDigest(const Digest& digest) const {
    return Open("blobs/" + digest.algorithm + "/" + digest.hex);
  }
};

base::Result<std::shared_ptr<BlobStore>> OpenBlobStore(const std::string& path);

}  // namespace gcs::host
