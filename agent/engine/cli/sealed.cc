// SPDX-License-Identifier: Apache-2.0
#include "engine/cli/sealed.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"

#ifndef MFD_EXEC  // Linux 6.3
#define MFD_EXEC 0x0010U
#endif

namespace gcs::oci {

base::Result<> RunFromSealedCopy(char** argv) {
  constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  const base::Fd self(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  if (!self.valid()) return base::ErrnoError("open", "/proc/self/exe");
  const int seals = fcntl(self.get(), F_GET_SEALS);
  if (seals >= 0 && (seals & kSeals) == kSeals) return {};
  base::Fd copy(memfd_create("gcs-oci", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC));
  if (!copy && errno == EINVAL) copy = base::Fd(memfd_create("gcs-oci", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!copy) return base::ErrnoError("memfd_create", "gcs-oci");
  for (;;) {
    const ssize_t n = sendfile(copy.get(), self.get(), nullptr, 1 << 30);
    if (n == 0) break;
    if (n < 0 && errno != EINTR) return base::ErrnoError("copy", "/proc/self/exe");
  }
  if (fcntl(copy.get(), F_ADD_SEALS, kSeals) != 0) return base::ErrnoError("seal", "gcs-oci");
  syscall(SYS_execveat, copy.get(), "", argv, environ, AT_EMPTY_PATH);
  return base::ErrnoError("execveat", "gcs-oci");
}

}  // namespace gcs::oci
