// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "base/clock.h"
#include "storage/disk.h"
#include "support/fake_sysfs.h"

namespace gcs::storage {
namespace {

constexpr const char* kGuid = "df6d0690-79e5-55b6-a5ec-c1e2f77f580a";

int64_t In(int64_t ms) { return base::MonotonicNs() + ms * base::kNsPerMs; }

// Numbers 0 and 2, as after a host went away; the second one is a VMBus device.
void AddTwoHosts(const test::FakeSysfs& sysfs) {
  sysfs.AddHost(0);
  sysfs.AddHost(2);
  sysfs.MakeDir(std::string("bus/vmbus/devices/") + kGuid + "/host2");
}

TEST_CASE("a GUID is taken in either case, with or without braces, and nothing else is") {
  CHECK(NormalizeGuid("{DF6D0690-79E5-55B6-A5EC-C1E2F77F580A}").value() == kGuid);
  CHECK(NormalizeGuid(kGuid).value() == kGuid);
  for (const char* bad : {"", "{}", "df6d0690-79e5-55b6-a5ec-c1e2f77f580",
                          "df6d0690-79e5-55b6-a5ec-c1e2f77f580g", "../../../../../../../../../etc/passwd",
                          "df6d0690079e5055b60a5ec0c1e2f77f580a", "{df6d0690-79e5-55b6-a5ec-c1e2f77f580a"}) {
    CAPTURE(bad);
    REQUIRE_FALSE(NormalizeGuid(bad));
    CHECK(NormalizeGuid(bad).error().err == EINVAL);
  }
}

TEST_CASE("the controller index counts SCSI hosts in order of their numbers") {
  const test::FakeSysfs sysfs;
  AddTwoHosts(sysfs);
  for (int host = 10; host < 12; ++host) sysfs.AddHost(host);  // 10 sorts before 2 as text
  sysfs.AddScsiDisk(10, 0, 5, "sdc", "8:32", 100);
  const test::TempDir dev;
  const Disks disks(sysfs.path(), dev.path());
  const auto found = disks.Find(ScsiAddress{.controller = 2, .lun = 5}, 0);
  REQUIRE_FALSE(found);
  // It is the right disk; only its node isn't there.
  CHECK(found.error().object == dev / "sdc");
  CHECK(found.error().err == ENXIO);
}

TEST_CASE("a controller is found by its VMBus instance id") {
  const test::FakeSysfs sysfs;
  AddTwoHosts(sysfs);
  sysfs.AddScsiDisk(2, 0, 1, "sdb", "8:16", 100);
  const test::TempDir dev;
  const Disks disks(sysfs.path(), dev.path());
  CHECK(disks
            .Find(
                ScsiAddress{
                    .controller = 7, .controller_guid = "{DF6D0690-79E5-55B6-A5EC-C1E2F77F580A}", .lun = 1},
                0)
            .error()
            .object == dev / "sdb");
  const auto other =
      disks.Find(ScsiAddress{.controller_guid = "0110f83b-de10-5172-a266-78bca56bf50a", .lun = 1}, 0);
  CHECK(other.error().err == ENODEV);
  CHECK(disks.Find(ScsiAddress{.controller_guid = "../host2", .lun = 1}, 0).error().err == EINVAL);
}

TEST_CASE("a disk that isn't there is ENODEV, whatever part of its address is missing") {
  const test::FakeSysfs sysfs;
  AddTwoHosts(sysfs);
  sysfs.AddScsiDisk(0, 0, 0, "sda", "8:0", 100);
  sysfs.AddPartition("sda", "sda1", 1, "8:1");
  const Disks disks(sysfs.path(), "/nonexistent");
  CHECK(disks.Find(ScsiAddress{.controller = 9}, 0).error().err == ENODEV);
  CHECK(disks.Find(ScsiAddress{.lun = 1}, 0).error().err == ENODEV);
  CHECK(disks.Find(ScsiAddress{.target = 1}, 0).error().err == ENODEV);
  CHECK(disks.Find(ScsiAddress{}, 2).error().err == ENODEV);
  CHECK(disks.Find(ScsiAddress{}, 1).error().object == "/nonexistent/sda1");
  CHECK(disks.Find(PmemAddress{.index = 0}, 0).error().err == ENODEV);
  CHECK(disks.Find(SerialAddress{.serial = "layer0"}, 0).error().err == ENODEV);
}

TEST_CASE("a virtio serial has to have 1 to 20 bytes") {
  const test::FakeSysfs sysfs;
  const Disks disks(sysfs.path(), "/nonexistent");
  CHECK(disks.Find(SerialAddress{.serial = ""}, 0).error().err == EINVAL);
  CHECK(disks.Find(SerialAddress{.serial = std::string(21, 'x')}, 0).error().err == EINVAL);
}

TEST_CASE("a node that is no block device is refused at once") {
  const test::FakeSysfs sysfs;
  sysfs.AddHost(0);
  sysfs.AddScsiDisk(0, 0, 0, "null", "1:3", 100);  // /dev/null stands in for a node of the wrong type
  const Disks disks(sysfs.path(), "/dev");
  CHECK(disks.WaitFor(ScsiAddress{}, 0, {.deadline_ns = In(10'000)}).error().err == ENOTBLK);
}

TEST_CASE("disks are listed with their addresses, sizes and serials, and partitions are not") {
  const test::FakeSysfs sysfs;
  AddTwoHosts(sysfs);
  sysfs.AddScsiDisk(2, 0, 4, "sdb", "8:16", 2048);
  sysfs.Write("class/block/sdb/ro", "1");
  sysfs.AddPartition("sdb", "sdb1", 1, "8:17");
  sysfs.AddBlock("vda", "254:0", 4096);
  sysfs.Write("class/block/vda/serial", "layer0");
  sysfs.AddBlock("pmem1", "259:1", 8);
  sysfs.AddBlock("loop0", "7:0", 8);
  sysfs.AddBlock("pmem0s", "259:0", 8);  // a sector-mode namespace: no /dev/pmemN
  const auto list = Disks(sysfs.path(), "/dev").List();
  REQUIRE(list);
  REQUIRE(list->size() == 3);
  CHECK((*list)[0].device == "/dev/pmem1");
  CHECK(std::get<PmemAddress>((*list)[0].address).index == 1);
  const Disk& scsi = (*list)[1];
  CHECK(scsi.device == "/dev/sdb");
  CHECK(scsi.size_bytes == 2048 * 512);
  CHECK(scsi.read_only);
  CHECK(scsi.address ==
        DiskAddress(ScsiAddress{.controller = 1, .controller_guid = kGuid, .target = 0, .lun = 4}));
  CHECK((*list)[2].serial == "layer0");
  CHECK(std::get<SerialAddress>((*list)[2].address).serial == "layer0");
  CHECK_FALSE((*list)[2].read_only);
}

TEST_CASE("waiting for a disk ends at its deadline and says what is missing") {
  const test::FakeSysfs sysfs;
  sysfs.AddHost(0);
  const int64_t begin = base::MonotonicNs();
  const auto found = Disks(sysfs.path(), "/dev").WaitFor(ScsiAddress{.lun = 3}, 0, {.deadline_ns = In(80)});
  const int64_t took_ms = (base::MonotonicNs() - begin) / base::kNsPerMs;
  REQUIRE_FALSE(found);
  CHECK(found.error().err == ETIMEDOUT);
  CHECK(found.error().object == "scsi 0:0:3");
  CHECK(found.error().message.find("0:0:0:3/block") != std::string::npos);
  CHECK(took_ms >= 79);
  CHECK(took_ms < 2000);
}

TEST_CASE("waiting for a disk ends when it is cancelled") {
  const test::FakeSysfs sysfs;
  const base::Fd cancel(eventfd(0, EFD_CLOEXEC));
  std::thread later([&] {
    usleep(30'000);
    eventfd_write(cancel.get(), 1);
  });
  const int64_t begin = base::MonotonicNs();
  const auto found = Disks(sysfs.path(), "/dev")
                         .WaitFor(ScsiAddress{}, 0, {.deadline_ns = In(60'000), .cancel_fd = cancel.get()});
  later.join();
  REQUIRE_FALSE(found);
  CHECK(found.error().err == ECANCELED);
  CHECK(base::MonotonicNs() - begin < 10 * base::kNsPerSec);
}

TEST_CASE("only SCSI disks that are there can be taken away") {
  const test::FakeSysfs sysfs;
  sysfs.AddHost(0);
  const Disks disks(sysfs.path(), "/nonexistent");
  CHECK(disks.Remove(PmemAddress{}).error().err == EOPNOTSUPP);
  CHECK(disks.Remove(SerialAddress{.serial = "x"}).error().err == EOPNOTSUPP);
  CHECK(disks.Remove(ScsiAddress{.lun = 1}).error().err == ENODEV);
}

TEST_CASE("taking a disk away writes 1 to its delete attribute") {
  const test::FakeSysfs sysfs;
  sysfs.AddHost(0);
  sysfs.AddScsiDisk(0, 0, 1, "sdz", "8:400", 100);
  REQUIRE(Disks(sysfs.path(), "/nonexistent").Remove(ScsiAddress{.lun = 1}));
  std::ifstream file(sysfs.path() + "/bus/scsi/devices/0:0:0:1/delete");
  char first = 0;
  file >> first;
  CHECK(first == '1');
}

}  // namespace
}  // namespace gcs::storage
