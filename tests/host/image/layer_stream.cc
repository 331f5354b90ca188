// SPDX-License-Identifier: Apache-2.0
#include "host/image/layer_stream.h"

#include <archive_entry.h>

#include <utility>

namespace gcs::host {

base::Result<std::unique_ptr<LayerStream>> LayerStream::Open(Blob blob, std::string_view algorithm,
                                                             const ImageLimits& limits,
                                                             std::function<void(uint64_t)> on_bytes) {
  GCS_ASSIGN(Hasher hasher, Hasher::Make(algorithm));
  std::unique_ptr<LayerStream> stream(
      new LayerStream(std::move(blob), std::move(hasher), limits, std::move(on_bytes)));
  GCS_TRY(stream->Start());
  return stream;
}

la_ssize_t LayerStream::Read(archive* a, void* self, const void** data) {
  auto* stream = static_cast<LayerStream*>(self);
  const auto got = stream->blob_.ReadAt(stream->in_, stream->input_.data(), stream->input_.size());
  if (!got) {
    stream->error_ = got.error();
    archive_set_error(a, stream->error_.err, "%s", "read blob");
    return ARCHIVE_FATAL;
  }
  stream->in_ += *got;
  if (stream->on_bytes_) stream->on_bytes_(stream->in_);
  *data = stream->input_.data();
  return static_cast<la_ssize_t>(*got);
}

base::Result<> LayerStream::Start() {
  if (blob_.size == 0) return base::MakeError(EBADMSG, "decompress layer", blob_.name, "the blob is empty");
  reader_.reset(archive_read_new());
  if (!reader_) return base::MakeError(ENOMEM, "decompress layer", blob_.name);
  archive_read_support_format_raw(reader_.get());
  archive_read_support_filter_gzip(reader_.get());
  archive_read_support_filter_zstd(reader_.get());
  archive_entry* entry = nullptr;
  if (archive_read_open(reader_.get(), this, nullptr, Read, nullptr) != ARCHIVE_OK) {
    if (error_.err != 0) return std::unexpected(error_);
    return ArchiveError(reader_.get(), "decompress layer", blob_.name);
  }
  const int rc = archive_read_next_header(reader_.get(), &entry);
  if (rc == ARCHIVE_EOF) {
    end_ = true;
  } else if (rc != ARCHIVE_OK) {
    if (error_.err != 0) return std::unexpected(error_);
    return ArchiveError(reader_.get(), "decompress layer", blob_.name);
  }
  return {};
}

base::Result<std::span<const char>> LayerStream::Next() {
  while (!end_) {
    const void* data = nullptr;
    size_t size = 0;
    la_int64_t offset = 0;
    const int rc = archive_read_data_block(reader_.get(), &data, &size, &offset);
    if (rc == ARCHIVE_EOF) {
      end_ = true;
      break;
    }
    if (rc != ARCHIVE_OK) {
      if (error_.err != 0) return std::unexpected(error_);
      return ArchiveError(reader_.get(), "decompress layer", blob_.name);
    }
    if (size == 0) continue;
    out_ += size;
    if (out_ > limits_.stream_bytes) {
      return base::MakeError(EFBIG, "decompress layer", blob_.name,
                             "more than " + std::to_string(limits_.stream_bytes) + " bytes of tar");
    }
    if (limits_.IsBomb(in_, out_)) {
      return base::MakeError(
          EFBIG, "decompress layer", blob_.name,
          "grows more than " + std::to_string(limits_.ratio) + " times: a decompression bomb");
    }
    hasher_.Update(data, size);
    return std::span(static_cast<const char*>(data), size);
  }
  return std::span<const char>();
}

base::Result<Digest> LayerStream::Drain() {
  while (true) {
    GCS_ASSIGN(const std::span<const char> piece, Next());
    if (piece.empty()) return hasher_.Finish();
  }
}

}  // namespace gcs::host
