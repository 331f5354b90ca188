// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <deque>
#include <string>

namespace gcs::stdio {

// A queue of bytes that are known by their 64-bit offset in a stream. It grows by chunks as bytes come and
// gives every chunk back as soon as its last byte is dropped; an empty one holds no chunk. Bounding it is the
// user's business. Not thread-safe.
class Ring {
 public:
  static constexpr size_t kChunkBytes = 16 << 10;

  Ring() = default;
  ~Ring() { Clear(); }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  [[nodiscard]] uint64_t begin() const { return begin_; }  // offset of the oldest byte kept
  [[nodiscard]] uint64_t end() const { return end_; }      // offset of the next byte to come
  [[nodiscard]] uint64_t size() const { return end_ - begin_; }
  [[nodiscard]] bool empty() const { return begin_ == end_; }

  // Room for up to `max` bytes after end(), as at most `count` pieces in `iov`; returns the number of pieces,
  // 0 if there is no memory. Must be followed by Commit with the number of bytes put there, which may be 0.
  int Prepare(size_t max, iovec* iov, int count);
  void Commit(size_t bytes);

  // Appends as much as memory allows; returns how much that was.
  size_t Append(const char* data, size_t bytes);

  // Oldest bytes, at most `max`, as pieces in `iov`; valid until the next change.
  int Peek(size_t max, iovec* iov, int count) const;
  // Appends up to `max` bytes from `offset` on, which must lie in [begin, end], to `out`.
  void Copy(uint64_t offset, size_t max, std::string& out) const;

  // Drops everything below `offset` (at most end()).
  void DropTo(uint64_t offset);
  // Drops everything; offsets go on from end().
  void Clear() { DropTo(end_); }

 private:
  void GiveBackUnused();

  std::deque<char*> chunks_;
  uint64_t base_ = 0;  // offset of the first byte of chunks_.front(); begin_ <= base_ + kChunkBytes
  uint64_t begin_ = 0;
  uint64_t end_ = 0;
};

// How many chunks rings hold now, in the whole process. For tests and memory accounts.
size_t ChunksInUse();

}  // namespace gcs::stdio
