// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::guest {

// What the containers of a pod share, below one directory of the agent's own:
//
//   ns/net ns/ipc ns/uts ns/pid       its namespaces, bound: they last as long as the mounts
//   shm                               a tmpfs, their /dev/shm
//   etc/hostname hosts resolv.conf    their files of that name, in a small tmpfs: they may write to them
//   root                              the pause process's root, empty
//
// The agent can crash and find it again.
struct PodSettings {
  std::string hostname;                                      // empty: the guest's
  uint64_t shm_bytes = 0;                                    // 0: 64 MiB
  std::vector<std::pair<std::string, std::string>> sysctls;  // as PodService.Create has them
};

// The longest name that sethostname(2) takes, in the letters that a host's name has, or nothing.
base::Result<> CheckHostname(const std::string& hostname);
// Only those of a pod's network, ipc and uts namespaces: EINVAL, object: the sysctl.
base::Result<> CheckPodSysctls(const std::vector<std::pair<std::string, std::string>>& sysctls);

// Makes all of it but ns/pid. `dir` must not be there; after an error it isn't.
base::Result<> MakePodDir(const std::string& dir, const PodSettings& settings);
// Adds ns/pid: the pid namespace of this process.
base::Result<> BindPidNamespace(const std::string& dir, int pid);
// Unmounts and removes it, or what there is of it.
base::Result<> RemovePodDir(const std::string& dir);

// Changes a file under those that have it mounted; there is never less in it than one or the other text.
base::Result<> RewriteFile(const std::string& path, std::string_view text);

}  // namespace gcs::guest
