// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::init {

// Priorities of the kernel log (printk). With `quiet` on the command line only errors reach the console.
enum class Priority { kError = 3, kWarning = 4, kNotice = 5, kInfo = 6, kDebug = 7 };

// Lines go to the kernel log, which never blocks and is there before anything is mounted by name; until
// OpenKernelLog has succeeded, and where there is none, they go to descriptor 2. The descriptor stays open
// for the life of the process.
base::Result<> OpenKernelLog(const char* path);
int KernelLogFd();  // -1 when lines go to descriptor 2

// "<6>init: TEXT". One line, one write.
void Log(Priority priority, std::string_view text);
void LogError(std::string_view what, const base::Error& error);

// The priority that a program's line tells of itself by its first word ("error", "warning", "info", "debug":
// what base::Log prints); kInfo when it does not.
Priority PriorityOf(std::string_view line);

// Takes what a child writes to its stdout and stderr and puts it line by line into the kernel log. A program
// can thus neither block on a console that nobody reads nor lose a line for being longer than a kernel log
// record.
class LineForwarder {
 public:
  explicit LineForwarder(std::string name) : name_(std::move(name)) {}
  base::Result<> Open();  // makes the pipe; the write end stays open here, so that readers never see its end
  [[nodiscard]] int read_fd() const { return pipe_.first.get(); }
  [[nodiscard]] int write_fd() const { return pipe_.second.get(); }
  void Pump();   // reads what is there, without waiting; bounded, so that a chatty child cannot hold PID 1
  void Flush();  // writes an unfinished last line

 private:
  void Emit(std::string_view line);

  const std::string name_;
  base::FdPair pipe_;
  std::string partial_;
};

}  // namespace gcs::init
