// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "base/error.h"
#include "host/vm/vm.h"

namespace gcs::host {

// Decides kAuto. KVM counts as working when it boots `kernel` on microvm to the panic for want of an init,
// which ends QEMU by itself; it has 3 s. Without write access to `device` nothing is booted. The answer is
// kept in $GCS_CACHE (default ~/.cache/lcow-gcs) under the machine's boot id, because /dev/kvm may be there
// and yet not run a kernel (nested or para-virtualized hypervisors).
base::Result<Accel> ResolveAccel(Accel wanted, const std::string& qemu, const std::string& kernel,
                                 const std::string& device = "/dev/kvm");

}  // namespace gcs::host
