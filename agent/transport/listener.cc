// SPDX-License-Identifier: Apache-2.0
#include "transport/listener.h"

#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace gcs::transport {

namespace {

constexpr int64_t kFirstRetryNs = 50 * base::kNsPerMs;
constexpr int64_t kLastRetryNs = 2 * base::kNsPerSec;
// Without a pause, a listener that is out of descriptors would spin: the connection stays in the queue and
// readable.
constexpr int64_t kExhaustedPauseNs = 100 * base::kNsPerMs;
constexpr int kAcceptsPerRound = 64;
constexpr int kBacklog = 128;

bool IsExhaustion(int err) { return err == EMFILE || err == ENFILE || err == ENOMEM || err == ENOBUFS; }

// Errors of the connection, not of the listener (accept(2), "Error handling").
bool IsPeerError(int err) {
  return err == ECONNABORTED || err == EINTR || err == EPROTO || err == ECONNRESET || err == ENOTCONN ||
         err == EPERM;
}

}  // namespace

Listener::Listener(base::Loop* loop, Endpoint endpoint, Callbacks callbacks)
    : loop_(loop),
      endpoint_(std::move(endpoint)),
      callbacks_(std::move(callbacks)),
      retry_ns_(kFirstRetryNs) {}

Listener::~Listener() { Stop(); }

void Listener::Start() { TryListen(); }

void Listener::Stop() {
  if (timer_ != 0) loop_->Cancel(timer_);
  timer_ = 0;
  if (!socket_) return;
  loop_->Remove(socket_.get());
  socket_.Reset();
  if (bound_) unlink(endpoint_.path.c_str());
  bound_ = false;
}

base::Result<base::Fd> Listener::Listen() const {
  const int family = endpoint_.kind == Kind::kVsock ? AF_VSOCK : AF_UNIX;
  base::Fd fd(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return base::ErrnoError("socket", endpoint_.ToString());
  if (endpoint_.kind == Kind::kVsock) {
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = endpoint_.port;
    if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      return base::ErrnoError("bind", endpoint_.ToString());
    }
  } else {
    GCS_ASSIGN(const sockaddr_un address, UnixAddress(endpoint_.path));
    // A file that an earlier life of the agent left behind would make bind fail; anything but a socket stays.
    struct stat status{};
    if (lstat(endpoint_.path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode))
      unlink(endpoint_.path.c_str());
    // The socket's permissions are what fchmod says before bind: no moment in which others may connect.
    if (fchmod(fd.get(), 0600) != 0) return base::ErrnoError("fchmod", endpoint_.ToString());
    if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      return base::ErrnoError("bind", endpoint_.ToString());
    }
  }
  if (listen(fd.get(), kBacklog) != 0) return base::ErrnoError("listen", endpoint_.ToString());
  return fd;
}

void Listener::TryListen() {
  timer_ = 0;
  auto fd = Listen();
  if (fd) {
    if (auto added = loop_->Add(fd->get(), EPOLLIN, [this](uint32_t) { OnReadable(); }); !added) {
      fd = std::unexpected(added.error());
    }
  }
  if (!fd) {
    base::LogError("listen failed, trying again", fd.error(),
                   {{"retry_ms", std::to_string(retry_ns_ / base::kNsPerMs)}});
    timer_ = loop_->After(retry_ns_, [this] { TryListen(); });
    retry_ns_ = std::min(retry_ns_ * 2, kLastRetryNs);
    return;
  }
  socket_ = std::move(*fd);
  bound_ = endpoint_.kind == Kind::kUnix;
  base::Log(base::Level::kInfo, "listening", {{"endpoint", endpoint_.ToString()}});
  if (callbacks_.on_listening) callbacks_.on_listening();
}

void Listener::OnReadable() {
  // Bounded per round, so that a flood of connections doesn't starve the loop's other work.
  for (int i = 0; i < kAcceptsPerRound && socket_; ++i) {
    sockaddr_storage storage{};
    socklen_t length = sizeof storage;
    base::Fd fd(
        accept4(socket_.get(), reinterpret_cast<sockaddr*>(&storage), &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return;
      if (IsPeerError(errno)) continue;
      PauseAccepting(errno);
      return;
    }
    if (endpoint_.kind == Kind::kVsock) {
      const auto& peer = reinterpret_cast<const sockaddr_vm&>(storage);
      if (length < sizeof(sockaddr_vm) || !IsHost(peer)) {
        Refuse(peer);
        continue;
      }
    }
    callbacks_.on_connection(std::move(fd));
  }
}

void Listener::PauseAccepting(int err) {
  base::LogError("accept failed, pausing", base::Error{"accept4", err, endpoint_.ToString(), {}});
  if (!IsExhaustion(err)) {
    // The listener itself is broken (the transport went away): begin anew.
    Stop();
    retry_ns_ = kFirstRetryNs;
    timer_ = loop_->After(retry_ns_, [this] { TryListen(); });
    return;
  }
  if (auto off = loop_->Modify(socket_.get(), 0); !off) base::LogError("pause listener", off.error());
  timer_ = loop_->After(kExhaustedPauseNs, [this] {
    timer_ = 0;
    if (auto on = loop_->Modify(socket_.get(), EPOLLIN); !on) base::LogError("resume listener", on.error());
  });
}

void Listener::Refuse(const sockaddr_vm& peer) {
  const uint64_t count = refused_.fetch_add(1, std::memory_order_relaxed) + 1;
  const int64_t now = base::MonotonicNs();
  if (refused_log_ns_ != 0 && now - refused_log_ns_ < base::kNsPerSec) return;
  refused_log_ns_ = now;
  base::Log(base::Level::kWarn, "refused a connection that is not the host's",
            {{"endpoint", endpoint_.ToString()},
             {"peer_cid", std::to_string(peer.svm_cid)},
             {"peer_port", std::to_string(peer.svm_port)},
             {"since_last_line", std::to_string(count - refused_logged_)}});
  refused_logged_ = count;
}

}  // namespace gcs::transport
