// SPDX-License-Identifier: Apache-2.0
#include "init/klog.h"

#include <fcntl.h>
#include <unistd.h>

namespace gcs::init {

namespace {

int kernel_log = -1;

// A write to /dev/kmsg is one record and fails past 1024 bytes (PRINTKRB_RECORD_MAX) with everything in it.
constexpr size_t kRecordText = 900;
constexpr int kReadsPerPump = 16;
constexpr int kFirstHighFd = 10;

void Write(Priority priority, std::string_view name, std::string_view text) {
  std::string line;
  if (kernel_log >= 0) {
    line += '<';
    line += static_cast<char>('0' + static_cast<int>(priority));
    line += '>';
  }
  line += name;
  line += ": ";
  line += text.substr(0, kRecordText);
  line += '\n';
  // There is nowhere left to tell of a log that cannot be written.
  [[maybe_unused]] const ssize_t n = write(kernel_log >= 0 ? kernel_log : 2, line.data(), line.size());
}

}  // namespace

base::Result<> OpenKernelLog(const char* path) {
  const base::Fd fd(open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY));
  if (!fd) return base::ErrnoError("open", path);
  // Out of the way of the numbers that a child gives to its program: its last words before exec are written
  // here too.
  const int high = fcntl(fd.get(), F_DUPFD_CLOEXEC, kFirstHighFd);
  if (high < 0) return base::ErrnoError("fcntl", path);
  kernel_log = high;
  return {};
}

int KernelLogFd() { return kernel_log; }

void Log(Priority priority, std::string_view text) { Write(priority, "init", text); }

void LogError(std::string_view what, const base::Error& error) {
  std::string text(what);
  text += ": ";
  text += error.ToString();
  Log(Priority::kError, text);
}

Priority PriorityOf(std::string_view line) {
  const std::string_view word = line.substr(0, line.find(' '));
  if (word == "error") return Priority::kError;
  if (word == "warning") return Priority::kWarning;
  if (word == "debug") return Priority::kDebug;
  return Priority::kInfo;
}

base::Result<> LineForwarder::Open() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return base::ErrnoError("pipe", name_);
  pipe_.first.Reset(fds[0]);
  pipe_.second.Reset(fds[1]);
  // Only our end: the flag belongs to the open file, and a program does not expect EAGAIN from its stderr.
  if (fcntl(fds[0], F_SETFL, O_NONBLOCK) != 0) return base::ErrnoError("fcntl", name_);
  return {};
}

void LineForwarder::Pump() {
  if (!pipe_.first) return;
  for (int i = 0; i < kReadsPerPump; ++i) {
    char buffer[4096];
    const ssize_t n = read(pipe_.first.get(), buffer, sizeof buffer);
    if (n <= 0) return;
    partial_.append(buffer, static_cast<size_t>(n));
    size_t begin = 0;
    for (size_t end; (end = partial_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      Emit(std::string_view(partial_).substr(begin, end - begin));
    }
    partial_.erase(0, begin);
    if (partial_.size() > sizeof buffer) Flush();
  }
}

void LineForwarder::Flush() {
  if (!partial_.empty()) Emit(partial_);
  partial_.clear();
}

void LineForwarder::Emit(std::string_view line) {
  const Priority priority = PriorityOf(line);
  while (line.size() > kRecordText) {
    Write(priority, name_, line.substr(0, kRecordText));
    line.remove_prefix(kRecordText);
  }
  Write(priority, name_, line);
}

}  // namespace gcs::init
