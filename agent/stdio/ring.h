// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::stdio {

// A queue of bytes that are known by their 64-bit offset in a stream, in a memory file in which a byte's
// place is its offset. Where the queue begins and ends is the file's position and size: the kernel counts
// them in the same call that moves the bytes, so that whoever holds the file after a crash knows exactly what
// has come and gone. What was dropped is given back, by pages. Bounding it is the user's business. Not
// thread-safe.
class Ring {
 public:
  Ring() = default;  // holds nothing and takes nothing
  static base::Result<Ring> Create(std::string_view name);
  // One that another process had; where it began and ended then is where it goes on.
  static base::Result<Ring> Restore(base::Fd file, std::string_view name);

  [[nodiscard]] int fd() const { return file_.get(); }
  [[nodiscard]] uint64_t begin() const { return begin_; }  // offset of the oldest byte kept
  [[nodiscard]] uint64_t end() const { return end_; }      // offset of the next byte to come
  [[nodiscard]] uint64_t size() const { return end_ - begin_; }
  [[nodiscard]] bool empty() const { return begin_ == end_; }

  // Moves at most `max` bytes out of a pipe to the end, without waiting: as splice(2).
  ssize_t TakeFrom(int pipe, size_t max);
  // Appends as much as memory allows; returns how much that was.
  size_t Append(std::string_view data);

  // Moves the oldest bytes, at most `max`, to a descriptor that does not block: as splice(2).
  ssize_t GiveTo(int sink, size_t max);
  // Appends up to `max` bytes from `offset` on, which must lie in [begin, end], to `out`.
  void Copy(uint64_t offset, size_t max, std::string& out) const;

  // Drops everything below `offset` (at most end()).
  void DropTo(uint64_t offset);
  // Drops everything; offsets go on from end().
  void Clear() { DropTo(end_); }

  // A mark for the user, kept with the file: that nothing more will come.
  void MarkOver();
  [[nodiscard]] bool over() const { return over_; }

  // Bytes of memory that the file holds.
  [[nodiscard]] uint64_t memory() const;

 private:
  explicit Ring(base::Fd file) : file_(std::move(file)) {}
  void GiveBack();

  base::Fd file_;
  uint64_t begin_ = 0;
  uint64_t end_ = 0;
  uint64_t freed_ = 0;  // a page's begin, below which the file holds nothing
  bool over_ = false;
};

}  // namespace gcs::stdio
