// SPDX-License-Identifier: Apache-2.0
#include "host/image/blob_store.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "base/paths.h"
#include "host/image/archive_util.h"
#include "host/image/image.h"
#include "host/image/spool.h"

namespace gcs::host {
namespace {

// An archive around blobs holds one entry per blob; more than this is no image.
constexpr size_t kMaxArchiveEntries = 100'000;
// A compressed archive is unpacked to a nameless temporary file before its parts can be read in place.
constexpr uint64_t kMaxUnpackedArchive = 64ULL << 30;

base::Result<uint64_t> RegularSize(int fd, const std::string& name) {
  struct stat st{};
  if (fstat(fd, &st) != 0) return base::ErrnoError("fstat", name);
  if (!S_ISREG(st.st_mode)) return base::MakeError(EINVAL, "open blob", name, "not a regular file");
  return static_cast<uint64_t>(st.st_size);
}

class DirectoryStore : public BlobStore {
 public:
  DirectoryStore(base::Fd root, std::string path) : root_(std::move(root)), path_(std::move(path)) {}

  [[nodiscard]] base::Result<Blob> Open(const std::string& name) const override {
    // A layout from elsewhere may hold symbolic links: they are followed only below its own directory.
    const int fd = base::OpenInRoot(root_.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return base::MakeError(-fd, "open blob", path_ + "/" + name);
    Blob blob{std::make_shared<base::Fd>(fd), 0, 0, path_ + "/" + name};
    GCS_ASSIGN(blob.size, RegularSize(fd, blob.name));
    return blob;
  }

 private:
  base::Fd root_;
  std::string path_;
};

class ArchiveStore : public BlobStore {
 public:
  struct Entry {
    uint64_t offset = 0;
    uint64_t size = 0;
    std::string
        link;  // target relative to the archive's root; old `docker save` repeats layers as symbolic links
  };

  ArchiveStore(std::shared_ptr<base::Fd> file, std::string path, std::map<std::string, Entry> entries)
      : file_(std::move(file)), path_(std::move(path)), entries_(std::move(entries)) {}

  [[nodiscard]] base::Result<Blob> Open(const std::string& name) const override {
    std::string at = name;
    for (int hops = 0; hops < 8; ++hops) {
      const auto found = entries_.find(at);
      if (found == entries_.end()) return base::MakeError(ENOENT, "open blob", path_ + " " + at);
      if (found->second.link.empty()) {
        return Blob{file_, found->second.offset, found->second.size, path_ + " " + at};
      }
      at = found->second.link;
    }
    return base::MakeError(ELOOP, "open blob", path_ + " " + name);
  }

 private:
  std::shared_ptr<base::Fd> file_;
  std::string path_;
  std::map<std::string, Entry> entries_;
};

// "./a//b" and "/a/b" as "a/b"; nothing for a path with "..".
std::optional<std::string> CleanName(std::string_view name) {
  std::string out;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    at = end + 1;
    if (part.empty() || part == ".") continue;
    if (part == "..") return std::nullopt;
    if (!out.empty()) out += '/';
    out += part;
  }
  return out;
}

// The target of a link at `name`, in the archive's terms; nothing when it leaves the archive.
std::optional<std::string> LinkTarget(const std::string& name, std::string_view target) {
  std::vector<std::string_view> parts;
  const std::string full = target.starts_with('/') ? std::string(target)
                                                   : name.substr(0, std::min(name.rfind('/'), name.size())) +
                                                         "/" + std::string(target);
  std::string_view rest = full;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('/'), rest.size());
    const std::string_view part = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (part.empty() || part == ".") continue;
    if (part != "..") {
      parts.push_back(part);
    } else if (parts.empty()) {
      return std::nullopt;
    } else {
      parts.pop_back();
    }
  }
  std::string out;
  for (const std::string_view part : parts) {
    if (!out.empty()) out += '/';
    out += part;
  }
  return out;
}

base::Result<std::shared_ptr<BlobStore>> IndexArchive(std::shared_ptr<base::Fd> file,
                                                      const std::string& path) {
  const ArchiveReader reader(archive_read_new());
  archive_read_support_format_tar(reader.get());
  if (lseek(file->get(), 0, SEEK_SET) < 0 ||
      archive_read_open_fd(reader.get(), file->get(), 64 << 10) != ARCHIVE_OK) {
    return ArchiveError(reader.get(), "read archive", path);
  }
  std::map<std::string, ArchiveStore::Entry> entries;
  size_t count = 0;
  while (true) {
    archive_entry* entry = nullptr;
    const int rc = archive_read_next_header(reader.get(), &entry);
    if (rc == ARCHIVE_EOF) break;
    if (rc != ARCHIVE_OK) return ArchiveError(reader.get(), "read archive", path);
    if (++count > kMaxArchiveEntries) return base::MakeError(E2BIG, "read archive", path, "too many entries");
    const char* raw = archive_entry_pathname(entry);
    const auto name = raw == nullptr ? std::nullopt : CleanName(raw);
    if (!name) {
      return base::MakeError(EBADMSG, "read archive", path, "an entry's name is missing or contains \"..\"");
    }
    const char* hard = archive_entry_hardlink(entry);
    const char* soft = archive_entry_symlink(entry);
    if (hard != nullptr || soft != nullptr) {
      const auto target = hard != nullptr ? CleanName(hard) : LinkTarget(*name, soft);
      if (!target)
        return base::MakeError(EBADMSG, "read archive", path + " " + *name, "link leaves the archive");
      entries[*name] = {0, 0, *target};
    } else if (archive_entry_filetype(entry) == AE_IFREG) {
      if (archive_entry_sparse_count(entry) > 0) {
        return base::MakeError(ENOTSUP, "read archive", path + " " + *name, "sparse entry");
      }
      // Without a decompressor the position in the stream is the position in the file.
      entries[*name] = {static_cast<uint64_t>(archive_filter_bytes(reader.get(), 0)),
                        static_cast<uint64_t>(archive_entry_size(entry)),
                        {}};
    }
  }
  return std::make_shared<ArchiveStore>(std::move(file), path, std::move(entries));
}

// A whole archive under gzip, zstd, xz or bzip2, unpacked to memory that the kernel may swap to /tmp's disk.
base::Result<std::shared_ptr<base::Fd>> Unpack(int file, const std::string& path) {
  const char* dir = getenv("TMPDIR");
  GCS_ASSIGN(base::Fd nameless, NamelessFile(dir != nullptr ? dir : "/tmp"));
  auto out = std::make_shared<base::Fd>(std::move(nameless));
  const ImageLimits limits;
  const ArchiveReader reader(archive_read_new());
  archive_read_support_format_raw(reader.get());
  archive_read_support_filter_gzip(reader.get());
  archive_read_support_filter_zstd(reader.get());
  archive_read_support_filter_xz(reader.get());
  archive_read_support_filter_bzip2(reader.get());
  archive_entry* entry = nullptr;
  if (lseek(file, 0, SEEK_SET) < 0 || archive_read_open_fd(reader.get(), file, 256 << 10) != ARCHIVE_OK ||
      archive_read_next_header(reader.get(), &entry) != ARCHIVE_OK) {
    return ArchiveError(reader.get(), "decompress archive", path);
  }
  uint64_t total = 0;
  std::vector<char> buffer(1 << 20);
  while (true) {
    const la_ssize_t got = archive_read_data(reader.get(), buffer.data(), buffer.size());
    if (got < 0) return ArchiveError(reader.get(), "decompress archive", path);
    if (got == 0) break;
    total += static_cast<uint64_t>(got);
    if (total > kMaxUnpackedArchive) return base::MakeError(EFBIG, "decompress archive", path);
    if (limits.IsBomb(static_cast<uint64_t>(archive_filter_bytes(reader.get(), -1)), total)) {
      return base::MakeError(
          EFBIG, "decompress archive", path,
          "grows more than " + std::to_string(limits.ratio) + " times: a decompression bomb");
    }
    for (la_ssize_t done = 0; done < got;) {
      const ssize_t n = write(out->get(), buffer.data() + done, static_cast<size_t>(got - done));
      if (n < 0) return base::ErrnoError("write temporary file", path);
      done += n;
    }
  }
  return out;
}

}  // namespace

base::Result<size_t> Blob::ReadAt(uint64_t at, void* buffer, size_t want) const {
  if (at >= size) return size_t{0};
  want = static_cast<size_t>(std::min<uint64_t>(want, size - at));
  const ssize_t got = pread(file->get(), buffer, want, static_cast<off_t>(offset + at));
  if (got < 0) return base::ErrnoError("read blob", name);
  if (got == 0) return base::MakeError(EIO, "read blob", name, "the file ends before the blob does");
  return static_cast<size_t>(got);
}

base::Result<std::string> Blob::ReadAll(size_t limit) const {
  if (size > limit) {
    return base::MakeError(EFBIG, "read blob", name, "limit is " + std::to_string(limit) + " bytes");
  }
  std::string content(size, '\0');
  for (size_t at = 0; at < content.size();) {
    GCS_ASSIGN(const size_t got, ReadAt(at, content.data() + at, content.size() - at));
    at += got;
  }
  return content;
}

base::Result<std::shared_ptr<BlobStore>> OpenBlobStore(const std::string& path) {
  GCS_ASSIGN(base::Fd file, base::OpenFile(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  struct stat st{};
  if (fstat(file.get(), &st) != 0) return base::ErrnoError("fstat", path);
  if (S_ISDIR(st.st_mode)) return std::make_shared<DirectoryStore>(std::move(file), path);
  if (!S_ISREG(st.st_mode)) {
    return base::MakeError(EINVAL, "open image", path, "neither a directory nor a regular file");
  }
  auto shared = std::make_shared<base::Fd>(std::move(file));
  unsigned char magic[6] = {};
  if (pread(shared->get(), magic, sizeof magic, 0) < 0) return base::ErrnoError("read", path);
  const bool compressed = (magic[0] == 0x1f && magic[1] == 0x8b) ||
                          (magic[0] == 0x28 && magic[1] == 0xb5 && magic[2] == 0x2f && magic[3] == 0xfd) ||
                          (magic[0] == 0xfd && magic[1] == '7' && magic[2] == 'z') ||
                          (magic[0] == 'B' && magic[1] == 'Z' && magic[2] == 'h');
  if (compressed) {
    GCS_ASSIGN(shared, Unpack(shared->get(), path));
  }
  return IndexArchive(std::move(shared), path);
}

}  // namespace gcs::host
