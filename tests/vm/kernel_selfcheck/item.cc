// SPDX-License-Identifier: Apache-2.0
#include "vm/kernel_selfcheck/item.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <thread>

namespace gcs::selfcheck {
namespace {

using Clock = std::chrono::steady_clock;

// An error crosses the pipe as its number and three fields that end with a NUL.
std::string Pack(const base::Error& error) {
  return std::to_string(error.err) + '\0' + error.step + '\0' + error.object + '\0' + error.message + '\0';
}

base::Error Unpack(const std::string& text) {
  std::string fields[4];
  std::istringstream in(text);
  for (std::string& field : fields) std::getline(in, field, '\0');
  return {fields[1], static_cast<int>(std::strtol(fields[0].c_str(), nullptr, 10)), fields[2], fields[3]};
}

}  // namespace

Result<> InChild(const std::function<Result<>()>& fn, int timeout_ms) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoError("pipe2");
  Fd reader(ends[0]);
  Fd writer(ends[1]);
  const pid_t pid = fork();
  if (pid < 0) return ErrnoError("fork");
  if (pid == 0) {
    const Result<> result = fn();
    if (!result) {
      const std::string text = Pack(result.error());
      // A parent that cannot read the text still sees the exit status.
      (void)!write(writer.get(), text.data(), text.size());
    }
    _exit(result ? 0 : 1);
  }
  writer.Reset();
  const Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return ErrnoError("pidfd_open");
  pollfd waiter{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  const int ready = poll(&waiter, 1, timeout_ms);
  if (ready != 1) kill(pid, SIGKILL);
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return ErrnoError("waitpid");
  if (ready != 1) return MakeError(ETIMEDOUT, "wait for the item's process");
  if (WIFSIGNALED(status)) {
    return MakeError(EINTR, "item's process", {}, "killed by " + std::string(strsignal(WTERMSIG(status))));
  }
  if (WEXITSTATUS(status) == 0) return {};
  // A grandchild may hold the other end of the pipe: what the child wrote is there already, do not wait for
  // more.
  if (fcntl(reader.get(), F_SETFL, O_NONBLOCK) != 0) return ErrnoError("fcntl");
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = read(reader.get(), buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  if (text.empty()) return MakeError(EPROTO, "item's process", {}, "exit status without an error");
  return std::unexpected(Unpack(text));
}

Result<> AsUser(const std::function<Result<>()>& fn) {
  return InChild([&fn]() -> Result<> {
    if (setgroups(0, nullptr) != 0) return ErrnoError("setgroups");
    if (setresgid(1000, 1000, 1000) != 0) return ErrnoError("setresgid");
    if (setresuid(1000, 1000, 1000) != 0) return ErrnoError("setresuid");
    // As after an exec by that user: its own files below /proc belong to it, and its kind may trace it.
    if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0) return ErrnoError("PR_SET_DUMPABLE");
    return fn();
  });
}

Result<std::string> ReadFile(const std::string& path) {
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return ErrnoError("open", path);
  std::string text;
  char buffer[4096];
  ssize_t n = 0;
  while ((n = read(file.get(), buffer, sizeof buffer)) > 0) text.append(buffer, static_cast<size_t>(n));
  if (n < 0) return ErrnoError("read", path);
  return text;
}

Result<> WriteFile(const std::string& path, std::string_view data) {
  const Fd file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (!file) return ErrnoError("open", path);
  if (write(file.get(), data.data(), data.size()) != static_cast<ssize_t>(data.size())) {
    return ErrnoError("write", path);
  }
  return {};
}

Result<> Eventually(const std::function<Result<>()>& probe, int timeout_ms) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    Result<> result = probe();
    if (result || Clock::now() >= deadline) return result;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Result<> FreshTmp() {
  if (mount("tmpfs", "/tmp", "tmpfs", 0, "mode=0755") != 0) return ErrnoError("mount tmpfs", "/tmp");
  return {};
}

Result<> MustFail(long value, int expected, std::string_view step, std::string_view object) {
  if (value >= 0)
    return MakeError(ENOTSUP, step, object, "succeeded, must fail with " + base::ErrnoName(expected));
  if (errno != expected) return ErrnoError(step, object, "must fail with " + base::ErrnoName(expected));
  return {};
}

bool HasWord(const std::string& text, std::string_view word) {
  std::istringstream in(text);
  for (std::string each; in >> each;) {
    if (each == word) return true;
  }
  return false;
}

}  // namespace gcs::selfcheck
