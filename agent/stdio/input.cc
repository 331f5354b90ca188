// SPDX-License-Identifier: Apache-2.0
#include "stdio/input.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/log.h"

namespace gcs::stdio {
namespace {

constexpr size_t kWriteBytes = 64 << 10;
constexpr size_t kSpliceBytes = 1 << 20;
constexpr size_t kTurnBytes = 1 << 20;
constexpr size_t kCopyBufferBytes = 64 << 10;
constexpr int kIovecs = kWriteBytes / Ring::kChunkBytes + 1;

}  // namespace

Input::Input(Host* host, Mode mode, int64_t linger_ns) : host_(host), mode_(mode), linger_ns_(linger_ns) {}

void Input::UsePipe(base::Fd write_end) {
  pipe_.emplace(std::move(write_end));
  sink_ = &*pipe_;
  splice_ = mode_ == Mode::kSocket;
}

void Input::UseTerminal(Endpoint* master) { sink_ = master; }

void Input::UseSocket(base::Fd socket) { socket_.emplace(std::move(socket)); }

base::Result<> Input::Watch() {
  if (pipe_) GCS_TRY(pipe_->Watch(host_, EPOLLOUT));
  if (socket_) GCS_TRY(socket_->Watch(host_, EPOLLIN | EPOLLRDHUP));
  return {};
}

bool Input::Pump() {
  if (linger_) linger_->Pump();
  if (sink_ == nullptr || finished_ || closed_ || mode_ == Mode::kNull) return false;
  if (pipe_ && pipe_->failed) {
    ReaderGone();
    return true;
  }
  if (mode_ == Mode::kStream) return PumpQueue();
  return splice_ ? PumpSplice() : PumpCopy();
}

// Queue to sink; true if anything changed.
bool Input::PumpQueue() {
  bool changed = false;
  while (!queue_.empty() && sink_->can_write) {
    std::array<iovec, kIovecs> iov;
    const int pieces = queue_.Peek(kWriteBytes, iov.data(), iov.size());
    const ssize_t n = writev(sink_->fd(), iov.data(), pieces);
    if (n > 0) {
      queue_.DropTo(queue_.begin() + static_cast<uint64_t>(n));
      accepted_ = queue_.begin();
      changed = true;
    } else if (n == 0 || errno == EAGAIN) {
      sink_->can_write = false;
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
        splice_ = false;  // this kind of socket can't; nothing was moved
        return PumpCopy();
      default:
        SocketEnded(n, errno, "splice");
        return true;
    }
  }
  return false;
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
    std::array<iovec, kIovecs> iov;
    msghdr message{};
    message.msg_iov = iov.data();
    message.msg_iovlen =
        static_cast<size_t>(queue_.Prepare(kCopyBufferBytes - queue_.size(), iov.data(), iov.size()));
    if (message.msg_iovlen == 0) {
      host_->PumpAfterPause();
      return false;
    }
    const ssize_t n = recvmsg(socket_->fd(), &message, MSG_DONTWAIT);
    const int err = errno;
    queue_.Commit(n > 0 ? static_cast<size_t>(n) : 0);
    if (n > 0) {
      turn += static_cast<size_t>(n);
    } else if (n < 0 && err == EAGAIN) {
      socket_->can_read = false;
    } else if (n == 0 || err != EINTR) {
      SocketEnded(n, err, "recvmsg");
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
  queue_.Clear();
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
  const size_t taken = queue_.Append(data.data(), std::min(room, data.size()));
  if (taken < std::min(room, data.size()) && queue_.empty()) {
    return base::MakeError(ENOMEM, "write stdin", name, "no memory for the queue");
  }
  // A pty has no half-close: the client sends the terminal's end-of-file character itself.
  if (close && taken == data.size() && pipe_) close_asked_ = true;
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
