// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "base/clock.h"
#include "storage/ext4.h"
#include "support/temp.h"

namespace gcs::storage {
namespace {

constexpr off_t kMiB = 1 << 20;
constexpr off_t kGiB = 1 << 30;

std::string Image(const test::TempDir& dir, off_t size) {
  std::string path = dir / "image";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  REQUIRE(fd >= 0);
  REQUIRE(ftruncate(fd, size) == 0);
  close(fd);
  return path;
}

// e2fsck -f looks at everything, -n repairs nothing: 0 means not one complaint.
void CheckClean(const test::TempDir& dir, const std::string& image) {
  const std::string log = dir / "log";
  const int status = system(("e2fsck -fn '" + image + "' > '" + log + "' 2>&1").c_str());
  std::stringstream text;
  text << std::ifstream(log).rdbuf();
  INFO(text.str());
  CHECK(status == 0);
}

std::string Features(const test::TempDir& dir, const std::string& image) {
  const std::string log = dir / "features";
  REQUIRE(system(("dumpe2fs -h '" + image + "' > '" + log + "' 2>/dev/null").c_str()) == 0);
  std::ifstream file(log);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("Filesystem features:")) return line + " ";
  }
  return {};
}

TEST_CASE("file systems of all sizes are clean by e2fsck") {
  const test::TempDir dir;
  for (const off_t size : {256 * 1024L, 300 * 1024L, kMiB, 5 * kMiB + 1234, 127 * kMiB, 128 * kMiB,
                           129 * kMiB, 600 * kMiB, 3 * kGiB, 20 * kGiB}) {
    for (const bool zero : {false, true}) {
      if (zero && size > 600 * kMiB) continue;
      CAPTURE(size);
      CAPTURE(zero);
      const std::string image = Image(dir, size);
      const auto made = FormatExt4(image, {.zero_inode_tables = zero});
      REQUIRE_MESSAGE(made, (made ? std::string() : made.error().ToString()));
      CHECK(ProbeContent(image).value() == DiskContent::kExt4);
      CheckClean(dir, image);
    }
  }
}

TEST_CASE("a formatted disk has the features of a scratch disk and no journal") {
  const test::TempDir dir;
  const std::string image = Image(dir, 64 * kMiB);
  REQUIRE(FormatExt4(image, {}));
  const std::string features = Features(dir, image);
  for (const char* on :
       {"extent", "flex_bg", "64bit", "metadata_csum", "sparse_super2", "dir_index", "filetype"}) {
    CAPTURE(on);
    CHECK(features.find(std::string(" ") + on + " ") != std::string::npos);
  }
  CHECK(features.find("has_journal") == std::string::npos);
  CHECK(features.find("resize_inode") == std::string::npos);
}

TEST_CASE("what an old disk holds beyond its beginning does no harm to the file system") {
  const test::TempDir dir;
  const std::string image = Image(dir, 160 * kMiB);
  {
    std::vector<uint32_t> junk(kMiB / 4);
    std::minstd_rand random(1);
    for (auto& word : junk) word = static_cast<uint32_t>(random());
    const int fd = open(image.c_str(), O_WRONLY | O_CLOEXEC);
    REQUIRE(fd >= 0);
    for (off_t at = kMiB; at < 160 * kMiB; at += kMiB) {
      REQUIRE(pwrite(fd, junk.data(), kMiB, at) == kMiB);
    }
    close(fd);
  }
  REQUIRE(FormatExt4(image, {}));
  CheckClean(dir, image);
}

TEST_CASE("20 GB are formatted in under a second with under 8 MiB written") {
  const test::TempDir dir;
  const std::string image = Image(dir, 20 * kGiB);
  const int64_t begin = base::MonotonicNs();
  REQUIRE(FormatExt4(image, {}));
  CHECK(base::MonotonicNs() - begin < base::kNsPerSec);
  struct stat st;
  REQUIRE(stat(image.c_str(), &st) == 0);
  CHECK(st.st_blocks * 512 < 8 * kMiB);
}

TEST_CASE("two file systems have different identifiers") {
  const test::TempDir dir;
  const std::string image = Image(dir, 8 * kMiB);
  std::string uuids[2];
  for (auto& uuid : uuids) {
    REQUIRE(FormatExt4(image, {}));
    std::ifstream file(image, std::ios::binary);
    file.seekg(1024 + 104);
    uuid.resize(16);
    file.read(uuid.data(), 16);
  }
  CHECK(uuids[0] != uuids[1]);
  CHECK((uuids[0][6] & 0xf0) == 0x40);
}

TEST_CASE("the beginning of a disk tells whether it may be formatted") {
  const test::TempDir dir;
  const std::string image = Image(dir, kMiB);
  CHECK(ProbeContent(image).value() == DiskContent::kEmpty);
  for (const off_t at : {off_t{0}, off_t{1079}, off_t{65535}}) {
    CAPTURE(at);
    const std::string marked = Image(dir, kMiB);
    const int fd = open(marked.c_str(), O_WRONLY | O_CLOEXEC);
    REQUIRE(pwrite(fd, "x", 1, at) == 1);
    close(fd);
    CHECK(ProbeContent(marked).value() == DiskContent::kOther);
  }
  const std::string later = Image(dir, kMiB);
  const int fd = open(later.c_str(), O_WRONLY | O_CLOEXEC);
  REQUIRE(pwrite(fd, "x", 1, 65536) == 1);
  close(fd);
  CHECK(ProbeContent(later).value() == DiskContent::kEmpty);
}

TEST_CASE("what can't be formatted is refused with its reason") {
  const test::TempDir dir;
  CHECK(FormatExt4(dir / "none", {}).error().err == ENOENT);
  CHECK(FormatExt4("/dev/null", {}).error().err == ENOTBLK);
  CHECK(FormatExt4(Image(dir, 100 * 1024), {}).error().err == ENOSPC);
  CHECK(FormatExt4(dir.path(), {}).error().err == EISDIR);
}

}  // namespace
}  // namespace gcs::storage
