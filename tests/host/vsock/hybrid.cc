// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/hybrid.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "host/vsock/unix_socket.h"

namespace gcs::host::vsock {

namespace {
constexpr int kAcceptBatch = 64;
constexpr int64_t kAcceptRetryNs = 100'000'000;
}  // namespace

std::optional<uint32_t> ParseConnect(std::string_view line) {
  constexpr std::string_view kVerb = "CONNECT ";
  if (!line.starts_with(kVerb) || !line.ends_with('\n')) return std::nullopt;
  line.remove_prefix(kVerb.size());
  line.remove_suffix(1);
  uint32_t port = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), port);
  if (error != std::errc() || end != line.data() + line.size()) return std::nullopt;
  return port;
}

base::Result<base::Fd> DialHostPort(const std::string& path, uint32_t port) {
  return ConnectUnix(path + "_" + std::to_string(port));
}

base::Result<std::unique_ptr<HybridListener>> HybridListener::Listen(base::Loop* loop,
                                                                     const std::string& path,
                                                                     const Options& options, Mux* mux) {
  GCS_ASSIGN(base::Fd listener, ListenUnix(path, SOMAXCONN));
  std::unique_ptr<HybridListener> server(new HybridListener(loop, path, options, mux, std::move(listener)));
  GCS_TRY(server->Watch());
  return server;
}

HybridListener::HybridListener(base::Loop* loop, std::string path, const Options& options, Mux* mux,
                               base::Fd listener)
    : loop_(loop), path_(std::move(path)), options_(options), mux_(mux), listener_(std::move(listener)) {}

HybridListener::~HybridListener() {
  while (!waiting_.empty()) Forget(waiting_.begin()->first);
  if (retry_ != 0) loop_->Cancel(retry_);
  loop_->Remove(listener_.get());
  unlink(path_.c_str());
}

base::Result<> HybridListener::Watch() {
  return loop_->Add(listener_.get(), EPOLLIN, [this](uint32_t) { OnAccept(); });
}

void HybridListener::OnAccept() {
  for (int i = 0; i < kAcceptBatch; ++i) {
    base::Fd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
      // Out of descriptors or memory: the caller stays in the backlog; looking again at once would only spin.
      const auto error = base::ErrnoError("accept4", path_);
      base::LogError("vsock: cannot accept a host program", error.error());
      loop_->Remove(listener_.get());
      retry_ = loop_->After(kAcceptRetryNs, [this] {
        retry_ = 0;
        if (const auto watched = Watch(); !watched) base::LogError("vsock: listener lost", watched.error());
      });
      return;
    }
    // Refused at once while no driver is there: a request kept until after a boot would reach somebody else's
    // listener.
    if (!mux_->running() || waiting_.size() >= options_.max_waiting) continue;
    const int fd = socket.get();
    // Edge-triggered, because an unfinished line stays in the socket.
    const auto added =
        loop_->Add(fd, EPOLLIN | EPOLLRDHUP | EPOLLET, [this, fd](uint32_t events) { OnLine(fd, events); });
    if (!added) continue;
    const auto timer = loop_->After(options_.line_timeout_ns, [this, fd] {
      waiting_[fd].timer = 0;
      Forget(fd);
    });
    waiting_[fd] = {std::move(socket), timer};
  }
}

void HybridListener::OnLine(int fd, uint32_t events) {
  if ((events & EPOLLHUP) != 0) return Forget(fd);
  // Looked at first, so that not a byte of the stream behind the line is taken.
  std::array<char, 32> buffer;
  ssize_t n = recv(fd, buffer.data(), buffer.size(), MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) return Forget(fd);
  const std::string_view seen(buffer.data(), n);
  const size_t newline = seen.find('\n');
  if (newline == std::string_view::npos) {
    if (seen.size() == buffer.size() || (events & EPOLLRDHUP) != 0) Forget(fd);
    return;
  }
  const auto port = ParseConnect(seen.substr(0, newline + 1));
  n = recv(fd, buffer.data(), newline + 1, MSG_DONTWAIT);
  if (!port || n != static_cast<ssize_t>(newline + 1)) return Forget(fd);
  base::Fd socket = std::move(waiting_[fd].socket);
  loop_->Remove(fd);
  loop_->Cancel(waiting_[fd].timer);
  waiting_.erase(fd);
  mux_->ConnectGuest(std::move(socket), *port);
}

void HybridListener::Forget(int fd) {
  const auto it = waiting_.find(fd);
  if (it == waiting_.end()) return;
  loop_->Remove(fd);
  if (it->second.timer != 0) loop_->Cancel(it->second.timer);
  waiting_.erase(it);
}

}  // namespace gcs::host::vsock
