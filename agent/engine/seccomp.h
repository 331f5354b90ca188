// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace gcs::engine {

// A compiled filter: `code` is an array of struct sock_filter, `flags` goes to seccomp(2).
struct SeccompFilter {
  std::string code;
  uint32_t flags = 0;
  // With SCMP_ACT_NOTIFY: the unix socket of the agent that decides, and what it is told beside the state.
  std::string listener_path, listener_metadata;
};

// Compiles `linux.seccomp` (config-linux.md, "Seccomp") by libseccomp. Names of system calls that libseccomp
// doesn't know are skipped, conditions on one argument index are alternatives, as runc has it.
base::Result<SeccompFilter> CompileSeccomp(const base::Json& seccomp);

// Compiled filters by the text of their source: compiling a container runtime's default profile takes
// milliseconds.
class SeccompCache {
 public:
  base::Result<std::shared_ptr<const SeccompFilter>> Get(const base::Json& seccomp);

 private:
  static constexpr size_t kMaxEntries = 32;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const SeccompFilter>> filters_;
};

// The rule that keeps containers from the host's control channel: socket(AF_VSOCK) answers EAFNOSUPPORT, and
// io_uring_setup ENOSYS, since io_uring can open sockets past the filter. vsock knows no network namespaces,
// so nothing else would.
SeccompFilter VsockGuard();

}  // namespace gcs::engine
