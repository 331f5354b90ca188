// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <linux/bpf.h>

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "engine/spec.h"

namespace gcs::engine {

// The program of type BPF_PROG_TYPE_CGROUP_DEVICE for a container: 1 allows, 0 denies. The last rule that
// matches counts; an allow rule matches when it covers all of the access asked for, a deny rule when it
// covers a part. What no rule matches is denied. After the rules come the devices that every container may
// use (null, zero, full, random, urandom, tty, console, ptmx, pts, tun) and mknod of any.
std::vector<bpf_insn> DeviceProgram(const std::vector<DeviceRule>& rules);

// The devices that every container may use, as rules.
std::vector<DeviceRule> DefaultDeviceRules();

// The program of one cgroup (v2).
class DeviceFilter {
 public:
  // Attaches the program for `rules` to the cgroup directory `dir`, in place of the one that is there; `path`
  // names it in errors.
  base::Result<> Set(int dir, const std::string& path, const std::vector<DeviceRule>& rules);
  // For a cgroup that this process has not made: a program may be attached already.
  void Adopt() { unknown_ = true; }

 private:
  bool unknown_ = false;
  std::shared_ptr<const base::Fd> program_;
};

}  // namespace gcs::engine
