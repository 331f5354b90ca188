// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "init/backoff.h"
#include "init/klog.h"

namespace gcs::init {

// A program that init keeps running.
class Service {
 public:
  enum class Kind {
    kAgent,    // stdin /dev/null, output to the kernel log line by line, the control socket
               // (base/init_control.h)
    kConsole,  // an interactive session on /dev/console
  };

  // `cgroup` is an open cgroup directory to start in, -1 for init's own; it stays the caller's.
  Service(Kind kind, std::string name, std::vector<std::string> argv, int cgroup);

  base::Result<> Open();  // once, before the first Start
  // What the program gets instead of init's own RLIMIT_NOFILE.
  void set_file_limit(const rlimit& limit) { file_limit_ = limit; }

  // Starts the program in a session of its own. A program that cannot be executed is no error here: it ends
  // with 127 and is tried again like any other.
  base::Result<> Start();

  // Takes note that the process has ended (`status` as of waitpid(2)), says so in the log and, if it is to be
  // started again, sets the time for that.
  void OnExit(int status, bool restart);
  // The same for a start that failed.
  void OnFailedStart(const base::Error& error);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] pid_t pid() const { return pid_; }  // 0 when it does not run
  [[nodiscard]] int64_t next_start_ns() const {
    return next_start_ns_;
  }  // CLOCK_MONOTONIC; while it does not run
  [[nodiscard]] uint64_t starts() const { return starts_; }
  [[nodiscard]] int last_status() const {
    return last_status_;
  }  // of the run before, 0 before the second start
  [[nodiscard]] int control_fd() const { return control_.get(); }  // -1: none
  base::Fd TakeControlFd() { return std::move(control_); }
  LineForwarder& output() { return output_; }

  // Counts malformed control packets of this run; true while one is worth a log line.
  bool TakeComplaint() { return complaints_++ < 8; }

 private:
  [[noreturn]] void Child(int control);

  const Kind kind_;
  const std::string name_;
  const std::vector<std::string> argv_;
  const int cgroup_;
  LineForwarder output_;
  std::optional<rlimit> file_limit_;
  base::Fd control_;
  Backoff backoff_;
  pid_t pid_ = 0;
  uint64_t starts_ = 0;
  int last_status_ = 0;
  unsigned complaints_ = 0;
  int64_t started_ns_ = 0;
  int64_t next_start_ns_ = 0;
};

// "exit code 3", "killed by signal 9 (Killed)".
std::string DescribeStatus(int status);

}  // namespace gcs::init
