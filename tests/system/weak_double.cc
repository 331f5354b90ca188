// SPDX-License-Identifier: Apache-2.0
// The engine with one of its precautions left out, so that the tests of escapes can be seen to fail: the
// three primitives (look-ups below a root, the detached procfs, verified inodes) and single steps of the
// child. Everything else is the engine's own objects. What then escapes are the tests' own canaries.
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "base/json.h"
#include "base/resolve.h"
#include "engine/child_process.h"
#include "engine/plan.h"
#include "engine/spec_read.h"
#include "engine/verify.h"
#include "system/weak.h"

// Both names of a function that the linker has been told to wrap: who calls NAME gets weak, real is NAME
// itself.
#define GCS_WRAP(result, real, weak, parameters, symbol) \
  result real parameters asm("__real_" symbol);          \
  result weak parameters asm("__wrap_" symbol);          \
  result weak parameters

namespace gcs::test {

using base::Json;
using base::Result;

// The three primitives.

GCS_WRAP(int, RealOpenResolved, WeakOpenResolved,
         (int dir, const char* path, uint64_t flags, uint64_t mode, uint64_t resolve),
         "_ZN3gcs4base12OpenResolvedEiPKcmmm") {
  if (!Weak("lookup")) return RealOpenResolved(dir, path, flags, mode, resolve);
  const uint64_t plain = flags & ~static_cast<uint64_t>(O_NOFOLLOW | O_EXCL);
  const int fd = openat(dir, path, static_cast<int>(plain | O_CLOEXEC), mode);
  return fd >= 0 ? fd : -errno;
}

GCS_WRAP(int, RealOpenProcFile, WeakOpenProcFile, (int proc, const char* path, bool links),
         "_ZN3gcs6engine12OpenProcFileEiPKcb") {
  if (!Weak("proc")) return RealOpenProcFile(proc, path, links);
  char whole[4096];
  snprintf(whole, sizeof whole, "/proc/%s", path);
  const int fd = open(whole, O_WRONLY | O_CLOEXEC);
  return fd >= 0 ? fd : -errno;
}

GCS_WRAP(int, RealVerifyInode, WeakVerifyInode, (int fd, const engine::Inode& expected),
         "_ZN3gcs6engine11VerifyInodeEiRKNS0_5InodeE") {
  return Weak("inode") ? 0 : RealVerifyInode(fd, expected);
}

// What a configuration is checked for.

GCS_WRAP(std::string, RealCleanPath, WeakCleanPath, (std::string_view path),
         "_ZN3gcs6engine9CleanPathB5cxx11ESt17basic_string_viewIcSt11char_traitsIcEE") {
  if (!Weak("paths")) return RealCleanPath(path);
  return path.starts_with('/') ? std::string(path) : "/" + std::string(path);
}

GCS_WRAP(bool, RealValidId, WeakValidId, (std::string_view id),
         "_ZN3gcs6engine7ValidIdESt17basic_string_viewIcSt11char_traitsIcEE") {
  return Weak("ids") || RealValidId(id);
}

GCS_WRAP(void, RealCheckSysctls, WeakCheckSysctls, (base::JsonReader & reader, engine::Spec& spec),
         "_ZN3gcs6engine12CheckSysctlsERNS_4base10JsonReaderERNS0_4SpecE") {
  if (!Weak("sysctls")) return RealCheckSysctls(reader, spec);
  for (auto& [key, value] : spec.sysctl) std::ranges::replace(key, '.', '/');
}

GCS_WRAP(Result<Json>, RealParseJson, WeakParseJson,
         (std::string_view text, std::string_view what, size_t limit),
         "_ZN3gcs4base9ParseJsonB5cxx11ESt17basic_string_viewIcSt11char_traitsIcEES4_m") {
  if (!Weak("limits")) return RealParseJson(text, what, limit);
  return Json::parse(text);
}

GCS_WRAP(void, RealFail, WeakFail,
         (base::JsonReader * reader, std::string_view key, std::string_view message, int err),
         "_ZN3gcs4base10JsonReader4FailESt17basic_string_viewIcSt11char_traitsIcEES5_i") {
  if (!Weak("limits") || err != E2BIG) RealFail(reader, key, message, err);
}

GCS_WRAP(engine::StringRef, RealString, WeakString, (engine::PlanBuilder * builder, std::string_view text),
         "_ZN3gcs6engine11PlanBuilder6StringESt17basic_string_viewIcSt11char_traitsIcEE") {
  const engine::StringRef ref = RealString(builder, text);
  return Weak("lengths") ? ref & 0xffff : ref;
}

GCS_WRAP(Result<>, RealSignal, WeakSignal, (const engine::ChildProcess* child, int signal),
         "_ZNK3gcs6engine12ChildProcess6SignalEi") {
  if (!Weak("pidfd")) return RealSignal(child, signal);
  kill(child->pid(), signal);
  return {};
}

// Steps of the daemon and the child, which make most of their system calls by syscall(2).

namespace {

// 1 in the container's pid namespace.
bool InContainer() { return getpid() == 1; }

// Descriptors that could lead out stay open, also for the program; sockets would only keep the daemon
// waiting.
void LeaveOpen(unsigned first) {
  for (int fd = static_cast<int>(first); fd < 128; ++fd) {
    struct stat st;
    if (fstat(fd, &st) != 0) continue;
    if (S_ISSOCK(st.st_mode)) {
      close(fd);
    } else {
      fcntl(fd, F_SETFD, 0);
    }
  }
}

// The container's own null device, of which the test has made a link: in no other directory that is open here
// is one.
int OpenItsNull() {
  for (int fd = 127; fd > 2; --fd) {
    char target;
    if (readlinkat(fd, "dev/null", &target, 1) == 1) {
      return RealOpenResolved(fd, "dev/null", O_PATH, 0, RESOLVE_IN_ROOT);
    }
  }
  return -1;
}

bool IsCgroup(int fd) {
  return RealVerifyInode(fd, {.filesystem = CGROUP2_SUPER_MAGIC}) == 0 ||
         RealVerifyInode(fd, {.filesystem = CGROUP_SUPER_MAGIC}) == 0;
}

}  // namespace

GCS_WRAP(long, RealSyscall, WeakSyscall, (long number, long a, long b, long c, long d, long e, long f),
         "syscall") {
  switch (number) {
    case SYS_close_range:
      if (!InContainer() || !Weak("descriptors")) break;
      LeaveOpen(static_cast<unsigned>(a));
      return 0;
    case SYS_getcwd:
      if (!Weak("cwd")) break;
      strcpy(reinterpret_cast<char*>(a), "/");  // NOLINT(clang-analyzer-security.insecureAPI.strcpy)
      return 2;
    case SYS_open_tree: {
      const auto* path = reinterpret_cast<const char*>(b);
      if (Weak("cover") && strcmp(path, "null") == 0) {
        return RealSyscall(number, OpenItsNull(), reinterpret_cast<long>(""), c | AT_EMPTY_PATH, 0, 0, 0);
      }
      if (Weak("own-cgroup") && IsCgroup(static_cast<int>(a))) {
        // Not the container's, but the root of the hierarchy.
        int above = static_cast<int>(a);
        for (int next = above; next >= 0 && IsCgroup(next);) {
          above = next;
          next = openat(above, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        }
        return RealSyscall(number, above, reinterpret_cast<long>(""), c | AT_EMPTY_PATH, 0, 0, 0);
      }
      break;
    }
    case SYS_mount_setattr:
      if (Weak("readonly")) {
        auto attributes = *reinterpret_cast<const mount_attr*>(d);
        attributes.attr_set &= ~static_cast<uint64_t>(MOUNT_ATTR_RDONLY);
        return RealSyscall(number, a, b, c, reinterpret_cast<long>(&attributes), e, 0);
      }
      break;
    case SYS_bpf:
      if (Weak("devices") && a == BPF_PROG_ATTACH) return 0;
      break;
    case SYS_capset:
      if (Weak("inheritable")) {
        auto* data = reinterpret_cast<__user_cap_data_struct*>(b);
        for (int half = 0; half < 2; ++half) data[half].inheritable = data[half].permitted;
      }
      break;
    case SYS_setgroups:
      if (Weak("groups")) return 0;
      break;
    case SYS_seccomp:
      if (Weak("filters")) return 0;
      break;
    case SYS_pivot_root:
      if (Weak("handler")) close(open(".gcs-handler", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
      break;
    default:
      break;
  }
  return RealSyscall(number, a, b, c, d, e, f);
}

GCS_WRAP(int, RealPrctl, WeakPrctl, (int option, long a, long b, long c, long d), "prctl") {
  return option == PR_SET_DUMPABLE && Weak("dumpable") ? 0 : RealPrctl(option, a, b, c, d);
}

}  // namespace gcs::test
