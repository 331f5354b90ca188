// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "host/client/users.h"
#include "host/image/image.h"

namespace gcs::host {

// A directory of the guest that the container gets.
struct BindMount {
  std::string source;       // in the guest
  std::string destination;  // in the container
  bool read_only = false;
};

// What of a container is not its image's business. Empty and 0 mean: as the image says, or no limit.
struct ContainerSettings {
  std::string root_path;  // in the guest
  std::vector<std::string> args;
  std::vector<std::string> env;  // NAME=value; NAME alone takes the caller's own value
  std::string cwd;
  User user;
  std::string hostname;
  bool terminal = false;
  uint32_t width = 0, height = 0;
  bool read_only = false;
  bool no_new_privileges = false;
  bool privileged = false;  // all capabilities, nothing masked, no seccomp profile
  bool seccomp = true;
  std::vector<std::string> cap_add, cap_drop;  // with or without CAP_, ALL
  uint64_t memory_bytes = 0;
  double cpus = 0;
  int64_t pids_limit = 0;
  std::vector<BindMount> mounts;
};

// config.json of the OCI runtime specification 1.0.2, with docker's defaults: its 14 capabilities, its
// mounts, masked and read-only paths. The seccomp profile is a compact one of our own (seccomp_profile.cc):
// all is allowed but what changes the kernel or the machine, or makes user namespaces. Errors (EINVAL,
// object: the setting): unknown capability, no program, bad value.
base::Result<std::string> MakeOciConfig(const ImageConfig& image, const ContainerSettings& settings);
// A `process` object for an exec: only what is set; the rest is the container's own.
base::Result<std::string> MakeOciProcess(const ContainerSettings& settings, bool with_user);

// "512m", "2g", "1073741824": bytes. EINVAL.
base::Result<uint64_t> ParseSize(const std::string& text);
// "TERM", "SIGTERM", "15". EINVAL.
base::Result<int> ParseSignal(const std::string& text);

// linux.seccomp as JSON; `admin`: the container has CAP_SYS_ADMIN, whose calls are then left to it.
std::string SeccompProfile(bool admin);

}  // namespace gcs::host
