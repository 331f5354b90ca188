// SPDX-License-Identifier: Apache-2.0
// The agent's crash, and an end with a file server that says nothing.
#include <fcntl.h>
#include <linux/fs.h>
#include <unistd.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/paths.h"
#include "vm/diod.h"
#include "vm/vm_support.h"

namespace gcs::test {
namespace {

void Pause(int64_t ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// In the VM's own pid namespace, and if asked in a cgroup that is not below the usual one.
void EditConfig(std::string& config, bool own_pids, const std::string& cgroup) {
  auto json = nlohmann::json::parse(config);
  auto& namespaces = json["linux"]["namespaces"];
  for (size_t i = 0; i < namespaces.size() && !own_pids; ++i) {
    if (namespaces[i]["type"] == "pid") namespaces.erase(i--);
  }
  if (!cgroup.empty()) json["linux"]["cgroupsPath"] = cgroup;
  config = json.dump();
}

// Created and started by id, which TestContainer chooses by itself.
void StartContainer(const std::string& id, const std::vector<std::string>& args, bool own_pids = true,
                    const std::string& cgroup = {}) {
  TestVm& vm = TestVm::Get();
  const auto root = vm.storage().MountRoot(id, vm.layers(), 0);
  REQUIRE_MESSAGE(root, Why(root));
  host::ContainerSettings settings;
  settings.root_path = root->path;
  settings.args = args;
  auto config = host::MakeOciConfig({}, settings);
  REQUIRE_MESSAGE(config, Why(config));
  EditConfig(*config, own_pids, cgroup);
  v1::CreateContainerRequest create;
  create.set_container_id(id);
  create.set_config_json(*config);
  create.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  for (const std::string& mount : root->mount_ids) create.add_owned_mounts(mount);
  const auto created = vm.client().Call(create);
  REQUIRE_MESSAGE(created, Why(created));
  v1::StartContainerRequest start;
  start.set_container_id(id);
  const auto started = vm.client().Call(start);
  REQUIRE_MESSAGE(started, Why(started));
}

void MountData() {
  v1::MountDiskRequest mount;
  mount.set_mount_id("data");
  mount.mutable_disk()->mutable_scsi()->set_target(3);
  mount.mutable_disk()->mutable_scsi()->set_lun(9);
  mount.set_format_if_empty(true);
  const auto mounted = TestVm::Get().client().Call(mount);
  REQUIRE_MESSAGE(mounted, Why(mounted));
}

std::string AddDataDisk() {
  TestVm& vm = TestVm::Get();
  std::string path = vm.dir() / "data.img";
  const base::Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  REQUIRE(fd);
  REQUIRE(ftruncate(fd.get(), 16 << 20) == 0);
  REQUIRE(vm.vm().control().AddDisk({.path = path, .readonly = false, .lun = 9, .target = 3}));
  return path;
}

TEST_CASE("after the agent's crash its containers are gone, and their ids, mounts and disks are free") {
  TestVm& vm = TestVm::Get();
  AddDataDisk();
  MountData();
  v1::MountTmpfsRequest tmpfs;
  tmpfs.set_mount_id("inside");
  tmpfs.set_target("/run/gcs/mounts/data/deep/er");
  REQUIRE(vm.client().Call(tmpfs));
  StartContainer("plain", {"sleep", "4242"});
  StartContainer("elsewhere", {"sh", "-c", "mkdir /sys/fs/cgroup/sub 2>/dev/null; exec sleep 4242"}, true,
                 "/other/place");
  StartContainer(
      "killer",
      {"sh", "-c",
       "for p in /proc/[0-9]*; do read c < $p/comm; [ \"$c\" = gcs ] && kill -9 ${p#/proc/}; done; "
       "exec sleep 4242"},
      false);

  const int64_t deadline = base::MonotonicNs() + 60 * base::kNsPerSec;
  for (;;) {
    const auto info = vm.client().Call(v1::InfoRequest());
    if (info && info->agent_restarts() == 1) {
      CHECK(info->containers() == 0);
      break;
    }
    REQUIRE(base::MonotonicNs() < deadline);
    Pause(20);
  }
  const auto mounts = vm.client().Call(v1::ListMountsRequest());
  REQUIRE(mounts);
  CHECK(mounts->mounts_size() == 0);

  // What is left, as the VM sees it.
  StartContainer("plain",
                 {"sh", "-c",
                  "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep 424[2]'; "
                  "grep -c /run/gcs/mounts/ /proc/1/mountinfo; echo end; sleep 1000"},
                 false);
  Output output("plain", {}, false, false);
  REQUIRE(output.WaitFor("end\n"));
  // The layers and the tmpfs and overlay of this container itself.
  CHECK(output.out() == "0\n" + std::to_string(vm.layers().size() + 2) + "\nend\n");
  StartContainer("elsewhere", {"sleep", "1000"}, true, "/other/place");
  for (const char* id : {"plain", "elsewhere"}) {
    v1::DeleteContainerRequest remove;
    remove.set_container_id(id);
    remove.set_force(true);
    const auto removed = vm.client().Call(remove);
    CHECK_MESSAGE(removed, Why(removed));
  }
  MountData();
  v1::UnmountRequest unmount;
  unmount.set_mount_id("data");
  const auto gone = vm.client().Call(unmount);
  CHECK_MESSAGE(gone, Why(gone));
  v1::RemoveDiskRequest remove;
  remove.mutable_disk()->mutable_scsi()->set_target(3);
  remove.mutable_disk()->mutable_scsi()->set_lun(9);
  const auto removed = vm.client().Call(remove);
  CHECK_MESSAGE(removed, Why(removed));
  REQUIRE(vm.vm().control().RemoveDisk(3, 9));
}

// Last: it ends the VM.
TEST_CASE("a file server that says nothing keeps no disk from a clean end") {
  TestVm& vm = TestVm::Get();
  const std::string disk = AddDataDisk();
  MountData();
  const std::string socket = vm.vm().control().ListenPath(4000);
  Diod diod(vm.dir().path(), socket, vm.dir() / "diod.log");
  v1::MountShareRequest share;
  share.set_mount_id("zzz");  // unmounted before the disk, being younger
  share.set_port(4000);
  share.set_share_name(vm.dir().path());
  const auto mounted = vm.client().Call(share);
  REQUIRE_MESSAGE(mounted, Why(mounted));
  diod.Signal(SIGSTOP);
  v1::ShutdownRequest shutdown;
  shutdown.set_mode(v1::ShutdownRequest::MODE_REBOOT);
  shutdown.set_grace_ms(100);
  REQUIRE(vm.client().Call(shutdown));
  const auto ended = vm.vm().Wait(60'000);
  REQUIRE_MESSAGE(ended, Why(ended) << vm.vm().ConsoleTail());
  // ext4's superblock (at 1024): s_state, and INCOMPAT_RECOVER while the journal holds something.
  const auto image = base::OpenFile(disk, O_RDONLY);
  REQUIRE(image);
  uint16_t state = 0;
  uint32_t incompat = 0;
  REQUIRE(pread(image->get(), &state, sizeof state, 1024 + 0x3a) == sizeof state);
  REQUIRE(pread(image->get(), &incompat, sizeof incompat, 1024 + 0x60) == sizeof incompat);
  CHECK((state & 1) == 1);
  CHECK((incompat & 4) == 0);
}

}  // namespace
}  // namespace gcs::test
