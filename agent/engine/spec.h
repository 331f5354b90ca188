// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace gcs::engine {

// config.json of the OCI runtime specification (config.md, config-linux.md), typed. Names are the
// specification's. What the configuration asks for and this engine does not do is an error (EOPNOTSUPP) with
// the JSON path; unknown keys are ignored and invalid values refused, as the specification demands.

struct Mount {
  std::string destination;  // absolute, lexically clean
  std::string type;         // empty with bind options
  std::string source;
  std::vector<std::string> options;
};

struct Device {
  char type = 'c';  // c (also for u), b, p
  std::string path;
  uint32_t major = 0;
  uint32_t minor = 0;
  uint32_t mode = 0666;
  uint32_t uid = 0;
  uint32_t gid = 0;
};

struct DeviceRule {
  bool allow = false;
  char type = 'a';                // a, b, c
  std::optional<uint32_t> major;  // none: any
  std::optional<uint32_t> minor;
  bool read = false, write = false, mknod = false;
};

struct Rlimit {
  int resource = 0;  // RLIMIT_*
  uint64_t soft = 0;
  uint64_t hard = 0;
};

// One bit per capability number.
struct Capabilities {
  uint64_t bounding = 0, effective = 0, inheritable = 0, permitted = 0, ambient = 0;
};

struct Process {
  bool terminal = false;
  uint16_t console_height = 0;
  uint16_t console_width = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::vector<uint32_t> additional_gids;
  uint32_t umask = 0022;
  std::vector<std::string> args;
  std::vector<std::string> env;
  std::string cwd = "/";
  Capabilities capabilities;
  std::vector<Rlimit> rlimits;
  bool no_new_privileges = false;
  std::optional<int> oom_score_adj;
};

struct Namespace {
  int flag = 0;      // CLONE_NEW*
  std::string path;  // empty: a new one
};

// Limits of cgroup v2; a value of none leaves the kernel's default.
struct Resources {
  std::optional<int64_t> memory_limit;        // bytes, -1: max
  std::optional<int64_t> memory_reservation;  // bytes
  std::optional<int64_t> memory_swap;         // memory + swap in bytes, -1: max
  std::optional<uint64_t> cpu_shares;
  std::optional<int64_t> cpu_quota;    // us per period, negative: max
  std::optional<uint64_t> cpu_period;  // us
  std::optional<uint64_t> cpu_burst;   // us
  std::string cpus, mems;              // lists
  std::optional<int64_t> pids_limit;   // -1: max
  std::vector<std::pair<std::string, std::string>> unified;
  std::vector<DeviceRule> devices;
};

struct Spec {
  std::string oci_version;
  std::string root_path;
  bool root_readonly = false;
  std::string hostname;
  std::string domainname;
  std::optional<Process> process;
  std::vector<Mount> mounts;
  std::vector<Namespace> namespaces;
  std::vector<Device> devices;
  std::vector<std::string> masked_paths;
  std::vector<std::string> readonly_paths;
  std::vector<std::pair<std::string, std::string>> sysctl;
  std::string cgroups_path;
  Resources resources;
  std::optional<base::Json> seccomp;  // linux.seccomp, compiled by seccomp.h
  uint64_t rootfs_propagation = 0;    // MS_*, 0: private
  std::vector<std::pair<std::string, std::string>> annotations;

  // The namespace of this kind that the configuration names, or null.
  [[nodiscard]] const Namespace* FindNamespace(int flag) const;
};

base::Result<Spec> ParseSpec(std::string_view config_json);
// A process object for an exec. What it leaves out comes from `defaults`, but for args and terminal.
base::Result<Process> ParseProcess(std::string_view process_json, const Process& defaults);
// A resources object for an update.
base::Result<Resources> ParseResources(std::string_view resources_json);

// "/a//b/./c/.." → "/a/b"; a relative path counts from "/". ".." never leaves "/".
std::string CleanPath(std::string_view path);

}  // namespace gcs::engine
