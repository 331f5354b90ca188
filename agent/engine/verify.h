// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cerrno>

// Two of the three primitives that everything below a container's root rests on; the third is base/resolve.h.
// Both allocate nothing.
namespace gcs::engine {

// What an open file must be; 0 is "any".
struct Inode {
  unsigned long filesystem = 0;        // magic number of statfs(2)
  unsigned long other_filesystem = 0;  // one that it must not be on
  mode_t type = 0;                     // S_IFMT
  dev_t device = 0;                    // of a device node
  int otherwise = EBADF;               // what to answer if it is something else
};

// 0 if `fd` (O_PATH will do) is what is expected, -`otherwise` if it is something else, -errno if that can't
// be told. After the open, so that a name which is exchanged meanwhile gains nothing.
int VerifyInode(int fd, const Inode& expected) noexcept;

// Opens a file of `proc`, a procfs that is attached nowhere, for writing: nothing can be mounted over a part
// of it, and whatever a container has at /proc does not count (CVE-2019-16884, CVE-2025-52881). `links`:
// through procfs' own symbolic links ("self"). A descriptor or -errno.
int OpenProcFile(int proc, const char* path, bool links) noexcept;

}  // namespace gcs::engine
