// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "host/client/oci_config.h"

// The guest's kernel knows no other architecture. A profile that names what is refused instead of the 350
// calls that are allowed: the container's rights are its capabilities' and namespaces' business, this takes
// away what a kernel defect would be reached through.
namespace gcs::host {

namespace {

using Json = nlohmann::json;

// Nobody in a container needs these, capabilities or not.
constexpr const char* kNever[] = {"acct",
                                  "add_key",
                                  "bpf",
                                  "clock_adjtime",
                                  "clock_settime",
                                  "delete_module",
                                  "finit_module",
                                  "get_kernel_syms",
                                  "init_module",
                                  "io_uring_enter",
                                  "io_uring_register",
                                  "io_uring_setup",
                                  "ioperm",
                                  "iopl",
                                  "kexec_file_load",
                                  "kexec_load",
                                  "keyctl",
                                  "lookup_dcookie",
                                  "nfsservctl",
                                  "open_by_handle_at",
                                  "perf_event_open",
                                  "query_module",
                                  "quotactl",
                                  "quotactl_fd",
                                  "reboot",
                                  "request_key",
                                  "settimeofday",
                                  "swapoff",
                                  "swapon",
                                  "syslog",
                                  "uselib",
                                  "userfaultfd",
                                  "vhangup"};

// CAP_SYS_ADMIN's.
constexpr const char* kAdmin[] = {"fsconfig",      "fsmount",    "fsopen",    "fspick",     "mount",
                                  "mount_setattr", "move_mount", "open_tree", "pivot_root", "setns",
                                  "umount",        "umount2",    "unshare"};

constexpr int kEperm = 1;
constexpr int kEnosys = 38;
constexpr uint64_t kCloneNamespaces = 0x7E020000;  // CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}

}  // namespace

std::string SeccompProfile(bool admin) {
  Json calls = Json::array();
  calls.push_back({{"names", kNever}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", kEperm}});
  if (!admin) {
    calls.push_back({{"names", kAdmin}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", kEperm}});
    // Any of the bits. One rule per bit, as a rule compares with one value.
    for (uint64_t bit = 1; bit != 0 && bit <= kCloneNamespaces; bit <<= 1) {
      if ((kCloneNamespaces & bit) == 0) continue;
      calls.push_back(
          {{"names", {"clone"}},
           {"action", "SCMP_ACT_ERRNO"},
           {"errnoRet", kEperm},
           {"args", {{{"index", 0}, {"value", bit}, {"valueTwo", bit}, {"op", "SCMP_CMP_MASKED_EQ"}}}}});
    }
    // Its flags are behind a pointer, which a filter cannot read; C libraries then fall back to clone.
    calls.push_back({{"names", {"clone3"}}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", kEnosys}});
  }
  const Json profile = {
      {"defaultAction", "SCMP_ACT_ALLOW"}, {"architectures", {"SCMP_ARCH_X86_64"}}, {"syscalls", calls}};
  return profile.dump();
}

}  // namespace gcs::host
