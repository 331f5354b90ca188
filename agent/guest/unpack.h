// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "guest/tar.h"

namespace gcs::guest {

// Unpacks a tar stream into a directory below `root`, which a container may change meanwhile: every path, of
// the directory, of an entry, of a hard link's other name, is resolved inside `root`, and what is there is
// replaced, never opened. A file appears when it is complete; what is incomplete goes with the Unpacker.
// Entries that were complete before a failure stay.
//
// Owners, permissions (set-user-id too), times, extended attributes and device nodes are made as the stream
// has them, without the names of users. Missing parents are made (0755). The entry of the directory itself is
// skipped: its owner and mode are not the stream's business.
//
// Errors: those of TarDecoder; EINVAL for a name with ".." and for limits of the format; ENOENT, ENOTDIR
// where `path` is no directory; ENOTEMPTY or EISDIR where a directory is in a file's place; what the kernel
// says. Not for more than one thread at a time.
class Unpacker final : private TarDecoder::Sink {
 public:
  static constexpr uint64_t kMaxEntries = 1 << 20;
  static constexpr uint64_t kMaxBytes = uint64_t{1} << 40;

  static base::Result<std::unique_ptr<Unpacker>> Create(base::Fd root, std::string path);
  ~Unpacker() override;
  Unpacker(const Unpacker&) = delete;
  Unpacker& operator=(const Unpacker&) = delete;

  base::Result<> Push(std::string_view bytes) { return decoder_.Push(bytes); }
  // The stream has ended.
  base::Result<> Finish();

  [[nodiscard]] uint64_t entries() const { return entries_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }  // of files' contents

 private:
  // A directory whose time is set when everything in it is there.
  struct Open {
    std::string path;
    base::Fd fd;
    int64_t mtime;
    uint32_t mtime_ns;
  };

  Unpacker(base::Fd root, std::string path)
      : root_(std::move(root)), path_(std::move(path)), decoder_(this) {}

  base::Result<> Begin(const TarEntry& entry) override;
  base::Result<> Data(std::string_view bytes) override;
  base::Result<> End() override;

  base::Result<> MakeDirectory(const std::string& path);
  base::Result<> MakeTemporary();
  base::Result<> CloseDirectories(std::string_view keep);
  base::Result<> SetAttributes(int fd) const;
  [[nodiscard]] std::unexpected<base::Error> Failed(std::string_view step) const;

  const base::Fd root_;
  const std::string path_;  // of the directory, in root_
  TarDecoder decoder_;
  std::vector<Open> open_;  // each below the one before
  uint64_t entries_ = 0;
  uint64_t bytes_ = 0;

  // The entry being made; in `parent_` under `temporary_` (empty: nothing yet) until it is complete.
  TarEntry entry_;
  base::Fd parent_;
  base::Fd file_;
  std::string leaf_;
  std::string temporary_;
};

}  // namespace gcs::guest
