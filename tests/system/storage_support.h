// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "base/clock.h"
#include "base/fd.h"
#include "storage/storage.h"
#include "support/fake_sysfs.h"
#include "support/temp.h"

namespace gcs::storage {

inline Wait Soon() { return {.deadline_ns = base::MonotonicNs() + 20 * base::kNsPerSec}; }

// For the message of a check: doctest may ask for it after a success too.
template <typename T>
std::string Why(const base::Result<T>& result) {
  return result ? std::string() : result.error().ToString();
}

inline std::string MountInfoText() {
  std::stringstream text;
  text << std::ifstream("/proc/self/mountinfo").rdbuf();
  return text.str();
}

// The line of mountinfo of a mount point, empty if nothing is mounted there.
inline std::string MountLine(const std::string& path) {
  std::istringstream lines(MountInfoText());
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" " + path + " ") != std::string::npos) return line;
  }
  return {};
}

inline void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  REQUIRE(file.good());
}

inline std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// Mounts are made in a mount namespace of this test program alone.
inline void Isolate() {
  static const bool isolated = [] {
    return unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }();
  REQUIRE(isolated);
}

// A file as a block device, which stands in for a SCSI disk.
class LoopDisk {
 public:
  LoopDisk(const std::string& file, off_t size) {
    const base::Fd backing(open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    REQUIRE(backing.valid());
    REQUIRE(ftruncate(backing.get(), size) == 0);
    const base::Fd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    REQUIRE(control.valid());
    // Another process may take the free one before us.
    for (int tries = 0; tries < 50; ++tries) {
      number_ = ioctl(control.get(), LOOP_CTL_GET_FREE);
      REQUIRE(number_ >= 0);
      device_.Reset(open(path().c_str(), O_RDWR | O_CLOEXEC));
      REQUIRE(device_.valid());
      const loop_config config{.fd = static_cast<uint32_t>(backing.get())};
      if (ioctl(device_.get(), LOOP_CONFIGURE, &config) == 0) return;
      REQUIRE(errno == EBUSY);
    }
    FAIL("no free loop device");
  }
  ~LoopDisk() { ioctl(device_.get(), LOOP_CLR_FD); }
  LoopDisk(const LoopDisk&) = delete;
  LoopDisk& operator=(const LoopDisk&) = delete;

  [[nodiscard]] std::string name() const { return "loop" + std::to_string(number_); }
  [[nodiscard]] std::string path() const { return "/dev/" + name(); }
  [[nodiscard]] std::string number() const { return "7:" + std::to_string(number_); }

 private:
  int number_ = -1;
  base::Fd device_;
};

// A storage with directories of its own, which has to leave the namespace as it found it.
struct StorageFixture {
  StorageFixture() {
    sysfs.AddHost(0);
    before = MountInfoText();
  }
  ~StorageFixture() {
    CHECK(MountInfoText() == before);
    std::error_code ignored;
    CHECK_MESSAGE(!std::filesystem::exists(dir / "mounts", ignored), "a directory was left");
  }
  StorageFixture(const StorageFixture&) = delete;
  StorageFixture& operator=(const StorageFixture&) = delete;

  [[nodiscard]] StorageOptions Options() const {
    return {
        .default_dir = dir / "mounts", .target_roots = {dir.path()}, .sysfs = sysfs.path(), .dev = "/dev"};
  }
  void AddDisk(int lun, const LoopDisk& disk) const {
    sysfs.AddScsiDisk(0, 0, lun, disk.name(), disk.number(), 1000);
  }
  std::string Tmpfs(const std::string& id) {
    const auto mounted = storage.MountTmpfs({.mount_id = id}, Soon());
    REQUIRE_MESSAGE(mounted, Why(mounted));
    return mounted->path;
  }
  void Unmount(const std::string& id) {
    const auto result = storage.Unmount(id, Soon());
    CHECK_MESSAGE(result, Why(result));
  }
  void UnmountAll() {
    const auto mounts = storage.List();
    for (auto mount = mounts.rbegin(); mount != mounts.rend(); ++mount) Unmount(mount->mount_id);
  }

  // First: the storage's own threads are in the namespace that they are made in.
  const bool isolated = (Isolate(), true);
  test::TempDir dir;
  test::FakeSysfs sysfs;
  std::string before;
  Storage storage{Options()};
};

}  // namespace gcs::storage
