// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <termios.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "host/client/attach.h"
#include "host/client/client.h"

namespace gcs::gcsctl {

// The caller's terminal in raw mode; given back by the destructor, which every way out of the program runs:
// signals that would end it are blocked (BlockSignals) and handled as events.
class RawTerminal {
 public:
  static base::Result<std::unique_ptr<RawTerminal>> Enter(int fd);
  ~RawTerminal();
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  RawTerminal(int fd, const termios& saved) : fd_(fd), saved_(saved) {}
  const int fd_;
  const termios saved_;
};

struct WindowSize {
  uint32_t width = 0, height = 0;  // 0: no terminal
};
WindowSize TerminalSize();

// Before the first thread of a command that attaches: signals that Console forwards are delivered to it only.
void BlockSignals();

struct ConsoleOptions {
  std::string container_id;
  std::string process_id;
  bool in = false;
  bool err = true;  // a process with a terminal has no stderr of its own
  bool terminal = false;
};

// Connects the caller's standard streams, signals and window size with a process, until it ends.
class Console {
 public:
  // To be called between Create and Start, so that nothing is missed (though the agent keeps it anyway).
  static host::CallResult<std::unique_ptr<Console>> Attach(host::Client& client, ConsoleOptions options);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // How the process ended, once all its output is written.
  host::CallResult<v1::ExitStatus> Run();

 private:
  struct State;
  explicit Console(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace gcs::gcsctl
