// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "base/error.h"
#include "host/image/archive_util.h"
#include "host/image/blob_store.h"
#include "host/image/digest.h"
#include "host/image/image.h"

namespace gcs::host {

// The tar stream in a layer blob: decompressed (gzip, zstd or none, told by its first bytes), hashed and
// limited.
class LayerStream {
 public:
  // `algorithm` is that of the diff_id. `on_bytes` hears how much of the blob was read; may be empty.
  static base::Result<std::unique_ptr<LayerStream>> Open(Blob blob, std::string_view algorithm,
                                                         const ImageLimits& limits,
                                                         std::function<void(uint64_t)> on_bytes);

  // The next piece, valid until the next call; empty at the end.
  base::Result<std::span<const char>> Next();
  // Reads the rest and returns the digest of the whole stream; call once.
  base::Result<Digest> Drain();

  [[nodiscard]] const std::string& name() const { return blob_.name; }

 private:
  LayerStream(Blob blob, Hasher hasher, const ImageLimits& limits, std::function<void(uint64_t)> on_bytes)
      : blob_(std::move(blob)), hasher_(std::move(hasher)), limits_(limits), on_bytes_(std::move(on_bytes)) {}
  static la_ssize_t Read(archive* a, void* self, const void** data);
  base::Result<> Start();

  Blob blob_;
  Hasher hasher_;
  const ImageLimits limits_;
  std::function<void(uint64_t)> on_bytes_;
  std::vector<char> input_ = std::vector<char>(256 << 10);
  uint64_t in_ = 0;
  uint64_t out_ = 0;
  bool end_ = false;
  base::Error error_;  // of the blob, while libarchive is the caller
  ArchiveReader reader_;
};

}  // namespace gcs::host
