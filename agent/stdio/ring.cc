// SPDX-License-Identifier: Apache-2.0
#include "stdio/ring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#ifndef MFD_NOEXEC_SEAL  // Linux 6.3
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace gcs::stdio {
namespace {

constexpr uint64_t kPage = 4096;
// One call to give memory back for that much of a steady stream.
constexpr uint64_t kGiveBackBytes = 64 << 10;
// The file's mode; the second says that nothing more will come.
constexpr mode_t kOpen = 0600;
constexpr mode_t kOver = 0400;

}  // namespace

base::Result<Ring> Ring::Create(std::string_view name) {
  base::Fd file(memfd_create("gcs-stream", MFD_CLOEXEC | MFD_NOEXEC_SEAL));
  if (!file && errno == EINVAL) file = base::Fd(memfd_create("gcs-stream", MFD_CLOEXEC));
  if (!file) return base::ErrnoError("memfd_create", name);
  if (fchmod(file.get(), kOpen) != 0) return base::ErrnoError("fchmod", name);
  return Ring(std::move(file));
}

base::Result<Ring> Ring::Restore(base::Fd file, std::string_view name) {
  Ring ring(std::move(file));
  struct stat info{};
  if (fstat(ring.fd(), &info) != 0) return base::ErrnoError("fstat", name);
  const off_t begin = lseek(ring.fd(), 0, SEEK_CUR);
  if (begin < 0) return base::ErrnoError("lseek", name);
  if (begin > info.st_size) return base::MakeError(EINVAL, "restore stream", name, "begins behind its end");
  ring.begin_ = static_cast<uint64_t>(begin);
  ring.end_ = static_cast<uint64_t>(info.st_size);
  ring.over_ = (info.st_mode & 0777) == kOver;
  ring.GiveBack();
  return ring;
}

ssize_t Ring::TakeFrom(int pipe, size_t max) {
  auto at = static_cast<loff_t>(end_);
  const ssize_t n = splice(pipe, nullptr, fd(), &at, max, SPLICE_F_NONBLOCK);
  if (n > 0) end_ += static_cast<uint64_t>(n);
  return n;
}

size_t Ring::Append(std::string_view data) {
  const size_t all = data.size();
  while (!data.empty()) {
    const ssize_t n = pwrite(fd(), data.data(), data.size(), static_cast<off_t>(end_));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    data.remove_prefix(static_cast<size_t>(n));
    end_ += static_cast<uint64_t>(n);
  }
  return all - data.size();
}

ssize_t Ring::GiveTo(int sink, size_t max) {
  // Not more than there is, or a socket would be told that more comes.
  const ssize_t n = sendfile(sink, fd(), nullptr, std::min<uint64_t>(max, size()));
  if (n > 0) {
    begin_ += static_cast<uint64_t>(n);
    GiveBack();
  }
  return n;
}

void Ring::Copy(uint64_t offset, size_t max, std::string& out) const {
  const size_t before = out.size();
  const auto want = static_cast<size_t>(std::min<uint64_t>(max, end_ - offset));
  out.resize(before + want);
  size_t done = 0;
  while (done < want) {
    const ssize_t n = pread(fd(), out.data() + before + done, want - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  out.resize(before + done);
}

void Ring::DropTo(uint64_t offset) {
  offset = std::clamp(offset, begin_, end_);
  if (offset == begin_) return;
  begin_ = offset;
  lseek(fd(), static_cast<off_t>(begin_), SEEK_SET);
  GiveBack();
}

// Whole pages only: of a page in part the kernel would zero the bytes, and those that a pipe or socket still
// has to deliver may lie in it.
void Ring::GiveBack() {
  const uint64_t unused = begin_ & ~(kPage - 1);
  if (unused == freed_ || (unused - freed_ < kGiveBackBytes && !empty())) return;
  // Without effect it costs memory, as a steady stream would, until the next time.
  if (fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(freed_),
                static_cast<off_t>(unused - freed_)) == 0) {
    freed_ = unused;
  }
}

void Ring::MarkOver() {
  if (!file_.valid() || over_) return;
  over_ = fchmod(fd(), kOver) == 0;
}

uint64_t Ring::memory() const {
  constexpr uint64_t kBlock = 512;
  struct stat info{};
  if (!file_.valid() || fstat(fd(), &info) != 0) return 0;
  return static_cast<uint64_t>(info.st_blocks) * kBlock;
}

}  // namespace gcs::stdio
