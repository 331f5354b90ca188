// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::engine {

// The process that containers are cloned from: forked from the agent before its first thread, tiny, in a
// mount namespace that holds nothing but a read-only tmpfs with a null device and an empty directory. It
// clones with CLONE_PARENT, so that containers are the agent's own children. Cost and safety of a clone do
// not depend on the size of the agent.
class Zygote {
 public:
  // Must be called while the process has one thread. Needs CAP_SYS_ADMIN.
  static base::Result<std::unique_ptr<Zygote>> Start();
  ~Zygote();  // ends the process and reaps it
  Zygote(const Zygote&) = delete;
  Zygote& operator=(const Zygote&) = delete;

  // Hands over a plan (see plan.h) and its descriptors, all valid. Any thread. The outcome comes on the
  // plan's sync socket. EPIPE if the zygote is gone.
  base::Result<> Spawn(std::string_view plan, std::span<const int> fds);

  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  Zygote(base::Fd socket, pid_t pid) : socket_(std::move(socket)), pid_(pid) {}
  base::Fd socket_;
  pid_t pid_;
};

// The zygote's side: serves requests until the socket ends. Separate for tests and fuzzing.
[[noreturn]] void RunZygote(int socket) noexcept;

}  // namespace gcs::engine
