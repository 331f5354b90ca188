// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/paths.h"
#include "host/cache.h"
#include "host/image/convert.h"
#include "host/image/ext4_writer.h"
#include "host/image/image.h"

namespace gcs::host {
namespace {

using Phase = LayerProgress::Phase;
constexpr int64_t kProgressInterval = 50 * base::kNsPerMs;

// Reports on one layer, at every change of phase and at most 20 times a second within one.
class Reporter {
 public:
  Reporter(const ProgressFn& fn, LayerProgress first) : fn_(fn), now_(std::move(first)) {}
  void Report(Phase phase, uint64_t done, uint64_t total) {
    const int64_t time = base::MonotonicNs();
    const bool same = phase == now_.phase && reported_;
    if (!fn_ || (same && done != total && time - last_ < kProgressInterval)) return;
    last_ = time;
    reported_ = true;
    now_.phase = phase;
    now_.done = done;
    now_.total = total;
    fn_(now_);
  }

 private:
  const ProgressFn& fn_;
  LayerProgress now_;
  int64_t last_ = 0;
  bool reported_ = false;
};

// The lock of one layer, a file that exists only while somebody converts it.
class LayerLock {
 public:
  static base::Result<LayerLock> Take(std::string path, Reporter& reporter) {
    while (true) {
      GCS_ASSIGN(base::Fd fd, base::OpenFile(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
      if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) return base::ErrnoError("flock", path);
        reporter.Report(Phase::kWaiting, 0, 0);
        while (flock(fd.get(), LOCK_EX) != 0) {
          if (errno != EINTR) return base::ErrnoError("flock", path);
        }
      }
      // The holder before us has unlinked the file: a lock on a nameless one keeps nobody out.
      struct stat held{};
      struct stat named{};
      if (fstat(fd.get(), &held) == 0 && stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
          held.st_dev == named.st_dev) {
        return LayerLock(std::move(fd), std::move(path));
      }
    }
  }
  LayerLock(LayerLock&& other) noexcept : fd_(std::move(other.fd_)), path_(std::exchange(other.path_, {})) {}
  LayerLock& operator=(LayerLock&&) = delete;
  LayerLock(const LayerLock&) = delete;
  LayerLock& operator=(const LayerLock&) = delete;
  ~LayerLock() {
    if (!path_.empty()) unlink(path_.c_str());
  }

 private:
  LayerLock(base::Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  base::Fd fd_;
  std::string path_;
};

// A file that gets its name only when it is whole.
class NewFile {
 public:
  static base::Result<NewFile> Make(const std::string& dir) {
    NewFile file;
    file.fd_.Reset(open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0644));
    if (!file.fd_ && (errno == EOPNOTSUPP || errno == EISDIR)) {
      file.temporary_ = dir + "/.new-XXXXXX";
      file.fd_.Reset(mkostemp(file.temporary_.data(), O_CLOEXEC));
      if (file.fd_ && fchmod(file.fd_.get(), 0644) != 0) return base::ErrnoError("fchmod", file.temporary_);
    }
    if (!file.fd_) return base::ErrnoError("open temporary file", dir);
    return file;
  }
  NewFile(NewFile&& other) noexcept
      : fd_(std::move(other.fd_)), temporary_(std::exchange(other.temporary_, {})) {}
  NewFile& operator=(NewFile&&) = delete;
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (!temporary_.empty()) unlink(temporary_.c_str());
  }

  [[nodiscard]] int fd() const { return fd_.get(); }

  base::Result<> Publish(const std::string& path) {
    // Data first: a name must not survive a power cut that its content doesn't.
    if (fdatasync(fd_.get()) != 0) return base::ErrnoError("fdatasync", path);
    if (!temporary_.empty()) {
      if (rename(temporary_.c_str(), path.c_str()) != 0) return base::ErrnoError("rename", path);
      temporary_.clear();
      return {};
    }
    const std::string self = "/proc/self/fd/" + std::to_string(fd_.get());
    if (linkat(AT_FDCWD, self.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) != 0) {
      return base::ErrnoError("linkat", path);
    }
    return {};
  }

 private:
  NewFile() = default;
  base::Fd fd_;
  std::string temporary_;
};

// The size of a whole disk in the cache; nothing when it has to be made.
std::optional<uint64_t> Cached(const std::string& path, const Digest& diff_id) {
  const base::Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat st{};
  if (!fd || !IsLayerDisk(fd.get(), diff_id) || fstat(fd.get(), &st) != 0) return std::nullopt;
  // Its last use, for TidyCache.
  futimens(fd.get(), nullptr);
  return static_cast<uint64_t>(st.st_size);
}

base::Result<LayerDisk> ConvertLayer(const Image& image, const ImageLayer& layer, const std::string& dir,
                                     const ImageLimits& limits, Reporter& reporter) {
  GCS_ASSIGN(const Digest diff_id, ParseDigest(layer.diff_id));
  const std::string base_name = diff_id.algorithm + "-" + diff_id.hex;
  LayerDisk disk;
  disk.diff_id = layer.diff_id;
  disk.path = dir + "/" + base_name + ".v" + std::to_string(kDiskFormat) + ".ext4";
  const auto use_cached = [&](uint64_t bytes) {
    disk.bytes = bytes;
    disk.cached = true;
    reporter.Report(Phase::kCached, bytes, bytes);
    return disk;
  };
  if (const auto bytes = Cached(disk.path, diff_id)) return use_cached(*bytes);
  GCS_ASSIGN(const LayerLock lock, LayerLock::Take(dir + "/." + base_name + ".lock", reporter));
  if (const auto bytes = Cached(disk.path, diff_id)) return use_cached(*bytes);
  if (unlink(disk.path.c_str()) != 0 && errno != ENOENT)
    return base::ErrnoError("unlink damaged disk", disk.path);

  Blob blob;
  if (layer.digest.empty()) {
    GCS_ASSIGN(blob, image.store->Open(layer.location));
  } else {
    GCS_ASSIGN(const Digest digest, ParseDigest(layer.digest));
    GCS_ASSIGN(blob, image.store->OpenDigest(digest));
    GCS_TRY(VerifyBlob(blob, digest, layer.size,
                       [&](uint64_t done) { reporter.Report(Phase::kVerifying, done, layer.size); }));
  }
  GCS_ASSIGN(NewFile file, NewFile::Make(dir));
  GCS_ASSIGN(const ConvertedLayer made, ConvertBlob(blob, diff_id, /*check_diff_id=*/true, file.fd(), dir,
                                                    limits, [&](Phase phase, uint64_t done, uint64_t total) {
                                                      reporter.Report(phase, done, total);
                                                    }));
  GCS_TRY(file.Publish(disk.path));
  disk.bytes = made.bytes;
  disk.dropped = made.dropped;
  reporter.Report(Phase::kDone, made.bytes, made.bytes);
  return disk;
}

}  // namespace

base::Result<std::vector<LayerDisk>> ConvertLayers(const Image& image, const std::string& cache_root,
                                                   const ProgressFn& progress, const ImageLimits& limits) {
  const std::string dir = cache_root + "/layers";
  GCS_TRY(base::MakeDirs(dir, 0755));
  std::vector<LayerDisk> disks;
  for (size_t i = 0; i < image.layers.size(); ++i) {
    const ImageLayer& layer = image.layers[i];
    Reporter reporter(progress, {.index = i, .count = image.layers.size(), .diff_id = layer.diff_id});
    GCS_ASSIGN(LayerDisk disk, ConvertLayer(image, layer, dir, limits, reporter));
    std::erase_if(disks, [&](const LayerDisk& lower) { return lower.diff_id == disk.diff_id; });
    disks.push_back(std::move(disk));
  }
  TidyCache(dir);
  return disks;
}

}  // namespace gcs::host
