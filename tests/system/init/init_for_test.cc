// SPDX-License-Identifier: Apache-2.0
// PID 1 as the utility VM runs it, with tables for private namespaces: nothing in them is outside a mount,
// pid, uts, ipc and network namespace. init_test.cc starts it; by hand it refuses.
#include <sys/mount.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.h"
#include "init/init.h"

namespace {

using gcs::init::DirectoryRow;
using gcs::init::LimitRow;
using gcs::init::LinkRow;
using gcs::init::MountRow;
using gcs::init::OnFailure;
using gcs::init::SettingRow;
using gcs::init::Table;

constexpr MountRow kMounts[] = {
    {"proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr, 0, OnFailure::kFatal},
    {"shm", "/dev/shm", "tmpfs", 0, "mode=1777", 0755, OnFailure::kFatal},
    {"run", "/run", "tmpfs", 0, "mode=0755", 0, OnFailure::kFatal},
    {"tmp", "/tmp", "tmpfs", 0, "mode=1777,size=25%", 0, OnFailure::kFatal},
    {"none", "/tmp/not-there", "no-such-type", 0, nullptr, 0755, OnFailure::kLog},
    {"none", "/tmp/not-there", "no-such-type", 0, nullptr, 0755, OnFailure::kIgnore},
};
constexpr MountRow kBrokenMounts[] = {
    kMounts[0],
    {"none", "/run", "no-such-type", 0, nullptr, 0, OnFailure::kFatal},
};
constexpr DirectoryRow kDirectories[] = {{"/run/gcs", 0700}};
constexpr LinkRow kLinks[] = {{"/tmp/link", "/run", OnFailure::kFatal},
                              {"/tmp/link", "/run", OnFailure::kFatal}};
constexpr LimitRow kLimits[] = {{RLIMIT_NOFILE, "nofile", 200, 300}};
// Of the network namespace.
constexpr SettingRow kSettings[] = {{"/proc/sys/net/ipv4/ip_forward", "1", OnFailure::kFatal},
                                    {"/proc/sys/no/such/name", "1", OnFailure::kIgnore}};

constexpr Table kTest{
    .kernel_log = "/proc/self/fd/2",
    .mounts = kMounts,
    .directories = kDirectories,
    .links = kLinks,
    .limits = kLimits,
    .settings = kSettings,
    .cgroup_root = nullptr,
    .agent_memory_min = 0,
    .modules = nullptr,
    .boot_record = "/run/gcs/boot",
    .agent = "/standin",
    .teardown_ns = 5 * gcs::base::kNsPerSec,
    .detach_devices = false,
};

constexpr Table Broken() {
  Table table = kTest;
  table.mounts = kBrokenMounts;
  return table;
}
constexpr Table kBroken = Broken();

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 0 ? argv[0] : "";
  if (getpid() != 1 || (name != "init-under-test" && name != "init-broken")) {
    fprintf(stderr, "init_for_test: only system_init may start this\n");
    return 1;
  }
  gcs::init::RunInit(name == "init-broken" ? kBroken : kTest,
                     std::vector<std::string>(argv + 1, argv + argc));
}
