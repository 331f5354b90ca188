// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace gcs::oci {

// Name (argv[0]) under which the program is the zygote of another one.
inline constexpr char kZygoteName[] = "gcs-oci-zygote";

// Executes this program once more, as the zygote with `socket`, from where nobody can write to it: a
// read-only overlay of its directory that is attached nowhere, or a sealed copy in memory where there is no
// overlayfs. A container's process is the zygote's program until its execve, and can be made to execute it
// again by an image
// ("#!/proc/self/exe"): through /proc/PID/exe it could then change the runtime on disk (CVE-2019-5736).
// Returns -errno.
int BecomeSealedZygote(int socket) noexcept;

}  // namespace gcs::oci
