// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "stdio/endpoint.h"
#include "stdio/linger.h"
#include "stdio/process_io.h"
#include "stdio/ring.h"

namespace gcs::stdio {

// One output stream: from a source (a pipe's read end, a pty's master) to a ring with readers, to a socket,
// or to nowhere. The ProcessIo's mutex is held for every call; Pump and what ends on a descriptor run on the
// loop's thread.
class Output {
 public:
  struct Reader {
    uint64_t session;
    bool manual_ack;
    uint64_t position;  // next byte to be read
    uint64_t acked;     // bytes below are of no more interest to this reader
  };

  Output(Host* host, Stream stream, Mode mode, Overflow overflow, uint64_t capacity, int64_t linger_ns);

  // Before the first Pump: what it needs beside its source. `socket`: kSocket.
  base::Result<> Make(base::Fd socket, bool terminal);
  // The same with what there was in another life, its source included unless that is a pty.
  base::Result<> Restore(std::map<Part, base::Fd>& parts, bool terminal);
  // The source. A pty stays the caller's.
  void UsePipe(base::Fd read_end);
  void UseTerminal(Endpoint* master);
  base::Result<> Watch();
  void AddParts(std::vector<std::pair<Part, int>>& parts) const;

  // Does what can be done without blocking, for a bounded turn. True if readers or waiters have something to
  // look at.
  bool Pump();
  // The process has ended: what is in the source now is the last.
  void ProcessExited();
  // Every byte is in the ring, in the pipe behind a full ring, or with the socket.
  [[nodiscard]] bool Settled() const;
  // Closes everything; readers see the end after what is in the ring. With the pty: before its owner closes
  // it.
  void Close();

  // Readers (mode kStream).
  base::Result<> AddReader(uint64_t session, uint64_t offset, bool manual_ack, std::string_view name);
  void RemoveReader(uint64_t session);
  [[nodiscard]] bool HasReader(uint64_t session) const;
  base::Result<OutputChunk> Read(uint64_t session, size_t max, std::string_view name);
  base::Result<> Ack(uint64_t session, uint64_t offset, std::string_view name);
  // The pump waits for room that a reader's act may have made.
  [[nodiscard]] bool WantsPump() const { return paused_; }

  [[nodiscard]] Mode mode() const { return mode_; }
  [[nodiscard]] OutputState State() const;

 private:
  enum class Got : uint8_t { kBytes, kNothing, kEnd, kNoMemory };
  // Which parts are this stream's.
  struct Names {
    Part pipe, socket, ring;
  };

  bool PumpRing();
  bool PumpSplice();
  bool PumpCopy();
  void PumpDiscard();
  Got Fill(size_t max);
  ssize_t TakeFromSource(size_t max);
  base::Result<> MakeRing();
  void Over();
  bool FlushToSocket();
  void Took(size_t bytes);
  void End();
  void FinishSocket();
  void LoseSocket(int err, std::string_view step);
  void FreeAcked();
  [[nodiscard]] size_t Limit(size_t max) const;
  Reader* Find(uint64_t session);

  Host* const host_;
  const Stream stream_;
  const Names names_;
  const Mode mode_;
  const Overflow overflow_;
  const uint64_t capacity_;

  std::optional<Endpoint> pipe_;
  Endpoint* source_ = nullptr;  // pipe_ or the pty's master
  std::optional<Endpoint> socket_;
  std::optional<Linger> linger_;
  const int64_t linger_ns_;

  Ring ring_;  // kStream: what readers may still want; kSocket without splice: what the socket hasn't taken
  std::optional<base::FdPair> stage_;  // between a pty and the ring
  std::list<Reader> readers_;
  uint64_t taken_ = 0;  // bytes read from the source before the end
  uint64_t dropped_ = 0;
  std::optional<uint64_t> left_;  // after the exit: how many bytes at most are still the process's own
  bool paused_ = false;           // the ring is full
  bool splice_ = false;           // source and socket allow splice(2)
  bool large_ = false;            // the pipe was enlarged
  bool source_over_ = false;      // the stream has ended; what the source still gives is thrown away
  bool lost_ = false;
};

}  // namespace gcs::stdio
