// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::host {

inline constexpr uint32_t kBlockSize = 4096;  // of the file system and of everything counted in blocks

// Blocks `logical`.. of a file are blocks `spool`.. of the spool; what no run covers is a hole.
struct BlockRun {
  uint64_t logical = 0;
  uint64_t spool = 0;
  uint64_t count = 0;
};

// A file without a name on the file system of `dir`.
base::Result<base::Fd> NamelessFile(const std::string& dir);

// File contents between the archive and the disk: whole blocks in a nameless file, blocks of zeros left out.
// The size of the disk and the digest of the stream are known only when the archive was read to its end.
class Spool {
 public:
  // `dir` names the directory whose file system takes the data.
  static base::Result<Spool> Make(const std::string& dir);

  // Appends data of the current file; `offset` must not lie before the end of the last piece.
  base::Result<> Add(const char* data, size_t size, uint64_t offset);
  // Ends the current file and gives its runs.
  base::Result<std::vector<BlockRun>> EndFile();
  base::Result<> Flush();

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] uint64_t blocks() const { return blocks_; }

 private:
  base::Result<> TakeBlock(uint64_t logical, const char* data);

  base::Fd fd_;
  uint64_t blocks_ = 0;  // in the spool, the buffered ones included
  std::vector<char> buffer_;
  std::vector<BlockRun> runs_;
  // The block that is being filled.
  std::vector<char> partial_ = std::vector<char>(kBlockSize);
  uint64_t partial_logical_ = 0;
  bool partial_used_ = false;
  uint64_t end_ = 0;
};

}  // namespace gcs::host
