// SPDX-License-Identifier: Apache-2.0
#include "guest/machine.h"

#include <fcntl.h>
#include <linux/random.h>
#include <sys/ioctl.h>

#include <cstring>
#include <ctime>
#include <memory>

#include "base/clock.h"
#include "base/paths.h"

namespace gcs::guest {

namespace {
constexpr size_t kMaxEntropyBytes = 4096;
}  // namespace

base::Result<int64_t> SetWallClock(int64_t time_ns) {
  if (time_ns <= 0) return base::MakeError(EINVAL, "set time", "time_ns", "must be positive");
  timespec time{};
  time.tv_sec = time_ns / base::kNsPerSec;
  time.tv_nsec = time_ns % base::kNsPerSec;
  const int64_t before = base::RealtimeNs();
  if (clock_settime(CLOCK_REALTIME, &time) != 0) return base::ErrnoError("clock_settime", "CLOCK_REALTIME");
  return time_ns - before;
}

base::Result<> AddEntropy(std::string_view data) {
  if (data.empty() || data.size() > kMaxEntropyBytes) {
    return base::MakeError(EINVAL, "add entropy", "data", "must have 1 to 4096 bytes");
  }
  GCS_ASSIGN(const base::Fd random, base::OpenFile("/dev/urandom", O_WRONLY | O_CLOEXEC));
  // rand_pool_info ends in a flexible array of words.
  const size_t words = (data.size() + sizeof(__u32) - 1) / sizeof(__u32);
  const size_t size = sizeof(rand_pool_info) + words * sizeof(__u32);
  const std::unique_ptr<char[]> storage = std::make_unique<char[]>(size);
  auto* info = reinterpret_cast<rand_pool_info*>(storage.get());
  info->entropy_count = static_cast<int>(data.size() * 8);
  info->buf_size = static_cast<int>(data.size());
  memcpy(info->buf, data.data(), data.size());
  const int added = ioctl(random.get(), RNDADDENTROPY, info);
  const int add_errno = errno;
  explicit_bzero(storage.get(), size);
  if (added != 0) return base::MakeError(add_errno, "ioctl RNDADDENTROPY", "/dev/urandom");
  if (ioctl(random.get(), RNDRESEEDCRNG) != 0) return base::ErrnoError("ioctl RNDRESEEDCRNG", "/dev/urandom");
  return {};
}

}  // namespace gcs::guest
