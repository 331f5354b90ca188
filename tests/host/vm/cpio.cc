// SPDX-License-Identifier: Apache-2.0
#include "host/vm/cpio.h"

#include <array>
#include <cstdio>

#include "base/paths.h"

namespace gcs::host {

namespace {

void Pad(std::string& out) { out.resize((out.size() + 3) / 4 * 4, '\0'); }

void Entry(std::string& out, unsigned inode, const std::string& path, mode_t mode,
           const std::string& content) {
  const unsigned links = (mode & 0170000) == 0040000 ? 2 : 1;
  std::array<char, 111> header;
  // magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
  snprintf(header.data(), header.size(), "070701%08X%08X%08X%08X%08X%08X%08zX%08X%08X%08X%08X%08zX%08X",
           inode, static_cast<unsigned>(mode), 0U, 0U, links, 0U, content.size(), 0U, 0U, 0U, 0U,
           path.size() + 1, 0U);
  out.append(header.data(), 110);
  out.append(path).push_back('\0');
  Pad(out);
  out.append(content);
  Pad(out);
}

}  // namespace

void Cpio::Add(const std::string& path, mode_t mode, const std::string& content) {
  Entry(archive_, inode_++, path, mode, content);
}

base::Result<> Cpio::AddFileFrom(const std::string& path, const std::string& source, mode_t mode) {
  GCS_ASSIGN(const std::string content, base::ReadFile(source, 256 << 20));
  AddFile(path, content, mode);
  return {};
}

base::Result<> Cpio::WriteTo(const std::string& file) const {
  std::string whole = archive_;
  Entry(whole, 0, "TRAILER!!!", 0, {});
  return base::ReplaceFile(file, whole, 0644);
}

}  // namespace gcs::host
