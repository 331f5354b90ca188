// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace gcs::test {

// What a traced process tells its tracer, with a breakpoint: it stands still until it gets an answer.
enum class Mark : int {
  kReady = 1,  // nothing has happened yet that counts
  kBegin,      // a round begins; the answer 0 ends the program
  kEnter,      // from here on its own system calls are the code's under test
  kLeave,      // and from here on they are the test's again
  kEnd,        // the round has ended and left what it has left
};

inline long Tell(Mark mark) {
  long code = static_cast<long>(mark);
  asm volatile("int3" : "+a"(code) : : "memory");
  return code;
}

// A system call that was made to fail.
struct Fault {
  std::string role;  // who called: daemon, hook, zygote, child, grandchild
  int number = 0;
  std::array<uint64_t, 6> args{};
  std::string path;                  // that it was given
  int err = 0;                       // what it got
  int phase = 0;                     // what *phase of Arm was
  int occurrence = 0;                // of this place in this round, from 1
  std::vector<std::string> callers;  // functions, innermost first; addresses in the program where nameless

  // "EMFILE from openat(/x) in child, time 2, called in OpenInRoot BuildRootfs"
  [[nodiscard]] std::string ToString() const;
};

// Places that have failed, with the errnos that they got.
using FaultsSeen = std::set<std::string>;

// Traces a process and all that it makes, until they execute a program, and lets one system call fail: each
// call site once per errno that it can have. A call site is known by its return addresses; the daemon's,
// where a call's place among several counts (undoing two directories is not undoing one), also by its first
// occurrences. Must be the only thing in its process that waits for children of any pid.
class FaultInjector {
 public:
  // Forks `daemon`, whose first child is the zygote. What has failed is added to `seen`.
  FaultInjector(const std::function<void()>& daemon, FaultsSeen& seen);
  ~FaultInjector();  // kills all
  FaultInjector(const FaultInjector&) = delete;
  FaultInjector& operator=(const FaultInjector&) = delete;

  // Waits for the next mark. Nothing: the daemon has ended, or the deadline (ns) is over.
  std::optional<Mark> Await(int64_t deadline_ns);
  void Answer(long answer);
  // The next call that has not failed yet does, from here to Disarm.
  void Arm(const int* phase);
  // Ends it; what was injected, if anything was.
  std::optional<Fault> Disarm();
  // Waits until nobody but daemon and zygote is there and the zygote waits for requests. False: too late.
  bool Settle(int64_t deadline_ns);

  [[nodiscard]] pid_t daemon() const { return daemon_; }
  [[nodiscard]] pid_t zygote() const { return zygote_; }
  [[nodiscard]] bool daemon_alive() const { return tracees_.contains(daemon_); }
  [[nodiscard]] bool zygote_alive() const { return tracees_.contains(zygote_); }
  [[nodiscard]] std::string HowDaemonEnded() const;
  // Those that are traced beside daemon and zygote, for messages.
  [[nodiscard]] std::string Others() const;

 private:
  struct Tracee {
    std::string role;
    int fail_with = 0;  // at the exit of the system call that it is in
  };

  void Handle(pid_t pid, int status);
  void OnSyscall(pid_t pid, Tracee& tracee);
  void OnClone(pid_t parent);
  void Resume(pid_t pid, int signal);
  bool Pump(bool block);  // false: nothing to wait for
  // Return addresses in the program, innermost first.
  [[nodiscard]] std::vector<uint64_t> Callers(pid_t pid, uint64_t stack) const;

  FaultsSeen& seen_;
  pid_t daemon_ = -1;
  pid_t zygote_ = -1;
  int daemon_status_ = 0;
  std::map<pid_t, Tracee> tracees_;
  std::set<pid_t> early_;  // stopped before their parents' events
  std::optional<Mark> mark_;
  bool armed_ = false;
  bool inside_ = false;  // between kEnter and kLeave
  const int* phase_ = nullptr;
  std::optional<Fault> fault_;
  std::map<std::string, int> occurrences_;
  uint64_t text_begin_ = 0, text_end_ = 0;
};

// Name of a system call that the table of errnos has.
std::string_view SyscallName(int number);

}  // namespace gcs::test
