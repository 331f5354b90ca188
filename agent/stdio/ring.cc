// SPDX-License-Identifier: Apache-2.0
#include "stdio/ring.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

namespace gcs::stdio {
namespace {

// Chunks come from mmap and go back to the kernel, so that a burst of output leaves no hole in the heap. A
// few stay for the next ring: a steady stream then takes and gives chunks without system calls and page
// faults.
class ChunkPool {
 public:
  static ChunkPool& Get() {
    static auto* pool = new ChunkPool;  // never destroyed: rings may outlive static destruction
    return *pool;
  }

  char* Take() {
    {
      const std::lock_guard lock(mutex_);
      if (!spare_.empty()) {
        char* chunk = spare_.back();
        spare_.pop_back();
        ++in_use_;
        return chunk;
      }
    }
    void* memory =
        mmap(nullptr, Ring::kChunkBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    const std::lock_guard lock(mutex_);
    ++in_use_;
    return static_cast<char*>(memory);
  }

  void Give(char* chunk) {
    {
      const std::lock_guard lock(mutex_);
      --in_use_;
      if (spare_.size() < kSpare) {
        spare_.push_back(chunk);
        return;
      }
    }
    munmap(chunk, Ring::kChunkBytes);
  }

  size_t in_use() {
    const std::lock_guard lock(mutex_);
    return in_use_;
  }

 private:
  static constexpr size_t kSpare = 16;  // 256 KiB, one default ring

  std::mutex mutex_;
  std::vector<char*> spare_;
  size_t in_use_ = 0;
};

}  // namespace

size_t ChunksInUse() { return ChunkPool::Get().in_use(); }

int Ring::Prepare(size_t max, iovec* iov, int count) {
  int pieces = 0;
  uint64_t at = end_;
  while (max > 0 && pieces < count) {
    const size_t index = (at - base_) / kChunkBytes;
    if (index == chunks_.size()) {
      char* chunk = ChunkPool::Get().Take();
      if (chunk == nullptr) break;
      if (chunks_.empty()) base_ = at;
      chunks_.push_back(chunk);
      continue;
    }
    const size_t used = (at - base_) % kChunkBytes;
    const size_t piece = std::min(max, kChunkBytes - used);
    iov[pieces++] = iovec{chunks_[index] + used, piece};
    at += piece;
    max -= piece;
  }
  return pieces;
}

void Ring::Commit(size_t bytes) {
  end_ += bytes;
  GiveBackUnused();
}

void Ring::GiveBackUnused() {
  if (empty()) {
    base_ = begin_;
    while (!chunks_.empty()) {
      ChunkPool::Get().Give(chunks_.back());
      chunks_.pop_back();
    }
    return;
  }
  while (chunks_.size() > (end_ - base_ + kChunkBytes - 1) / kChunkBytes) {
    ChunkPool::Get().Give(chunks_.back());
    chunks_.pop_back();
  }
}

size_t Ring::Append(const char* data, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    iovec piece{};
    if (Prepare(bytes - done, &piece, 1) == 0) break;
    memcpy(piece.iov_base, data + done, piece.iov_len);
    done += piece.iov_len;
    Commit(piece.iov_len);
  }
  return done;
}

int Ring::Peek(size_t max, iovec* iov, int count) const {
  int pieces = 0;
  uint64_t at = begin_;
  max = std::min<uint64_t>(max, size());
  while (max > 0 && pieces < count) {
    const size_t used = (at - base_) % kChunkBytes;
    const size_t piece = std::min(max, kChunkBytes - used);
    iov[pieces++] = iovec{chunks_[(at - base_) / kChunkBytes] + used, piece};
    at += piece;
    max -= piece;
  }
  return pieces;
}

void Ring::Copy(uint64_t offset, size_t max, std::string& out) const {
  max = std::min<uint64_t>(max, end_ - offset);
  out.reserve(out.size() + max);
  while (max > 0) {
    const size_t used = (offset - base_) % kChunkBytes;
    const size_t piece = std::min(max, kChunkBytes - used);
    out.append(chunks_[(offset - base_) / kChunkBytes] + used, piece);
    offset += piece;
    max -= piece;
  }
}

void Ring::DropTo(uint64_t offset) {
  begin_ = std::clamp(offset, begin_, end_);
  if (empty()) {
    GiveBackUnused();
    return;
  }
  while (begin_ - base_ >= kChunkBytes) {
    ChunkPool::Get().Give(chunks_.front());
    chunks_.pop_front();
    base_ += kChunkBytes;
  }
}

}  // namespace gcs::stdio
