// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "host/image/archive_util.h"
#include "host/image/layer_stream.h"

struct archive_entry;

namespace gcs::host {

// One entry of a layer archive, as it is there: nothing is normalised or judged yet.
struct TarEntry {
  std::string path;
  bool hard_link = false;
  std::string link;   // target of a hard or symbolic link
  uint32_t mode = 0;  // with its S_IFMT type; a hard link's is meaningless
  uint64_t uid = 0;
  uint64_t gid = 0;
  int64_t mtime = 0;
  uint32_t mtime_ns = 0;
  uint64_t rdev_major = 0;
  uint64_t rdev_minor = 0;
  uint64_t size = 0;  // logical, holes included
  std::vector<std::pair<std::string, std::string>> xattrs;
};

struct TarData {
  const char* data = nullptr;
  size_t size = 0;
  uint64_t offset = 0;  // within the file; what no piece covers is a hole
};

// Entries of a tar stream in any of its forms: v7, ustar, pax, GNU, old and new sparse maps (libarchive).
class TarReader {
 public:
  static base::Result<std::unique_ptr<TarReader>> Open(LayerStream& stream);

  // False at the end of the archive.
  base::Result<bool> Next(TarEntry& entry);
  // A piece of the current entry's data; false at its end. Must be read to the end before the next Next().
  base::Result<bool> NextData(TarData& data);

 private:
  explicit TarReader(LayerStream& stream) : stream_(stream) {}
  static la_ssize_t Read(archive* a, void* self, const void** data);
  std::unexpected<base::Error> Failed(std::string_view object);
  base::Result<> ReadXattrs(archive_entry* from, TarEntry& entry);
  base::Result<> ReadAcl(archive_entry* from, int type, const char* name, TarEntry& entry);

  LayerStream& stream_;
  ArchiveReader reader_;
  base::Error error_;  // of the stream, while libarchive is the caller
  // The stream from position window_start_ on, as far as it was read: headers are looked at a second time.
  std::string window_;
  uint64_t window_start_ = 0;
  uint64_t keep_from_ = 0;
  std::string path_;  // of the current entry, for errors
};

}  // namespace gcs::host
