// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <linux/bpf.h>

#include <vector>

#include "engine/spec.h"

namespace gcs::engine {

// The program of type BPF_PROG_TYPE_CGROUP_DEVICE for a container: 1 allows, 0 denies. The last rule that
// matches counts; an allow rule matches when it covers all of the access asked for, a deny rule when it
// covers a part. What no rule matches is denied. After the rules come the devices that every container may
// use (null, zero, full, random, urandom, tty, console, ptmx, pts, tun) and mknod of any.
std::vector<bpf_insn> DeviceProgram(const std::vector<DeviceRule>& rules);

}  // namespace gcs::engine
