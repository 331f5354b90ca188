// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ctime>

#include "vm/kernel_selfcheck/item.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

namespace gcs::selfcheck {
namespace {

Result<ino_t> NamespaceOf(const std::string& name) {
  struct stat info = {};
  const std::string path = "/proc/self/ns/" + name;
  if (stat(path.c_str(), &info) != 0) return ErrnoError("stat", path);
  return info.st_ino;
}

// unshare(flag) must give the process another namespace of the kind than before.
Result<> Unshares(int flag, const std::string& name) {
  GCS_ASSIGN(const ino_t before, NamespaceOf(name));
  if (unshare(flag) != 0) return ErrnoError("unshare", name);
  if (flag == CLONE_NEWPID || flag == CLONE_NEWTIME) {
    // These are entered by the next child.
    return InChild([&name, before]() -> Result<> {
      GCS_ASSIGN(const ino_t inside, NamespaceOf(name));
      if (inside == before) return MakeError(EEXIST, "unshare", name, "the namespace is the old one");
      return {};
    });
  }
  GCS_ASSIGN(const ino_t after, NamespaceOf(name));
  if (after == before) return MakeError(EEXIST, "unshare", name, "the namespace is the old one");
  return {};
}

Result<> PidNamespaceStartsAtOne() {
  if (unshare(CLONE_NEWPID) != 0) return ErrnoError("unshare", "pid");
  return InChild([]() -> Result<> {
    if (getpid() != 1) return MakeError(ESRCH, "getpid", {}, "first process is " + std::to_string(getpid()));
    return {};
  });
}

Result<> UserNamespaceMapsIds() {
  return AsUser([]() -> Result<> {
    if (unshare(CLONE_NEWUSER) != 0) return ErrnoError("unshare", "user");
    GCS_TRY(WriteFile("/proc/self/setgroups", "deny"));
    GCS_TRY(WriteFile("/proc/self/uid_map", "0 1000 1"));
    GCS_TRY(WriteFile("/proc/self/gid_map", "0 1000 1"));
    if (getuid() != 0 || getgid() != 0) return MakeError(EPERM, "getuid", {}, "not 0 after mapping");
    return {};
  });
}

Result<> TimeNamespaceShiftsClock() {
  if (unshare(CLONE_NEWTIME) != 0) return ErrnoError("unshare", "time");
  GCS_TRY(WriteFile("/proc/self/timens_offsets", "boottime 100000 0"));
  return InChild([]() -> Result<> {
    timespec now = {};
    if (clock_gettime(CLOCK_BOOTTIME, &now) != 0) return ErrnoError("clock_gettime", "CLOCK_BOOTTIME");
    if (now.tv_sec < 100000)
      return MakeError(ERANGE, "clock_gettime", "CLOCK_BOOTTIME", "the offset had no effect");
    return {};
  });
}

const Item kItems[] = {
    {"namespace-mount", [] { return Unshares(CLONE_NEWNS, "mnt"); }},
    {"namespace-uts", [] { return Unshares(CLONE_NEWUTS, "uts"); }},
    {"namespace-ipc", [] { return Unshares(CLONE_NEWIPC, "ipc"); }},
    {"namespace-net", [] { return Unshares(CLONE_NEWNET, "net"); }},
    {"namespace-user", [] { return Unshares(CLONE_NEWUSER, "user"); }},
    {"namespace-user-maps-ids", UserNamespaceMapsIds},
    {"namespace-cgroup", [] { return Unshares(CLONE_NEWCGROUP, "cgroup"); }},
    {"namespace-pid", PidNamespaceStartsAtOne},
    {"namespace-time", [] { return Unshares(CLONE_NEWTIME, "time"); }},
    {"namespace-time-shifts-clock", TimeNamespaceShiftsClock},
};

}  // namespace

std::span<const Item> NamespaceItems() { return kItems; }

}  // namespace gcs::selfcheck
