// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "stdio/endpoint.h"
#include "stdio/linger.h"
#include "stdio/process_io.h"
#include "stdio/ring.h"

namespace gcs::stdio {

// The input stream: from clients (a bounded queue with offsets) or a socket to a pipe's write end or a pty's
// master. The ProcessIo's mutex is held for every call; Pump and what ends on a descriptor run on the loop's
// thread.
class Input {
 public:
  Input(Host* host, Mode mode, int64_t linger_ns);

  // Before the first Pump: what it needs beside its sink. `socket`: kSocket.
  base::Result<> Make(base::Fd socket, bool terminal);
  // The same with what there was in another life, its sink included unless that is a pty.
  base::Result<> Restore(std::map<Part, base::Fd>& parts, bool terminal);
  // The sink. A pty stays the caller's.
  void UsePipe(base::Fd write_end);
  void UseTerminal(Endpoint* master);
  base::Result<> Watch();
  void AddParts(std::vector<std::pair<Part, int>>& parts) const;

  // Does what can be done without blocking, for a bounded turn. True if `accepted` or `closed` changed.
  bool Pump();
  // The process has ended, or nobody will read any more: what is queued is thrown away.
  void ProcessExited();
  void Close();

  // See Session::WriteStdin (mode kStream).
  base::Result<uint64_t> Write(uint64_t offset, std::string_view data, bool close, std::string_view name);
  [[nodiscard]] StdinState State() const;
  [[nodiscard]] Mode mode() const { return mode_; }

 private:
  bool PumpQueue();
  bool PumpSplice();
  bool PumpCopy();
  ssize_t TakeFromSocket(size_t max);
  base::Result<> MakeQueue(bool staged);
  void Finish();
  void ReaderGone();
  void SocketEnded(ssize_t result, int err, std::string_view step);

  Host* const host_;
  const Mode mode_;
  const int64_t linger_ns_;

  std::optional<Endpoint> pipe_;
  Endpoint* sink_ = nullptr;  // pipe_ or the pty's master
  std::optional<Endpoint> socket_;
  std::optional<Linger> linger_;

  std::optional<base::FdPair> stage_;  // between a socket and the queue
  Ring queue_;                         // what clients or the socket gave and the sink hasn't taken
  uint64_t accepted_ = 0;              // given to the sink; the queue's begin until `closed_`
  uint64_t discarded_to_ = 0;          // received offset after `closed_`
  bool close_asked_ = false;           // half-close after the queue's last byte
  bool finished_ = false;              // half-closed
  bool closed_ = false;                // nobody reads any more
  bool splice_ = false;
  bool large_ = false;
};

}  // namespace gcs::stdio
