// SPDX-License-Identifier: Apache-2.0
// Layers, scratches, disks that come and go, a share.
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "vm/diod.h"
#include "vm/vm_support.h"

namespace gcs::test {
namespace {

std::string MakeDisk(const std::string& name, uint64_t bytes) {
  std::string path = TestVm::Get().dir() / name;
  const base::Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  REQUIRE(fd);
  REQUIRE(ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  return path;
}

v1::DiskAddress At(uint32_t target, uint32_t lun) {
  v1::DiskAddress address;
  address.mutable_scsi()->set_target(target);
  address.mutable_scsi()->set_lun(lun);
  return address;
}

TEST_CASE("events tell of disks that come and go") {
  TestVm& vm = TestVm::Get();
  uint64_t cursor = 0;
  REQUIRE(vm.client().WatchEvents(cursor, false, [](const v1::Event&) { return true; }));
  const auto next = [&](bool added) {
    std::string device;
    const auto watched = vm.client().WatchEvents(cursor, true, [&](const v1::Event& event) {
      if (event.has_device() && event.device().added() == added) device = event.device().device();
      return device.empty();
    });
    CHECK_MESSAGE(watched, Why(watched));
    return device;
  };
  REQUIRE(vm.vm().control().AddDisk({.path = MakeDisk("event", 1 << 20), .lun = 3, .target = 9}));
  const std::string device = next(true);
  CHECK(device.starts_with("/dev/sd"));
  v1::RemoveDiskRequest remove;
  *remove.mutable_disk() = At(9, 3);
  const auto removed = vm.client().Call(remove);
  REQUIRE_MESSAGE(removed, Why(removed));
  CHECK(next(false) == device);
  REQUIRE(vm.vm().control().RemoveDisk(9, 3));
}

TEST_CASE("layers are stacked, whiteouts hide and opaque directories empty what is below") {
  const Ran ran = RunToEnd(TestContainer::Make(
      {"sh", "-c",
       "ls /opt /opt/dir; cat /opt/dir/new; test -e /opt/gone; echo $?; rm /opt/probe && ls /opt"}));
  CHECK(ran.out == "/opt:\ndir\nprobe\n\n/opt/dir:\nnew\nnew1\ndir\n");
  CHECK(ran.exit.exit_code() == 0);
}

TEST_CASE("what a container writes is its own and goes with it") {
  const auto write = TestContainer::Make({"sh", "-c", "test -e /tmp/mine && exit 1; echo x > /tmp/mine"});
  CHECK(RunToEnd(write).exit.exit_code() == 0);
  CHECK(RunToEnd(write).exit.exit_code() == 0);
}

TEST_CASE("a scratch disk is formatted in the guest and takes the container's writes") {
  auto options = TestContainer::Make({"sh", "-c",
                                      "df -k / | tail -1 | awk '{print $2}'; dd if=/dev/zero of=/big bs=1M "
                                      "count=20 2>/dev/null && ls -l /big | awk '{print $5}'"});
  options.scratch_bytes = 256 << 20;
  {
    const Ran ran = RunToEnd(std::move(options));
    CHECK(ran.exit.exit_code() == 0);
    const size_t newline = ran.out.find('\n');
    CHECK(strtoull(ran.out.c_str(), nullptr, 10) > 200'000);
    CHECK(ran.out.substr(newline + 1) == "20971520\n");
  }
  const auto swept = TestVm::Get().storage().Sweep();
  REQUIRE_MESSAGE(swept, Why(swept));
  for (const auto& entry : std::filesystem::directory_iterator(TestVm::Get().dir().path())) {
    CHECK_FALSE(entry.path().filename().string().starts_with("scratch-"));
  }
}

TEST_CASE("a disk is formatted only when asked and only when empty") {
  TestVm& vm = TestVm::Get();
  const std::string path = MakeDisk("data.img", 16 << 20);
  REQUIRE(vm.vm().control().AddDisk({.path = path, .readonly = false, .lun = 9, .target = 3}));
  v1::MountDiskRequest mount;
  mount.set_mount_id("data");
  *mount.mutable_disk() = At(3, 9);
  const auto unformatted = vm.client().Call(mount);
  CHECK_FALSE(unformatted);
  mount.set_request_id("");
  mount.set_format_if_empty(true);
  const auto first = vm.client().Call(mount);
  REQUIRE_MESSAGE(first, Why(first));
  CHECK(first->formatted());
  CHECK(first->path() == "/run/gcs/mounts/data");
  v1::UnmountRequest unmount;
  unmount.set_mount_id("data");
  REQUIRE(vm.client().Call(unmount));
  mount.set_request_id("");
  const auto second = vm.client().Call(mount);
  REQUIRE_MESSAGE(second, Why(second));
  CHECK_FALSE(second->formatted());
  unmount.set_request_id("");
  REQUIRE(vm.client().Call(unmount));
  v1::RemoveDiskRequest remove;
  *remove.mutable_disk() = At(3, 9);
  REQUIRE(vm.client().Call(remove));
  REQUIRE(vm.vm().control().RemoveDisk(3, 9));
}

TEST_CASE("a disk that does not come ends the call at its deadline, one that comes late is found") {
  TestVm& vm = TestVm::Get();
  v1::WaitDiskRequest wait;
  *wait.mutable_disk() = At(4, 1);
  const int64_t begin = base::MonotonicNs();
  const auto none = vm.client().Call(wait, {.timeout_ms = 500});
  const int64_t took = base::MonotonicNs() - begin;
  REQUIRE_FALSE(none);
  CHECK(none.error().err == ETIMEDOUT);
  CHECK(took >= 450 * base::kNsPerMs);
  CHECK(took < 3 * base::kNsPerSec);

  const std::string path = MakeDisk("late.img", 4 << 20);
  host::CallResult<v1::WaitDiskResponse> found;
  std::thread waiter([&] { found = vm.client().Call(wait, {.timeout_ms = 20'000}); });
  usleep(300'000);
  REQUIRE(vm.vm().control().AddDisk({.path = path, .readonly = false, .lun = 1, .target = 4}));
  waiter.join();
  REQUIRE_MESSAGE(found, Why(found));
  CHECK(found->disk().size_bytes() == 4 << 20);
  v1::RemoveDiskRequest remove;
  *remove.mutable_disk() = At(4, 1);
  REQUIRE(vm.client().Call(remove));
  REQUIRE(vm.vm().control().RemoveDisk(4, 1));
}

TEST_CASE("a mount that something uses is busy") {
  TestVm& vm = TestVm::Get();
  TestContainer container(TestContainer::Make({"sleep", "1000"}));
  container.Start();
  v1::UnmountRequest unmount;
  unmount.set_mount_id(host::LayerMountId(vm.layers().front()));
  const auto layer = vm.client().Call(unmount);
  REQUIRE_FALSE(layer);
  CHECK(layer.error().err == EBUSY);
  unmount.set_request_id("");
  unmount.set_mount_id("root-" + container.id());
  const auto root = vm.client().Call(unmount);
  REQUIRE_FALSE(root);
  CHECK(root.error().err == EBUSY);
  unmount.set_request_id("");
  unmount.set_mount_id("nothing");
  const auto nothing = vm.client().Call(unmount);
  REQUIRE_FALSE(nothing);
  CHECK(nothing.error().err == ENOENT);
}

TEST_CASE("a host directory shared by 9P is read and written by a container, or only read") {
  TestVm& vm = TestVm::Get();
  const std::string directory = vm.dir() / "shared";
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/from-host") << "hello guest";
  const std::string socket = vm.vm().control().ListenPath(4000);
  const Diod diod(directory, socket, vm.dir() / "diod.log");
  for (const bool read_only : {false, true}) {
    CAPTURE(read_only);
    v1::MountShareRequest share;
    share.set_mount_id("shared");
    share.set_port(4000);
    share.set_share_name(directory);
    share.set_read_only(read_only);
    const auto mounted = vm.client().Call(share);
    REQUIRE_MESSAGE(mounted, Why(mounted));
    auto options = TestContainer::Make({"sh", "-c", "cat /mnt/from-host; echo hello host > /mnt/from-guest"});
    options.settings.mounts = {{mounted->path(), "/mnt", false}};
    const Ran ran = RunToEnd(std::move(options));
    CHECK(ran.out == "hello guest");
    CHECK((ran.exit.exit_code() == 0) == !read_only);
    std::string written;
    std::getline(std::ifstream(directory + "/from-guest"), written);
    CHECK(written == (read_only ? "" : "hello host"));
    std::filesystem::remove(directory + "/from-guest");
    v1::UnmountRequest unmount;
    unmount.set_mount_id("shared");
    const auto gone = vm.client().Call(unmount);
    REQUIRE_MESSAGE(gone, Why(gone));
  }
}

TEST_CASE("a share whose server has died or says nothing can be unmounted, and its id is free") {
  TestVm& vm = TestVm::Get();
  const std::string directory = vm.dir() / "lost";
  std::filesystem::create_directories(directory);
  uint32_t port = 4002;
  for (const int signal : {SIGKILL, SIGSTOP}) {
    CAPTURE(signal);
    Diod diod(directory, vm.vm().control().ListenPath(port), vm.dir() / "diod.log");
    v1::MountShareRequest share;
    share.set_mount_id("lost");
    share.set_port(port++);
    share.set_share_name(directory);
    const auto mounted = vm.client().Call(share);
    REQUIRE_MESSAGE(mounted, Why(mounted));
    diod.Signal(signal);
    usleep(300'000);
    v1::UnmountRequest unmount;
    unmount.set_mount_id("lost");
    // The silent server costs the deadline; then its connection is shut down, and the second call finds
    // nothing.
    const auto first = vm.client().Call(unmount, {.timeout_ms = 2'000});
    CHECK((first || signal == SIGSTOP));
    unmount.set_request_id("");
    for (int i = 0; i < 100 && vm.client().Call(v1::ListMountsRequest())->mounts_size() > 0; ++i)
      usleep(20'000);
    v1::MountTmpfsRequest tmpfs;
    tmpfs.set_mount_id("lost");
    const auto again = vm.client().Call(tmpfs);
    CHECK_MESSAGE(again, Why(again));
    const auto gone = vm.client().Call(unmount);
    CHECK_MESSAGE(gone, Why(gone));
  }
}

TEST_CASE("a share whose port nobody serves is refused at once") {
  v1::MountShareRequest share;
  share.set_mount_id("nobody");
  share.set_port(4001);
  share.set_share_name("/");
  const int64_t begin = base::MonotonicNs();
  const auto mounted = TestVm::Get().client().Call(share);
  REQUIRE_FALSE(mounted);
  CHECK(base::MonotonicNs() - begin < 5 * base::kNsPerSec);
}

}  // namespace
}  // namespace gcs::test
