// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::bench {

// A private mount namespace in which /sys/fs/cgroup is one cgroup2 mount: crun refuses a hybrid tree whose
// cgroup2 part owns a controller.
base::Result<> EnterCgroup2View();

// The same with one mount for each v1 controller but cpu, which lets no SCHED_FIFO task in. Their mount
// points.
base::Result<std::vector<std::string>> EnterCgroup1View();

// Makes prlimit64(RLIMIT_MEMLOCK) of this process and all that it starts succeed without effect, where
// CAP_SYS_RESOURCE is missing: crun 1.8.1 gives up otherwise. All candidates run under it, so that the filter
// costs all of them the same. Whether it was needed.
base::Result<bool> PassMemlockLimit();

// Runs a program to its end, with /dev/null as stdin and stdout. Its exit code, 128 + N for a signal.
base::Result<int> RunProgram(const std::vector<std::string>& args);

// A new directory below /tmp, removed with all it holds.
class TempDir {
 public:
  static base::Result<TempDir> Make();
  TempDir() = default;
  ~TempDir();
  TempDir(TempDir&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TempDir& operator=(TempDir&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Tells when the kernel has taken apart every network namespace that nobody uses any more, which it does in
// the background and in order. A process in a user namespace of its own, in which one network namespace may
// exist at a time: when it can make its second one, the first and all before it are gone.
class NamespaceBarrier {
 public:
  // While the process has one thread.
  static base::Result<std::unique_ptr<NamespaceBarrier>> Start();
  ~NamespaceBarrier();
  base::Result<> Wait();

 private:
  NamespaceBarrier(base::Fd socket, pid_t pid) : socket_(std::move(socket)), pid_(pid) {}
  base::Fd socket_;
  pid_t pid_;
};

}  // namespace gcs::bench
