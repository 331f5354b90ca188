// SPDX-License-Identifier: Apache-2.0
// Arbitrary bytes as a layer blob: conversion must answer with a disk or an error, within small limits. A
// disk must be one that libext2fs opens again. The first byte chooses small changes that keep mutations
// reaching deeper: tar header checksums are repaired unless its low bit is set.
#include <ext2fs/ext2_fs.h>
#include <ext2fs/ext2fs.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "host/image/convert.h"

namespace {

using gcs::host::Blob;

// Writes a right checksum into every block that has the ustar magic.
void RepairChecksums(std::string& tar) {
  for (size_t at = 0; at + 512 <= tar.size(); at += 512) {
    if (tar.compare(at + 257, 5, "ustar") != 0) continue;
    memset(&tar[at + 148], ' ', 8);
    unsigned sum = 0;
    for (size_t i = 0; i < 512; ++i) sum += static_cast<unsigned char>(tar[at + i]);
    char text[8];
    snprintf(text, sizeof text, "%06o", sum & 0777777);
    memcpy(&tar[at + 148], text, 7);
  }
}

void CheckDisk(int fd) {
  const std::string name = "/proc/self/fd/" + std::to_string(fd);
  ext2_filsys fs = nullptr;
  if (ext2fs_open2(name.c_str(), nullptr, EXT2_FLAG_64BITS, 0, 0, unix_io_manager, &fs) != 0) abort();
  if (ext2fs_read_bitmaps(fs) != 0) abort();
  ext2_inode root{};
  if (ext2fs_read_inode(fs, EXT2_ROOT_INO, &root) != 0 || !LINUX_S_ISDIR(root.i_mode)) abort();
  ext2fs_close_free(&fs);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if ((data[0] & 1) == 0) RepairChecksums(bytes);
  auto in = std::make_shared<gcs::base::Fd>(memfd_create("layer", MFD_CLOEXEC));
  const gcs::base::Fd out(memfd_create("disk", MFD_CLOEXEC));
  if (!in->valid() || !out.valid()) abort();
  if (write(in->get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) abort();
  const Blob blob{in, 0, bytes.size(), "fuzz"};
  gcs::host::ImageLimits limits;
  limits.stream_bytes = 1 << 20;
  limits.content_bytes = 1 << 20;
  limits.entries = 2000;
  limits.depth = 16;
  limits.ratio_free_bytes = 1 << 18;
  const gcs::host::Digest diff_id{"sha256", std::string(64, 'a')};
  const auto made =
      gcs::host::ConvertBlob(blob, diff_id, /*check_diff_id=*/false, out.get(), "/dev/shm", limits, {});
  if (made) {
    CheckDisk(out.get());
  } else if (made.error().step.empty() || made.error().err == 0) {
    abort();
  }
  return 0;
}
