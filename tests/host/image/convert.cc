// SPDX-License-Identifier: Apache-2.0
#include "host/image/convert.h"

#include <vector>

#include "host/image/ext4_writer.h"
#include "host/image/layer_stream.h"
#include "host/image/layer_tree.h"
#include "host/image/spool.h"
#include "host/image/tar_reader.h"

namespace gcs::host {
namespace {

base::Result<> ReadData(TarReader& tar, const TarEntry& entry, Inode& inode, Spool& spool) {
  TarData data;
  while (true) {
    GCS_ASSIGN(const bool more, tar.NextData(data));
    if (!more) break;
    if (data.offset > entry.size || data.size > entry.size - data.offset) {
      return base::MakeError(EBADMSG, "read tar", entry.path, "data beyond the file's size");
    }
    if (auto added = spool.Add(data.data, data.size, data.offset); !added) {
      added.error().object = entry.path;
      return added;
    }
  }
  GCS_ASSIGN(inode.runs, spool.EndFile());
  return {};
}

base::Result<> SkipData(TarReader& tar) {
  TarData data;
  while (true) {
    GCS_ASSIGN(const bool more, tar.NextData(data));
    if (!more) return {};
  }
}

}  // namespace

base::Result<> VerifyBlob(const Blob& blob, const Digest& digest, uint64_t size,
                          const std::function<void(uint64_t)>& on_bytes) {
  if (blob.size != size) {
    return base::MakeError(
        EBADMSG, "verify blob size", blob.name,
        "has " + std::to_string(blob.size) + " bytes, its descriptor says " + std::to_string(size));
  }
  GCS_ASSIGN(Hasher hasher, Hasher::Make(digest.algorithm));
  std::vector<char> buffer(1 << 20);
  for (uint64_t at = 0; at < size;) {
    GCS_ASSIGN(const size_t got, blob.ReadAt(at, buffer.data(), buffer.size()));
    hasher.Update(buffer.data(), got);
    at += got;
    if (on_bytes) on_bytes(at);
  }
  const Digest found = hasher.Finish();
  if (found != digest) {
    return base::MakeError(EBADMSG, "verify blob digest", blob.name, "content has " + found.ToString());
  }
  return {};
}

base::Result<ConvertedLayer> ConvertBlob(
    const Blob& blob, const Digest& diff_id, bool check_diff_id, int out, const std::string& scratch_dir,
    const ImageLimits& limits,
    const std::function<void(LayerProgress::Phase, uint64_t, uint64_t)>& progress) {
  using Phase = LayerProgress::Phase;
  if (blob.size > limits.blob_bytes) {
    return base::MakeError(EFBIG, "read layer", blob.name,
                           "more than " + std::to_string(limits.blob_bytes) + " bytes");
  }
  GCS_ASSIGN(const std::unique_ptr<LayerStream> stream,
             LayerStream::Open(blob, diff_id.algorithm, limits, [&](uint64_t done) {
               if (progress) progress(Phase::kReading, done, blob.size);
             }));
  LayerTree tree(limits);
  GCS_ASSIGN(Spool spool, Spool::Make(scratch_dir));
  {
    GCS_ASSIGN(const std::unique_ptr<TarReader> tar, TarReader::Open(*stream));
    TarEntry entry;
    while (true) {
      GCS_ASSIGN(const bool more, tar->Next(entry));
      if (!more) break;
      auto added = tree.Add(entry);
      if (!added) {
        // An entry without a name is known by its archive.
        if (added.error().object.empty()) added.error().object = blob.name;
        return std::unexpected(std::move(added).error());
      }
      Inode* inode = *added;
      if (inode != nullptr) {
        GCS_TRY(ReadData(*tar, entry, *inode, spool));
      } else {
        GCS_TRY(SkipData(*tar));
      }
    }
  }
  GCS_ASSIGN(const Digest found, stream->Drain());
  if (check_diff_id && found != diff_id) {
    return base::MakeError(
        EBADMSG, "verify diff_id", blob.name,
        "the config says " + diff_id.ToString() + ", the tar stream has " + found.ToString());
  }
  GCS_TRY(spool.Flush());
  ConvertedLayer result;
  result.dropped = tree.dropped();
  GCS_ASSIGN(result.bytes, WriteExt4(tree, spool, out, diff_id, [&](uint64_t done, uint64_t total) {
               if (progress) progress(Phase::kWriting, done, total);
             }));
  return result;
}

}  // namespace gcs::host
