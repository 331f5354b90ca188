// SPDX-License-Identifier: Apache-2.0
#include "stdio/input.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"

namespace gcs::stdio {
namespace {

constexpr size_t kWriteBytes = 64 << 10;
constexpr size_t kSpliceBytes = 1 << 20;
constexpr size_t kTurnBytes = 1 << 20;
constexpr size_t kCopyBufferBytes = 64 << 10;

}  // namespace

Input::Input(Host* host, Mode mode, int64_t linger_ns) : host_(host), mode_(mode), linger_ns_(linger_ns) {}

base::Result<> Input::MakeQueue(bool staged) {
  GCS_ASSIGN(queue_, Ring::Create(host_->name()));
  if (staged) {
    GCS_ASSIGN(stage_, MakeStage(host_->name()));
  }
  return {};
}

base::Result<> Input::Make(base::Fd socket, bool terminal) {
  if (mode_ == Mode::kSocket) {
    GCS_TRY(MakeNonBlocking(socket.get(), host_->name()));
    socket_.emplace(host_, Part::kInSocket, std::move(socket));
  }
  if (mode_ == Mode::kStream || (mode_ == Mode::kSocket && terminal))
    GCS_TRY(MakeQueue(mode_ == Mode::kSocket));
  return {};
}

base::Result<> Input::Restore(std::map<Part, base::Fd>& parts, bool terminal) {
  if (mode_ == Mode::kNull) return {};
  if (base::Fd& queue = parts[Part::kInQueue]; queue.valid()) {
    GCS_ASSIGN(queue_, Ring::Restore(std::move(queue), host_->name()));
  }
  base::FdPair stage{std::move(parts[Part::kInStageRead]), std::move(parts[Part::kInStageWrite])};
  if (stage.first.valid() && stage.second.valid()) stage_ = std::move(stage);
  const bool staged = mode_ == Mode::kSocket && terminal;
  if (((mode_ == Mode::kStream || terminal) && queue_.fd() < 0) || (staged && !stage_))
    return base::MakeError(EINVAL, "restore stream", host_->name(), "stdin");
  accepted_ = queue_.begin();
  close_asked_ = queue_.over();
  if (base::Fd& socket = parts[Part::kInSocket]; socket.valid()) {
    socket_.emplace(host_, Part::kInSocket, std::move(socket));
  } else if (mode_ == Mode::kSocket) {
    close_asked_ = true;
  }
  if (base::Fd& pipe = parts[Part::kIn]; pipe.valid()) {
    UsePipe(std::move(pipe));
  } else if (!terminal) {
    // Closed after the last byte, or because nobody reads.
    finished_ = close_asked_ && queue_.empty();
    closed_ = !finished_;
    discarded_to_ = queue_.end();
    if (closed_) queue_.Clear();
  }
  return {};
}

void Input::AddParts(std::vector<std::pair<Part, int>>& parts) const {
  const auto add = [&](Part part, int fd) {
    if (fd >= 0) parts.emplace_back(part, fd);
  };
  if (pipe_) add(Part::kIn, pipe_->fd());
  if (socket_) add(Part::kInSocket, socket_->fd());
  add(Part::kInQueue, queue_.fd());
  if (stage_) {
    add(Part::kInStageRead, stage_->first.get());
    add(Part::kInStageWrite, stage_->second.get());
  }
}

void Input::UsePipe(base::Fd write_end) {
  pipe_.emplace(host_, Part::kIn, std::move(write_end));
  sink_ = &*pipe_;
  splice_ = mode_ == Mode::kSocket;
}

void Input::UseTerminal(Endpoint* master) { sink_ = master; }

base::Result<> Input::Watch() {
  if (pipe_) GCS_TRY(pipe_->Watch(EPOLLOUT));
  if (socket_) GCS_TRY(socket_->Watch(EPOLLIN | EPOLLRDHUP));
  return {};
}

bool Input::Pump() {
  if (linger_) linger_->Pump();
  if (sink_ == nullptr || finished_ || closed_ || mode_ == Mode::kNull) return false;
  if (pipe_ && pipe_->failed) {
    ReaderGone();
    return true;
  }
  if (mode_ == Mode::kStream || !socket_ || !socket_->open()) return PumpQueue();
  return splice_ ? PumpSplice() : PumpCopy();
}

// Queue to sink; true if anything changed.
bool Input::PumpQueue() {
  bool changed = false;
  while (!queue_.empty() && sink_->can_write) {
    const ssize_t n = queue_.GiveTo(sink_->fd(), kWriteBytes);
    if (n > 0) {
      accepted_ = queue_.begin();
      changed = true;
    } else if (n == 0 || errno == EAGAIN) {
      sink_->can_write = false;
    } else if (errno == ENOMEM) {
      host_->PumpAfterPause();
      return changed;
    } else if (errno != EINTR) {
      // EPIPE: the pipe's reader is gone. EIO: the pty was hung up.
      ReaderGone();
      return true;
    }
  }
  if (queue_.empty() && close_asked_ && !finished_) {
    Finish();
    return true;
  }
  return changed;
}

bool Input::PumpSplice() {
  size_t turn = 0;
  int unclear = 0;
  while (socket_->can_read && sink_->can_write) {
    if (turn >= kTurnBytes) {
      host_->PumpSoon();
      return false;
    }
    const ssize_t n =
        splice(socket_->fd(), nullptr, sink_->fd(), nullptr, kSpliceBytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (n > 0) {
      turn += static_cast<size_t>(n);
      continue;
    }
    if (n == 0) {
      SocketEnded(n, 0, "splice");
      return true;
    }
    switch (errno) {
      case EINTR:
        continue;
      case EAGAIN: {
        const bool socket_waits = socket_->Recheck(true, false);
        const bool sink_waits = sink_->Recheck(false, true);
        if (sink_waits && !large_) {
          EnlargePipe(sink_->fd());
          large_ = true;
          sink_->can_write = true;
          continue;
        }
        if (socket_waits || sink_waits) continue;
        if (++unclear >= 3) {
          host_->PumpAfterPause();
          return false;
        }
        continue;
      }
      case EPIPE:
        ReaderGone();
        return true;
      case EINVAL:
        // This kind of socket can't; nothing was moved.
        if (auto made = MakeQueue(true); !made) {
          SocketEnded(-1, made.error().err, made.error().step);
          return true;
        }
        splice_ = false;
        return PumpCopy();
      default:
        SocketEnded(n, errno, "splice");
        return true;
    }
  }
  return false;
}

// As splice(2).
ssize_t Input::TakeFromSocket(size_t max) {
  const ssize_t staged = queue_.TakeFrom(stage_->first.get(), max);
  if (staged >= 0 || errno != EAGAIN) return staged;
  const ssize_t n =
      splice(socket_->fd(), nullptr, stage_->second.get(), nullptr, max, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  return n > 0 ? queue_.TakeFrom(stage_->first.get(), static_cast<size_t>(n)) : n;
}

bool Input::PumpCopy() {
  for (size_t turn = 0;;) {
    PumpQueue();
    if (finished_ || closed_) return true;
    if (!socket_->can_read || queue_.size() >= kCopyBufferBytes || close_asked_) return false;
    if (turn >= kTurnBytes) {
      host_->PumpSoon();
      return false;
    }
    const ssize_t n = TakeFromSocket(kCopyBufferBytes - queue_.size());
    const int err = errno;
    if (n > 0) {
      turn += static_cast<size_t>(n);
    } else if (n < 0 && (err == ENOMEM || err == ENOSPC)) {
      host_->PumpAfterPause();
      return false;
    } else if (n < 0 && err == EAGAIN) {
      socket_->can_read = false;
    } else if (n == 0 || err != EINTR) {
      SocketEnded(n, err, "splice");
      if (finished_) return true;
    }
  }
}

// The client's end of input. A pty has no half-close: its reader waits on, as with an idle keyboard.
void Input::SocketEnded(ssize_t result, int err, std::string_view step) {
  if (result < 0) {
    base::LogError("input's peer is gone, the process sees the end of its input",
                   base::Error{std::string(step), err, host_->name(), "stdin"});
  }
  close_asked_ = true;
  socket_->Close();
  if (queue_.empty()) Finish();
}

void Input::Finish() {
  finished_ = true;
  if (pipe_) pipe_->Close();
}

void Input::ReaderGone() {
  closed_ = true;
  discarded_to_ = queue_.end();
  queue_.Clear();
  if (pipe_) pipe_->Close();
  if (socket_ && socket_->open() && !linger_) {
    linger_.emplace(host_, &*socket_, linger_ns_);
    linger_->Begin(SHUT_RD);
  }
}

void Input::ProcessExited() {
  if (!closed_) ReaderGone();
}

void Input::Close() {
  closed_ = true;
  discarded_to_ = std::max(discarded_to_, queue_.end());
  sink_ = nullptr;
  if (linger_) linger_->Close();
  if (socket_) socket_->Close();
  if (pipe_) pipe_->Close();
}

base::Result<uint64_t> Input::Write(uint64_t offset, std::string_view data, bool close,
                                    std::string_view name) {
  const uint64_t received = std::max(queue_.end(), discarded_to_);
  if (offset > received) {
    return base::MakeError(ERANGE, "write stdin", name, "received only up to " + std::to_string(received));
  }
  const uint64_t known = std::min<uint64_t>(received - offset, data.size());
  data.remove_prefix(known);
  if (closed_) {
    discarded_to_ = received + data.size();
    return discarded_to_;
  }
  if (close_asked_ && !data.empty())
    return base::MakeError(EPIPE, "write stdin", name, "stdin was closed by a client");
  const size_t room = kStdinQueueBytes - std::min<uint64_t>(queue_.size(), kStdinQueueBytes);
  const size_t taken = queue_.Append(data.substr(0, room));
  if (taken < std::min(room, data.size()) && queue_.empty()) {
    return base::MakeError(ENOMEM, "write stdin", name, "no memory for the queue");
  }
  // A pty has no half-close: the client sends the terminal's end-of-file character itself.
  if (close && taken == data.size() && pipe_) {
    close_asked_ = true;
    queue_.MarkOver();
  }
  return queue_.end();
}

StdinState Input::State() const {
  StdinState state;
  state.received = std::max(queue_.end(), discarded_to_);
  state.accepted = accepted_;
  state.closed = closed_;
  return state;
}

}  // namespace gcs::stdio
