// SPDX-License-Identifier: Apache-2.0
// /init of a VM whose kernel is to be examined: does what containers and the agent will ask of the kernel,
// prints a line `ok NAME` or `not ok NAME: step (object): errno text: detail` for each item and `done N ok M
// not ok`, and reboots. selfcheck.machine=microvm|q35 names the machine; selfcheck.bogus=1 adds an item that
// must fail, to show that items can.
#include <fcntl.h>
#include <linux/reboot.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

struct Mount {
  const char* target;
  const char* type;
  const char* options;
};

constexpr Mount kMounts[] = {
    {"/proc", "proc", ""},
    {"/sys", "sysfs", ""},
    {"/dev", "devtmpfs", ""},
    {"/dev/pts", "devpts", "ptmxmode=0666"},
};

Result<> MountBasics() {
  for (const char* dir : {"/proc", "/sys", "/dev", "/tmp", "/mnt"}) mkdir(dir, 0755);
  for (const Mount& each : kMounts) {
    if (each.target == std::string_view("/dev/pts")) mkdir("/dev/pts", 0755);
    // With CONFIG_DEVTMPFS_MOUNT the kernel does /dev itself only when it mounts a root file system.
    if (mount(each.type, each.target, each.type, 0, each.options) != 0)
      return ErrnoError("mount", each.target);
  }
  return {};
}

Result<> RunIsolated(const Item& item) {
  return InChild([&item]() -> Result<> {
    if (unshare(CLONE_NEWNS) != 0) return ErrnoError("unshare mount namespace");
    if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
      return ErrnoError("make private", "/");
    return item.run();
  });
}

struct Tally {
  int ok = 0;
  int failed = 0;

  void Report(const char* name, const Result<>& result) {
    if (result) {
      ++ok;
      std::printf("ok %s\n", name);
    } else {
      ++failed;
      std::printf("not ok %s: %s\n", name, result.error().ToString().c_str());
    }
    std::fflush(stdout);
  }
};

void RunAll() {
  Tally tally;
  if (const Result<> mounted = MountBasics(); !mounted) {
    tally.Report("basic-mounts", mounted);
    std::printf("done %d ok %d not ok\n", tally.ok, tally.failed);
    return;
  }
  const Result<std::string> command_line = ReadFile("/proc/cmdline");
  const std::string words = command_line.value_or("");
  const bool q35 = HasWord(words, "selfcheck.machine=q35");
  const bool microvm = HasWord(words, "selfcheck.machine=microvm");
  if (q35 == microvm) {
    tally.Report("command-line",
                 MakeError(EINVAL, "read /proc/cmdline", "selfcheck.machine", "microvm or q35"));
  }
  for (const auto& group : {NamespaceItems(), CgroupItems(), FilesystemItems(), BlockItems(), CryptoItems(),
                            VsockItems(), NetworkItems(), SyscallItems(), HardeningItems(), MachineItems()}) {
    for (const Item& item : group) {
      if (item.where == Where::kQ35 && !q35) continue;
      if (item.where == Where::kMicrovm && !microvm) continue;
      tally.Report(item.name, RunIsolated(item));
    }
  }
  if (HasWord(words, "selfcheck.bogus=1")) {
    const Item bogus{"bogus", []() -> Result<> {
                       const Fd mem(open("/dev/mem", O_RDONLY | O_CLOEXEC));
                       if (!mem) return ErrnoError("open", "/dev/mem");
                       return {};
                     }};
    tally.Report(bogus.name, RunIsolated(bogus));
  }
  std::printf("done %d ok %d not ok\n", tally.ok, tally.failed);
}

}  // namespace
}  // namespace gcs::selfcheck

int main() {
  if (getpid() != 1) {
    std::fputs("kernel_selfcheck is PID 1 of a test VM; it reboots the machine it runs on\n", stderr);
    return 2;
  }
  gcs::selfcheck::RunAll();
  std::fflush(stdout);
  // The serial port must have sent all before the machine goes.
  tcdrain(STDOUT_FILENO);
  sync();
  reboot(LINUX_REBOOT_CMD_RESTART);
  for (;;) pause();
}
