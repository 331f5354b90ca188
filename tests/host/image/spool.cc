// SPDX-License-Identifier: Apache-2.0
#include "host/image/spool.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace gcs::host {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

bool IsZero(const char* block) { return block[0] == 0 && memcmp(block, block + 1, kBlockSize - 1) == 0; }

}  // namespace

base::Result<base::Fd> NamelessFile(const std::string& dir) {
  base::Fd fd(open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!fd && (errno == EOPNOTSUPP || errno == EISDIR)) {
    // A file system without O_TMPFILE (some FUSE and network ones).
    std::string name = dir + "/.spool-XXXXXX";
    fd.Reset(mkostemp(name.data(), O_CLOEXEC));
    if (fd) unlink(name.c_str());
  }
  if (!fd) return base::ErrnoError("open temporary file", dir);
  return fd;
}

base::Result<Spool> Spool::Make(const std::string& dir) {
  Spool spool;
  GCS_ASSIGN(spool.fd_, NamelessFile(dir));
  spool.buffer_.reserve(kBufferBytes);
  return spool;
}

base::Result<> Spool::TakeBlock(uint64_t logical, const char* data) {
  if (IsZero(data)) return {};
  if (!runs_.empty() && runs_.back().logical + runs_.back().count == logical &&
      runs_.back().spool + runs_.back().count == blocks_) {
    ++runs_.back().count;
  } else {
    runs_.push_back({logical, blocks_, 1});
  }
  buffer_.insert(buffer_.end(), data, data + kBlockSize);
  ++blocks_;
  return buffer_.size() >= kBufferBytes ? Flush() : base::Result<>();
}

base::Result<> Spool::Add(const char* data, size_t size, uint64_t offset) {
  if (offset < end_) return base::MakeError(EBADMSG, "read file data", {}, "pieces overlap");
  while (size > 0) {
    const uint64_t logical = offset / kBlockSize;
    const size_t within = offset % kBlockSize;
    if (partial_used_ && logical != partial_logical_) {
      GCS_TRY(TakeBlock(partial_logical_, partial_.data()));
      partial_used_ = false;
    }
    size_t take = kBlockSize;
    if (within == 0 && size >= kBlockSize && !partial_used_) {
      GCS_TRY(TakeBlock(logical, data));
    } else {
      if (!partial_used_) std::ranges::fill(partial_, 0);
      partial_used_ = true;
      partial_logical_ = logical;
      take = std::min(size, kBlockSize - within);
      memcpy(partial_.data() + within, data, take);
    }
    data += take;
    size -= take;
    offset += take;
  }
  end_ = std::max(end_, offset);
  return {};
}

base::Result<std::vector<BlockRun>> Spool::EndFile() {
  if (partial_used_) GCS_TRY(TakeBlock(partial_logical_, partial_.data()));
  partial_used_ = false;
  end_ = 0;
  return std::exchange(runs_, {});
}

base::Result<> Spool::Flush() {
  uint64_t at = (blocks_ * kBlockSize) - buffer_.size();
  for (size_t done = 0; done < buffer_.size();) {
    const ssize_t n = pwrite(fd_.get(), buffer_.data() + done, buffer_.size() - done, static_cast<off_t>(at));
    if (n < 0) return base::ErrnoError("write temporary file", "layer data");
    done += static_cast<size_t>(n);
    at += static_cast<uint64_t>(n);
  }
  buffer_.clear();
  return {};
}

}  // namespace gcs::host
