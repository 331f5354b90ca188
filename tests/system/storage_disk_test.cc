// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "storage/ext4.h"
#include "storage_support.h"

// Disks are loop devices behind a sysfs of our own; everything from the block device on is real.
namespace gcs::storage {
namespace {

constexpr off_t kMiB = 1 << 20;

struct DiskFixture : StorageFixture {
  DiskFixture() { AddDisk(3, disk); }
  ~DiskFixture() { UnmountAll(); }

  [[nodiscard]] DiskMount Request(const std::string& id = "d") const {
    return {.mount_id = id, .disk = ScsiAddress{.lun = 3}};
  }

  LoopDisk disk{dir / "image", 64 * kMiB};
};

TEST_CASE_FIXTURE(DiskFixture, "an empty disk is formatted once and keeps its files") {
  DiskMount request = Request();
  request.format_if_empty = true;
  auto mounted = storage.MountDisk(request, Soon());
  REQUIRE_MESSAGE(mounted, Why(mounted));
  CHECK(mounted->formatted);
  CHECK(mounted->device == disk.path());
  CHECK(MountLine(mounted->path).find(" ext4 " + disk.path() + " rw") != std::string::npos);
  CHECK(MountLine(mounted->path).find("noinit_itable") != std::string::npos);
  WriteFile(mounted->path + "/file", "kept");
  Unmount("d");

  mounted = storage.MountDisk(request, Soon());
  REQUIRE(mounted);
  CHECK_FALSE(mounted->formatted);
  CHECK(ReadFile(mounted->path + "/file") == "kept");
  Unmount("d");
  CHECK(system(("e2fsck -fn " + disk.path() + " >/dev/null 2>&1").c_str()) == 0);
}

TEST_CASE_FIXTURE(DiskFixture, "a read-only layer is mounted without journal and can't be written") {
  REQUIRE(FormatExt4(disk.path(), {}));
  DiskMount request = Request();
  request.read_only = true;
  const auto mounted = storage.MountDisk(request, Soon());
  REQUIRE_MESSAGE(mounted, Why(mounted));
  const std::string line = MountLine(mounted->path);
  CHECK(line.find(" ro,noatime") != std::string::npos);
  CHECK(line.find("norecovery") != std::string::npos);  // ext4's other name of noload
  CHECK(open((mounted->path + "/new").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0);
  CHECK(errno == EROFS);
  CHECK(storage.List().at(0).read_only);
}

TEST_CASE_FIXTURE(DiskFixture, "a disk that carries other data is never formatted") {
  const int fd = open(disk.path().c_str(), O_RDWR | O_CLOEXEC);
  REQUIRE(fd >= 0);
  REQUIRE(pwrite(fd, "data", 4, 40'000) == 4);
  REQUIRE(fsync(fd) == 0);
  DiskMount request = Request();
  request.format_if_empty = true;
  const auto mounted = storage.MountDisk(request, Soon());
  REQUIRE_FALSE(mounted);
  CHECK(mounted.error().err == ENOTEMPTY);
  char data[4];
  CHECK(pread(fd, data, 4, 40'000) == 4);
  close(fd);
  CHECK(std::string(data, 4) == "data");
  CHECK(ProbeContent(disk.path()).value() == DiskContent::kOther);
}

TEST_CASE_FIXTURE(DiskFixture, "a disk without a file system fails with its reason and leaves nothing") {
  const auto mounted = storage.MountDisk(Request(), Soon());
  REQUIRE_FALSE(mounted);
  CHECK(mounted.error().err == EINVAL);
  CHECK(mounted.error().step == "mount ext4");
  CHECK(mounted.error().object == disk.path());
  CHECK(mounted.error().message == "the disk carries no ext4 file system");
  CHECK(storage.List().empty());
}

TEST_CASE_FIXTURE(DiskFixture, "an option that the file system doesn't know is named in the error") {
  REQUIRE(FormatExt4(disk.path(), {}));
  DiskMount request = Request();
  request.options = {"nosuchoption"};
  const auto mounted = storage.MountDisk(request, Soon());
  REQUIRE_FALSE(mounted);
  CHECK(mounted.error().err == EINVAL);
  CHECK(mounted.error().ToString().find("nosuchoption") != std::string::npos);
  request.options = {"nosuid", "noexec", "errors=remount-ro"};
  const auto good = storage.MountDisk(request, Soon());
  REQUIRE_MESSAGE(good, Why(good));
  CHECK(MountLine(good->path).find("nosuid,noexec") != std::string::npos);
}

TEST_CASE_FIXTURE(DiskFixture, "a root on a formatted scratch disk works") {
  DiskMount request = Request("scratch");
  request.format_if_empty = true;
  REQUIRE(storage.MountDisk(request, Soon()));
  WriteFile(Tmpfs("layer") + "/file", "image");
  const auto root =
      storage.MountOverlay({.mount_id = "root", .layers = {"layer"}, .scratch = "scratch"}, Soon());
  REQUIRE_MESSAGE(root, Why(root));
  WriteFile(root->path + "/file", "changed");
  CHECK(ReadFile(dir / "mounts/scratch/root/upper/file") == "changed");
}

TEST_CASE_FIXTURE(DiskFixture, "a mounted disk can't be taken away, by whomever it is mounted") {
  DiskMount request = Request();
  request.format_if_empty = true;
  REQUIRE(storage.MountDisk(request, Soon()));
  auto removed = storage.RemoveDisk(ScsiAddress{.lun = 3}, Soon());
  REQUIRE_FALSE(removed);
  CHECK(removed.error().err == EBUSY);
  CHECK(removed.error().object == "d");
  // An agent that knows nothing of the mount.
  Storage other(Options());
  removed = other.RemoveDisk(ScsiAddress{.lun = 3}, Soon());
  REQUIRE_FALSE(removed);
  CHECK(removed.error().err == EBUSY);
  CHECK(sysfs.path().size() > 0);
  CHECK(ReadFile(sysfs.path() + "/bus/scsi/devices/0:0:0:3/delete") == "\n");
  Unmount("d");
  CHECK(storage.RemoveDisk(ScsiAddress{.lun = 3}, Soon()));
  CHECK(ReadFile(sysfs.path() + "/bus/scsi/devices/0:0:0:3/delete") == "1");
  CHECK(storage.RemoveDisk(ScsiAddress{.lun = 4}, Soon()).error().err == ENODEV);
}

TEST_CASE_FIXTURE(DiskFixture, "a disk is known by size and address") {
  const auto found = storage.WaitDisk(ScsiAddress{.lun = 3}, Soon());
  REQUIRE(found);
  CHECK(found->device == disk.path());
  CHECK(found->size_bytes == 512'000);
}

TEST_CASE_FIXTURE(DiskFixture, "a disk that comes later is found at its uevent, not at the deadline") {
  LoopDisk late(dir / "late", kMiB);
  std::thread comes([&] {
    usleep(100'000);
    AddDisk(5, late);
    // The kernel announces the real device; what it is called here is our sysfs's business.
    WriteFile("/sys/class/block/" + late.name() + "/uevent", "change");
  });
  const int64_t begin = base::MonotonicNs();
  const auto found = storage.WaitDisk(ScsiAddress{.lun = 5}, {.deadline_ns = begin + 30 * base::kNsPerSec});
  comes.join();
  REQUIRE_MESSAGE(found, Why(found));
  CHECK(found->device == late.path());
  CHECK(base::MonotonicNs() - begin < 10 * base::kNsPerSec);
}

}  // namespace
}  // namespace gcs::storage
