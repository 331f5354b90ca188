// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
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
  // Turns the new process into another program, which is to call RunZygoteProgram: `socket` stays open.
  // Returns -errno if that fails.
  using Become = int (*)(int socket) noexcept;
  // Must be called while the process has one thread. Needs CAP_SYS_ADMIN. The zygote gets ready meanwhile.
  static base::Result<std::unique_ptr<Zygote>> Start(Become become = nullptr);
  // Waits until it is ready; the error if it could not be.
  const base::Result<>& AwaitReady();
  // Lets it end; there are no more containers to be cloned.
  void Stop() { socket_.Reset(); }
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
  std::once_flag asked_;
  base::Result<> ready_;
};

// What the program that a zygote has become does first and last.
[[noreturn]] void RunZygoteProgram(int socket) noexcept;

}  // namespace gcs::engine
