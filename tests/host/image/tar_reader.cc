// SPDX-License-Identifier: Apache-2.0
#include "host/image/tar_reader.h"

#include <archive_entry.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "host/image/tar_names.h"

namespace gcs::host {
namespace {

// libarchive accepts extension headers of 1 MiB, one of each kind.
constexpr size_t kMaxWindow = 8 << 20;

void AppendLe(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

// libarchive warns when a pax name doesn't fit its locale; names are taken from the header's bytes, so that's
// no matter.
bool OnlyAboutCharset(archive* a) {
  const char* text = archive_error_string(a);
  return text != nullptr &&
         (strstr(text, "can't be converted") != nullptr || strstr(text, "can't be allocated") != nullptr);
}

}  // namespace

base::Result<std::unique_ptr<TarReader>> TarReader::Open(LayerStream& stream) {
  std::unique_ptr<TarReader> tar(new TarReader(stream));
  tar->reader_.reset(archive_read_new());
  if (!tar->reader_) return base::MakeError(ENOMEM, "read tar", stream.name());
  archive_read_support_format_tar(tar->reader_.get());
  if (archive_read_open(tar->reader_.get(), tar.get(), nullptr, Read, nullptr) != ARCHIVE_OK) {
    return tar->Failed(stream.name());
  }
  return tar;
}

la_ssize_t TarReader::Read(archive* a, void* self, const void** data) {
  auto* tar = static_cast<TarReader*>(self);
  const auto piece = tar->stream_.Next();
  if (!piece) {
    tar->error_ = piece.error();
    archive_set_error(a, tar->error_.err, "%s", "read layer");
    return ARCHIVE_FATAL;
  }
  if (tar->keep_from_ > tar->window_start_) {
    const size_t drop =
        static_cast<size_t>(std::min<uint64_t>(tar->keep_from_ - tar->window_start_, tar->window_.size()));
    tar->window_.erase(0, drop);
    tar->window_start_ += drop;
  }
  if (tar->window_.size() + piece->size() > kMaxWindow) {
    tar->error_ = {"read tar", EBADMSG, tar->stream_.name(), "header of more than 8 MiB"};
    archive_set_error(a, EBADMSG, "%s", "header too long");
    return ARCHIVE_FATAL;
  }
  tar->window_.append(piece->data(), piece->size());
  *data = piece->data();
  return static_cast<la_ssize_t>(piece->size());
}

std::unexpected<base::Error> TarReader::Failed(std::string_view object) {
  if (error_.err != 0) return std::unexpected(error_);
  return ArchiveError(reader_.get(), "read tar", object);
}

base::Result<bool> TarReader::Next(TarEntry& entry) {
  keep_from_ = static_cast<uint64_t>(std::max<la_int64_t>(archive_filter_bytes(reader_.get(), 0), 0));
  archive_entry* from = nullptr;
  const int rc = archive_read_next_header(reader_.get(), &from);
  if (rc == ARCHIVE_EOF) return false;
  const std::string after = path_.empty() ? stream_.name() : stream_.name() + ", after \"" + path_ + "\"";
  if (rc != ARCHIVE_OK && !(rc == ARCHIVE_WARN && OnlyAboutCharset(reader_.get()))) return Failed(after);

  const auto start = static_cast<uint64_t>(archive_read_header_position(reader_.get()));
  const auto end = static_cast<uint64_t>(archive_filter_bytes(reader_.get(), 0));
  if (start < window_start_ || end > window_start_ + window_.size() || start > end) {
    return base::MakeError(EBADMSG, "read tar", after, "header out of reach");
  }
  auto names = ParseTarNames(std::string_view(window_).substr(start - window_start_, end - start));
  if (!names) {
    names.error().object = after;
    return std::unexpected(std::move(names).error());
  }
  if (names->type == 'M') return base::MakeError(ENOTSUP, "read tar", names->path, "multi-volume archive");

  path_ = names->path;
  entry = TarEntry{};
  entry.path = std::move(names->path);
  entry.link = std::move(names->link);
  entry.hard_link = names->type == '1';
  entry.mode = archive_entry_mode(from);
  if (archive_entry_uid(from) < 0 || archive_entry_gid(from) < 0) {
    return base::MakeError(EBADMSG, "read tar", path_, "negative owner");
  }
  entry.uid = static_cast<uint64_t>(archive_entry_uid(from));
  entry.gid = static_cast<uint64_t>(archive_entry_gid(from));
  entry.mtime = archive_entry_mtime(from);
  entry.mtime_ns = static_cast<uint32_t>(std::clamp<int64_t>(archive_entry_mtime_nsec(from), 0, 999'999'999));
  entry.rdev_major = archive_entry_rdevmajor(from);
  entry.rdev_minor = archive_entry_rdevminor(from);
  if (archive_entry_size(from) < 0) return base::MakeError(EBADMSG, "read tar", path_, "negative size");
  entry.size = static_cast<uint64_t>(archive_entry_size(from));
  GCS_TRY(ReadXattrs(from, entry));
  return true;
}

base::Result<> TarReader::ReadXattrs(archive_entry* from, TarEntry& entry) {
  archive_entry_xattr_reset(from);
  const char* name = nullptr;
  const void* value = nullptr;
  size_t size = 0;
  while (archive_entry_xattr_next(from, &name, &value, &size) == ARCHIVE_OK) {
    // A later record of the same name replaces the earlier one, as in a pax header's rule.
    const std::string key(name);
    std::erase_if(entry.xattrs, [&](const auto& other) { return other.first == key; });
    entry.xattrs.emplace_back(key, std::string(static_cast<const char*>(value), size));
  }
  std::ranges::sort(entry.xattrs);  // libarchive's order is not the archive's
  GCS_TRY(ReadAcl(from, ARCHIVE_ENTRY_ACL_TYPE_ACCESS, "system.posix_acl_access", entry));
  return ReadAcl(from, ARCHIVE_ENTRY_ACL_TYPE_DEFAULT, "system.posix_acl_default", entry);
}

// SCHILY.acl.* (GNU tar, star) as the kernel's attribute: version 2, then {tag, permissions, id} in the order
// of tags.
base::Result<> TarReader::ReadAcl(archive_entry* from, int want, const char* name, TarEntry& entry) {
  std::vector<std::tuple<uint16_t, uint32_t, uint16_t>> list;
  bool extended = want == ARCHIVE_ENTRY_ACL_TYPE_DEFAULT;
  archive_entry_acl_reset(from, want);
  int type = 0, perms = 0, tag = 0, id = 0;
  const char* who = nullptr;
  while (archive_entry_acl_next(from, want, &type, &perms, &tag, &id, &who) == ARCHIVE_OK) {
    uint16_t kernel_tag = 0;
    switch (tag) {
      case ARCHIVE_ENTRY_ACL_USER_OBJ:
        kernel_tag = 0x01;
        break;
      case ARCHIVE_ENTRY_ACL_USER:
        kernel_tag = 0x02;
        break;
      case ARCHIVE_ENTRY_ACL_GROUP_OBJ:
        kernel_tag = 0x04;
        break;
      case ARCHIVE_ENTRY_ACL_GROUP:
        kernel_tag = 0x08;
        break;
      case ARCHIVE_ENTRY_ACL_MASK:
        kernel_tag = 0x10;
        break;
      case ARCHIVE_ENTRY_ACL_OTHER:
        kernel_tag = 0x20;
        break;
      default:
        return base::MakeError(ENOTSUP, "read ACL", entry.path, "not a POSIX.1e entry");
    }
    const bool named = kernel_tag == 0x02 || kernel_tag == 0x08;
    if (named && id < 0)
      return base::MakeError(ENOTSUP, "read ACL", entry.path, "an entry has a name but no id");
    extended = extended || named || kernel_tag == 0x10;
    const uint16_t bits = static_cast<uint16_t>(((perms & ARCHIVE_ENTRY_ACL_READ) != 0 ? 4 : 0) |
                                                ((perms & ARCHIVE_ENTRY_ACL_WRITE) != 0 ? 2 : 0) |
                                                ((perms & ARCHIVE_ENTRY_ACL_EXECUTE) != 0 ? 1 : 0));
    list.emplace_back(kernel_tag, named ? static_cast<uint32_t>(id) : 0xffffffffU, bits);
  }
  if (list.empty() || !extended) return {};
  std::ranges::sort(list);
  std::string value;
  AppendLe(value, 2, 4);
  for (const auto& [kernel_tag, who_id, bits] : list) {
    AppendLe(value, kernel_tag, 2);
    AppendLe(value, bits, 2);
    AppendLe(value, who_id, 4);
  }
  std::erase_if(entry.xattrs, [&](const auto& other) { return other.first == name; });
  entry.xattrs.emplace_back(name, std::move(value));
  return {};
}

base::Result<bool> TarReader::NextData(TarData& data) {
  keep_from_ = static_cast<uint64_t>(std::max<la_int64_t>(archive_filter_bytes(reader_.get(), 0), 0));
  const void* bytes = nullptr;
  size_t size = 0;
  la_int64_t offset = 0;
  const int rc = archive_read_data_block(reader_.get(), &bytes, &size, &offset);
  if (rc == ARCHIVE_EOF) return false;
  if (rc != ARCHIVE_OK) return Failed(path_);
  if (offset < 0) return base::MakeError(EBADMSG, "read tar", path_, "negative offset");
  data = {static_cast<const char*>(bytes), size, static_cast<uint64_t>(offset)};
  return true;
}

}  // namespace gcs::host
