// SPDX-License-Identifier: Apache-2.0
#include "stdio/output.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/log.h"

namespace gcs::stdio {
namespace {

constexpr size_t kReadBytes = 64 << 10;        // one read: a whole pipe of the default size
constexpr size_t kSpliceBytes = 1 << 20;       // one splice: a whole enlarged pipe
constexpr size_t kTurnBytes = 1 << 20;         // one pump, so that a busy process doesn't starve the others
constexpr size_t kCopyBufferBytes = 64 << 10;  // between a pty and a socket
// A pty holds less than this between the slave's write and the master's read (8 KiB of tty buffer, 4 KiB of
// line discipline).
constexpr uint64_t kTerminalBytes = 64 << 10;
}  // namespace

Output::Output(Host* host, Stream stream, Mode mode, Overflow overflow, uint64_t capacity, int64_t linger_ns)
    : host_(host),
      stream_(stream),
      names_(stream == Stream::kStderr ? Names{Part::kErr, Part::kErrSocket, Part::kErrRing}
                                       : Names{Part::kOut, Part::kOutSocket, Part::kOutRing}),
      mode_(mode),
      overflow_(overflow),
      capacity_(capacity),
      linger_ns_(linger_ns) {}

base::Result<> Output::MakeRing() {
  GCS_ASSIGN(ring_, Ring::Create(host_->name()));
  return {};
}

base::Result<> Output::Make(base::Fd socket, bool terminal) {
  if (mode_ == Mode::kNull) return {};
  if (mode_ == Mode::kSocket) {
    GCS_TRY(MakeNonBlocking(socket.get(), host_->name()));
    socket_.emplace(host_, names_.socket, std::move(socket));
  }
  if (mode_ == Mode::kStream || terminal) GCS_TRY(MakeRing());
  if (terminal) {
    GCS_ASSIGN(stage_, MakeStage(host_->name()));
  }
  return {};
}

base::Result<> Output::Restore(std::map<Part, base::Fd>& parts, bool terminal) {
  if (mode_ == Mode::kNull) return {};
  if (base::Fd& ring = parts[names_.ring]; ring.valid()) {
    GCS_ASSIGN(ring_, Ring::Restore(std::move(ring), host_->name()));
  }
  base::FdPair stage{std::move(parts[Part::kOutStageRead]), std::move(parts[Part::kOutStageWrite])};
  if (terminal && stage.first.valid() && stage.second.valid()) stage_ = std::move(stage);
  if ((mode_ == Mode::kStream || terminal) && (ring_.fd() < 0 || terminal != stage_.has_value()))
    return base::MakeError(EINVAL, "restore stream", host_->name(), StreamName(stream_));
  if (base::Fd& socket = parts[names_.socket]; socket.valid()) {
    socket_.emplace(host_, names_.socket, std::move(socket));
  } else {
    lost_ = mode_ == Mode::kSocket;
  }
  source_over_ = ring_.over() || lost_;
  if (base::Fd& pipe = parts[names_.pipe]; pipe.valid()) {
    UsePipe(std::move(pipe));
  } else if (!terminal) {
    source_over_ = true;
  }
  return {};
}

void Output::AddParts(std::vector<std::pair<Part, int>>& parts) const {
  const auto add = [&](Part part, int fd) {
    if (fd >= 0) parts.emplace_back(part, fd);
  };
  if (pipe_) add(names_.pipe, pipe_->fd());
  if (socket_) add(names_.socket, socket_->fd());
  add(names_.ring, ring_.fd());
  if (stage_) {
    add(Part::kOutStageRead, stage_->first.get());
    add(Part::kOutStageWrite, stage_->second.get());
  }
}

void Output::UsePipe(base::Fd read_end) {
  pipe_.emplace(host_, names_.pipe, std::move(read_end));
  source_ = &*pipe_;
  splice_ = mode_ == Mode::kSocket;
}

void Output::UseTerminal(Endpoint* master) { source_ = master; }

base::Result<> Output::Watch() {
  if (pipe_) GCS_TRY(pipe_->Watch(EPOLLIN));
  if (socket_) GCS_TRY(socket_->Watch(EPOLLIN | EPOLLOUT | EPOLLRDHUP));
  return {};
}

bool Output::Pump() {
  paused_ = false;
  if (source_over_) {
    // The socket may still have to take what the ring holds for it, and then to be ended.
    const bool changed = mode_ == Mode::kSocket && !lost_ && FlushToSocket();
    if (linger_) linger_->Pump();
    PumpDiscard();
    return changed;
  }
  if (source_ == nullptr) return false;
  switch (mode_) {
    case Mode::kStream:
      return PumpRing();
    case Mode::kSocket:
      return splice_ ? PumpSplice() : PumpCopy();
    case Mode::kNull:
      PumpDiscard();
      return false;
  }
  return false;
}

size_t Output::Limit(size_t max) const { return left_ ? std::min<uint64_t>(max, *left_) : max; }

void Output::Took(size_t bytes) {
  taken_ += bytes;
  if (left_) *left_ -= bytes;
}

// As splice(2). At no time are bytes anywhere but in the source, in the stage or in the ring.
ssize_t Output::TakeFromSource(size_t max) {
  if (!stage_) return ring_.TakeFrom(source_->fd(), max);
  const ssize_t staged = ring_.TakeFrom(stage_->first.get(), max);
  if (staged >= 0 || errno != EAGAIN) return staged;
  const ssize_t n =
      splice(source_->fd(), nullptr, stage_->second.get(), nullptr, max, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  return n > 0 ? ring_.TakeFrom(stage_->first.get(), static_cast<size_t>(n)) : n;
}

// Takes once from the source into the ring; `max` > 0.
Output::Got Output::Fill(size_t max) {
  ssize_t n = 0;
  do {
    n = TakeFromSource(std::min(Limit(max), kReadBytes));
  } while (n < 0 && errno == EINTR);
  const int err = errno;
  if (n < 0 && (err == ENOMEM || err == ENOSPC)) return Got::kNoMemory;
  if (n > 0) {
    Took(static_cast<size_t>(n));
    return Got::kBytes;
  }
  if (n < 0 && err == EAGAIN) {
    source_->can_read = false;
    return Got::kNothing;
  }
  // 0: every writer has closed the pipe. EIO: the same on a pty. Anything else can't be waited for either.
  if (n < 0 && err != EIO) {
    base::LogError("output ends early",
                   base::Error{"read", err, host_->name(), std::string(StreamName(stream_))});
  }
  return Got::kEnd;
}

bool Output::PumpRing() {
  bool changed = false;
  for (size_t turn = 0; !source_over_;) {
    if (left_ && *left_ == 0) {
      End();
      return true;
    }
    if (!source_->can_read && !left_) break;
    size_t room = kReadBytes;
    if (overflow_ == Overflow::kBlock) {
      if (ring_.size() >= capacity_) FreeAcked();
      room = capacity_ - std::min<uint64_t>(ring_.size(), capacity_);
      if (room == 0) {
        paused_ = true;
        break;
      }
    }
    if (turn >= kTurnBytes) {
      host_->PumpSoon();
      break;
    }
    const uint64_t before = ring_.end();
    const Got got = Fill(room);
    if (got == Got::kNoMemory) {
      host_->PumpAfterPause();
      break;
    }
    if (got == Got::kEnd || (got == Got::kNothing && left_)) {
      End();
      return true;
    }
    if (got == Got::kNothing) break;
    turn += ring_.end() - before;
    changed = true;
    if (ring_.size() > capacity_) {
      FreeAcked();
      if (ring_.size() > capacity_) {
        const uint64_t excess = ring_.size() - capacity_;
        dropped_ += excess;
        ring_.DropTo(ring_.begin() + excess);
      }
    }
  }
  return changed;
}

bool Output::PumpSplice() {
  size_t turn = 0;
  int unclear = 0;
  while (!source_over_) {
    if (left_ && *left_ == 0) {
      End();
      return true;
    }
    if (!source_->can_read && !left_) return false;
    if (!socket_->can_write) return false;
    if (turn >= kTurnBytes) {
      host_->PumpSoon();
      return false;
    }
    const ssize_t n = splice(source_->fd(), nullptr, socket_->fd(), nullptr, Limit(kSpliceBytes),
                             SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (n > 0) {
      Took(static_cast<size_t>(n));
      turn += static_cast<size_t>(n);
      if (!large_ && static_cast<size_t>(n) >= kReadBytes) {
        EnlargePipe(source_->fd());
        large_ = true;
      }
      continue;
    }
    if (n == 0) {
      End();
      return true;
    }
    switch (errno) {
      case EINTR:
        continue;
      case EAGAIN: {
        const bool source_waits = source_->Recheck(true, false);
        const bool socket_waits = socket_->Recheck(false, true);
        if (source_waits && left_) {
          End();
          return true;
        }
        if (source_waits || socket_waits) continue;
        if (++unclear >= 3) {
          host_->PumpAfterPause();
          return false;
        }
        continue;
      }
      case EINVAL:
        // This kind of socket can't; nothing was moved.
        if (auto made = MakeRing(); !made) {
          LoseSocket(made.error().err, made.error().step);
          return true;
        }
        splice_ = false;
        return PumpCopy();
      default:
        LoseSocket(errno, "splice");
        return true;
    }
  }
  return false;
}

bool Output::PumpCopy() {
  for (size_t turn = 0;;) {
    const bool flushed = FlushToSocket();
    if (lost_) return true;
    if (source_over_) return flushed;
    if (left_ && *left_ == 0) {
      End();
      return true;
    }
    if (!source_->can_read && !left_) return false;
    if (ring_.size() >= kCopyBufferBytes) return false;  // the socket's next room goes on
    if (turn >= kTurnBytes) {
      host_->PumpSoon();
      return false;
    }
    const uint64_t before = ring_.end();
    const Got got = Fill(kCopyBufferBytes - ring_.size());
    if (got == Got::kNoMemory) {
      host_->PumpAfterPause();
      return false;
    }
    if (got == Got::kEnd || (got == Got::kNothing && left_)) {
      End();
      return true;
    }
    if (got == Got::kNothing) return false;
    turn += ring_.end() - before;
  }
}

// True if the last byte of an ended stream left.
bool Output::FlushToSocket() {
  if (!socket_ || !socket_->open() || (linger_ && linger_->begun())) return false;
  while (!ring_.empty() && socket_->can_write) {
    const ssize_t n = ring_.GiveTo(socket_->fd(), kCopyBufferBytes);
    if (n > 0) continue;
    if (n == 0 || errno == EAGAIN) {
      socket_->can_write = false;
    } else if (errno == ENOMEM) {
      host_->PumpAfterPause();
      return false;
    } else if (errno != EINTR) {
      LoseSocket(errno, "sendfile");
      return true;
    }
  }
  if (source_over_ && ring_.empty()) {
    FinishSocket();
    return true;
  }
  return false;
}

void Output::PumpDiscard() {
  if (source_ == nullptr || !source_->open()) return;
  std::array<char, 16 << 10> nowhere;
  for (size_t turn = 0; source_->can_read;) {
    if (turn >= kTurnBytes) {
      host_->PumpSoon();
      return;
    }
    const ssize_t n = read(source_->fd(), nowhere.data(), nowhere.size());
    if (n > 0) {
      turn += static_cast<size_t>(n);
      if (mode_ == Mode::kSocket && lost_ && !left_) dropped_ += static_cast<uint64_t>(n);
    } else if (n < 0 && errno == EAGAIN) {
      source_->can_read = false;
    } else if (n == 0 || errno != EINTR) {
      source_over_ = true;
      source_->can_read = false;
      if (pipe_) pipe_->Close();
      return;
    }
  }
}

void Output::Over() {
  source_over_ = true;
  ring_.MarkOver();
}

void Output::End() {
  Over();
  if (mode_ == Mode::kSocket && !lost_) FlushToSocket();
  PumpDiscard();
}

void Output::FinishSocket() {
  if (!socket_ || !socket_->open() || linger_) return;
  linger_.emplace(host_, &*socket_, linger_ns_);
  linger_->Begin(SHUT_WR);
}

void Output::LoseSocket(int err, std::string_view step) {
  base::LogError("output's peer is gone, the rest is thrown away",
                 base::Error{std::string(step), err, host_->name(), std::string(StreamName(stream_))});
  lost_ = true;
  Over();
  dropped_ += ring_.size();
  ring_.Clear();
  socket_->Close();
  PumpDiscard();
}

void Output::ProcessExited() {
  if (source_ == nullptr) {
    Over();  // the terminal was never attached
    return;
  }
  if (source_over_ || left_) return;
  int bytes = 0;
  if (!pipe_) {
    left_ = kTerminalBytes;
  } else if (ioctl(source_->fd(), FIONREAD, &bytes) == 0) {
    left_ = static_cast<uint64_t>(bytes);
  } else {
    left_ = UINT64_MAX;  // read to the end of file instead
  }
  source_->can_read = source_->open();
}

bool Output::Settled() const {
  if (mode_ == Mode::kNull) return true;
  if (mode_ == Mode::kStream) return source_over_ || paused_;
  return source_over_ && (lost_ || ring_.empty());
}

void Output::Close() {
  source_over_ = true;
  source_ = nullptr;
  if (linger_) linger_->Close();
  if (socket_) socket_->Close();
  if (pipe_) pipe_->Close();
  // Sessions that outlive the process's streams may still read what is in the ring.
}

base::Result<> Output::AddReader(uint64_t session, uint64_t offset, bool manual_ack, std::string_view name) {
  if (mode_ != Mode::kStream) {
    return base::MakeError(EINVAL, "attach", name,
                           std::string(StreamName(stream_)) + " is not a kept stream");
  }
  if (HasReader(session)) {
    return base::MakeError(EINVAL, "attach", name, std::string(StreamName(stream_)) + " asked for twice");
  }
  if (offset > ring_.end()) {
    return base::MakeError(
        ERANGE, "attach", name,
        std::string(StreamName(stream_)) + " has only " + std::to_string(ring_.end()) + " bytes");
  }
  readers_.push_back(Reader{session, manual_ack, offset, offset});
  return {};
}

void Output::RemoveReader(uint64_t session) {
  readers_.remove_if([session](const Reader& reader) { return reader.session == session; });
}

Output::Reader* Output::Find(uint64_t session) {
  auto it = std::ranges::find(readers_, session, &Reader::session);
  return it == readers_.end() ? nullptr : &*it;
}

bool Output::HasReader(uint64_t session) const {
  return std::ranges::find(readers_, session, &Reader::session) != readers_.end();
}

base::Result<OutputChunk> Output::Read(uint64_t session, size_t max, std::string_view name) {
  Reader* reader = Find(session);
  if (reader == nullptr || max == 0) {
    return base::MakeError(EINVAL, "read", name, std::string(StreamName(stream_)) + " was not asked for");
  }
  OutputChunk chunk;
  chunk.offset = std::max(reader->position, ring_.begin());
  chunk.gap = chunk.offset - reader->position;
  ring_.Copy(chunk.offset, max, chunk.data);
  reader->position = chunk.offset + chunk.data.size();
  chunk.end = source_over_ && reader->position == ring_.end();
  if (!reader->manual_ack) {
    reader->acked = reader->position;
    FreeAcked();
  }
  return chunk;
}

base::Result<> Output::Ack(uint64_t session, uint64_t offset, std::string_view name) {
  Reader* reader = Find(session);
  if (reader == nullptr) {
    return base::MakeError(EINVAL, "acknowledge", name,
                           std::string(StreamName(stream_)) + " was not asked for");
  }
  if (offset > reader->position) {
    return base::MakeError(
        ERANGE, "acknowledge", name,
        std::string(StreamName(stream_)) + " was sent up to " + std::to_string(reader->position));
  }
  if (offset <= reader->acked) return {};
  reader->acked = offset;
  FreeAcked();
  return {};
}

// Not called when a reader leaves: what it hadn't acknowledged stays for its return until another reader's
// acknowledgement or the need for room frees it.
void Output::FreeAcked() {
  if (readers_.empty()) return;
  uint64_t lowest = UINT64_MAX;
  for (const Reader& reader : readers_) lowest = std::min(lowest, reader.acked);
  ring_.DropTo(lowest);
}

OutputState Output::State() const {
  OutputState state;
  state.begin = mode_ == Mode::kStream ? ring_.begin() : taken_;
  state.end = mode_ == Mode::kStream ? ring_.end() : taken_;
  state.dropped = dropped_;
  state.ended = source_over_;
  state.lost = lost_;
  return state;
}

}  // namespace gcs::stdio
