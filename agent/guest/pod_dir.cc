// SPDX-License-Identifier: Apache-2.0
#include "guest/pod_dir.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <ranges>
#include <thread>

#include "base/paths.h"
#include "engine/loopback.h"
#include "engine/spec.h"
#include "storage/mount_api.h"
#include "storage/mount_dirs.h"

namespace gcs::guest {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

namespace {

constexpr size_t kLongestHostname = 64;  // __NEW_UTS_LEN
constexpr uint64_t kDefaultShmBytes = 64 << 20;
// What containers can write into files that they share; the agent's own /run is not theirs to fill.
constexpr uint64_t kEtcBytes = 1 << 20;
constexpr int kNamespaces = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
constexpr std::array<const char*, 3> kNames{"net", "ipc", "uts"};

Result<> SetSysctls(const std::vector<std::pair<std::string, std::string>>& sysctls) {
  for (const auto& [key, value] : sysctls) {
    std::string path;
    if (engine::SysctlNamespace(key, &path) == 0) return MakeError(EINVAL, "set sysctl", key);
    if (auto set = base::WriteFile("/proc/sys/" + path, value); !set)
      return MakeError(set.error().err, "set sysctl", key, value.substr(0, 64));
  }
  return {};
}

// Leaves the calling thread in namespaces of its own.
Result<std::vector<Fd>> MakeNamespaces(const PodSettings& settings) {
  if (unshare(kNamespaces) != 0) return ErrnoError("make namespaces of a pod");
  if (!settings.hostname.empty() && sethostname(settings.hostname.data(), settings.hostname.size()) != 0)
    return ErrnoError("sethostname", settings.hostname);
  if (const int err = engine::SetLoopbackUp(); err != 0) return MakeError(-err, "set up loopback", "pod");
  GCS_TRY(SetSysctls(settings.sysctls));
  std::vector<Fd> made;
  for (const char* name : kNames) {
    GCS_ASSIGN(Fd fd, base::OpenFile(std::string("/proc/thread-self/ns/") + name, O_RDONLY));
    made.push_back(std::move(fd));
  }
  return made;
}

// nsfs is bound like a file, to a file.
Result<> BindNamespace(const Fd& ns, const std::string& path) {
  GCS_TRY(base::ReplaceFile(path, "", 0444));
  GCS_ASSIGN(const Fd file, base::OpenFile(path, O_PATH | O_NOFOLLOW));
  GCS_ASSIGN(const Fd mount, storage::CloneMount(ns.get(), 0, path));
  return storage::Attach(mount.get(), file.get(), path);
}

Result<> MountTmpfs(const std::string& path, uint64_t bytes, const char* mode) {
  GCS_TRY(base::MakeDirs(path, 0755));
  GCS_ASSIGN(const Fd directory, base::OpenFile(path, O_PATH | O_DIRECTORY | O_NOFOLLOW));
  GCS_ASSIGN(auto context, storage::FsContext::Open("tmpfs"));
  GCS_TRY(context.SetString("size", std::to_string(bytes)));
  GCS_TRY(context.SetString("mode", mode));
  GCS_ASSIGN(const Fd mount, context.Create(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, path));
  return storage::Attach(mount.get(), directory.get(), path);
}

Result<> Fill(const std::string& dir, const PodSettings& settings) {
  // Whose namespaces a thread is in is its own affair.
  Result<std::vector<Fd>> namespaces;
  std::thread([&] { namespaces = MakeNamespaces(settings); }).join();
  GCS_TRY(namespaces);
  GCS_TRY(base::MakeDirs(dir + "/ns", 0755));
  for (size_t i = 0; i < kNames.size(); ++i)
    GCS_TRY(BindNamespace((*namespaces)[i], dir + "/ns/" + kNames[i]));
  const uint64_t shm = settings.shm_bytes == 0 ? kDefaultShmBytes : settings.shm_bytes;
  GCS_TRY(MountTmpfs(dir + "/shm", shm, "1777"));
  GCS_TRY(MountTmpfs(dir + "/etc", kEtcBytes, "0755"));
  GCS_TRY(base::MakeDirs(dir + "/root", 0755));
  std::string hostname = settings.hostname;
  if (utsname own{}; hostname.empty() && uname(&own) == 0) hostname = own.nodename;
  GCS_TRY(base::ReplaceFile(dir + "/etc/hostname", hostname + "\n", 0644));
  GCS_TRY(base::ReplaceFile(dir + "/etc/hosts",
                            "127.0.0.1\tlocalhost\n127.0.0.1\t" + hostname +
                                "\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n"
                                "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
                            0644));
  // The guest's own name servers until ConfigureDns says otherwise.
  const auto resolv_conf = base::ReadFile("/etc/resolv.conf");
  return base::ReplaceFile(dir + "/etc/resolv.conf", resolv_conf.value_or(""), 0644);
}

}  // namespace

Result<> CheckHostname(const std::string& hostname) {
  const bool good = hostname.size() <= kLongestHostname && std::ranges::all_of(hostname, [](unsigned char c) {
                      return isalnum(c) != 0 || c == '-' || c == '.' || c == '_';
                    });
  if (good) return {};
  return MakeError(EINVAL, "create pod", "hostname", "at most 64 letters, digits, \"-\", \".\" and \"_\"");
}

Result<> CheckPodSysctls(const std::vector<std::pair<std::string, std::string>>& sysctls) {
  for (const auto& [key, value] : sysctls) {
    std::string path;
    if ((engine::SysctlNamespace(key, &path) & kNamespaces) == 0 || value.find('\n') != std::string::npos)
      return MakeError(EINVAL, "create pod", "sysctls." + key.substr(0, 128),
                       "is not a sysctl of a pod's network, ipc or uts namespace");
  }
  return {};
}

Result<> MakePodDir(const std::string& dir, const PodSettings& settings) {
  const size_t slash = dir.rfind('/');
  GCS_TRY(base::MakeDirs(dir.substr(0, slash), 0755));
  GCS_ASSIGN(const Fd parent, base::OpenFile(dir.substr(0, slash), O_PATH | O_DIRECTORY));
  bool made = false;
  GCS_ASSIGN(const Fd own, storage::OpenOrMakeDir(parent.get(), dir.substr(slash + 1), 0755, &made));
  if (!made) return MakeError(EEXIST, "make directory of a pod", dir);
  auto filled = Fill(dir, settings);
  if (!filled) std::ignore = RemovePodDir(dir);
  return filled;
}

Result<> BindPidNamespace(const std::string& dir, int pid) {
  GCS_ASSIGN(const Fd ns, base::OpenFile("/proc/" + std::to_string(pid) + "/ns/pid", O_RDONLY));
  return BindNamespace(ns, dir + "/ns/pid");
}

Result<> RemovePodDir(const std::string& dir) {
  GCS_ASSIGN(std::vector<base::MountInfo> mounts, storage::ReadMounts());
  // One may lie over another; the later of two is the upper one.
  for (const base::MountInfo& mount : mounts | std::views::reverse) {
    if (!storage::IsAtOrBelow(mount.target, dir)) continue;
    GCS_TRY(storage::UnmountAt(mount.target, mount.id));
  }
  const size_t slash = dir.rfind('/');
  auto parent = base::OpenFile(dir.substr(0, slash), O_PATH | O_DIRECTORY);
  if (!parent && parent.error().err == ENOENT) return {};
  GCS_TRY(parent);
  return storage::RemoveTree(parent->get(), dir.substr(slash + 1));
}

Result<> RewriteFile(const std::string& path, std::string_view text) {
  GCS_ASSIGN(const Fd file, base::OpenFile(path, O_WRONLY | O_NOFOLLOW));
  // Written over, not emptied first: somebody may be reading.
  const ssize_t n = pwrite(file.get(), text.data(), text.size(), 0);
  if (n < 0) return ErrnoError("write", path);
  if (static_cast<size_t>(n) != text.size()) return MakeError(ENOSPC, "write", path);
  if (ftruncate(file.get(), static_cast<off_t>(text.size())) != 0) return ErrnoError("ftruncate", path);
  return {};
}

}  // namespace gcs::guest
