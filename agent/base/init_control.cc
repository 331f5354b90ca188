// SPDX-License-Identifier: Apache-2.0
#include "base/init_control.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"

namespace gcs::base {

namespace {

// Room for kMaxStoreFds and no more: the kernel closes what exceeds it and says MSG_CTRUNC.
constexpr size_t kControlSize = CMSG_SPACE(kMaxStoreFds * sizeof(int));
static_assert(kControlSize == CMSG_LEN(kMaxStoreFds * sizeof(int)));

Result<> Await(int fd, short events, int64_t deadline_ns) {
  for (;;) {
    const int64_t left_ns = std::max<int64_t>(deadline_ns - MonotonicNs(), 0);
    pollfd wait{.fd = fd, .events = events, .revents = 0};
    const int ready = poll(&wait, 1, static_cast<int>((left_ns + kNsPerMs - 1) / kNsPerMs));
    if (ready > 0) return {};
    if (ready == 0) return MakeError(ETIMEDOUT, "wait for init");
    if (errno != EINTR) return ErrnoError("poll", "init");
  }
}

}  // namespace

Result<InitPacket> ReceiveInit(int fd, int flags) {
  InitPacket packet;
  alignas(cmsghdr) char control[kControlSize];
  iovec parts[] = {{&packet.message, sizeof packet.message}, {packet.keys.data(), sizeof packet.keys}};
  msghdr header{};
  header.msg_iov = parts;
  header.msg_iovlen = 2;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  const ssize_t n = recvmsg(fd, &header, flags | MSG_CMSG_CLOEXEC | MSG_TRUNC);
  if (n < 0) return ErrnoError("recvmsg", "init");
  packet.size = static_cast<size_t>(n);
  packet.fds_cut = (header.msg_flags & MSG_CTRUNC) != 0;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; at + sizeof(int) <= part->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int received;
      memcpy(&received, CMSG_DATA(part) + at, sizeof received);
      packet.fds.emplace_back(received);
    }
  }
  return packet;
}

Result<> SendInit(int fd, const InitMessage& message, std::span<const uint64_t> keys,
                  std::span<const int> fds, int flags) {
  if (fds.size() > kMaxStoreFds) return MakeError(EINVAL, "send descriptors", "init", "too many");
  alignas(cmsghdr) char control[kControlSize];
  iovec parts[] = {{const_cast<InitMessage*>(&message), sizeof message},
                   {const_cast<uint64_t*>(keys.data()), keys.size_bytes()}};
  msghdr header{};
  header.msg_iov = parts;
  header.msg_iovlen = 2;
  if (!fds.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    memset(control, 0, sizeof control);
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size_bytes());
    memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
  }
  if (sendmsg(fd, &header, flags | MSG_NOSIGNAL) < 0) return ErrnoError("sendmsg", "init");
  return {};
}

Result<InitPacket> CallInit(int fd, const InitMessage& request, std::span<const int> fds, int timeout_ms) {
  const int64_t deadline_ns = MonotonicNs() + timeout_ms * kNsPerMs;
  for (;;) {
    const auto sent = SendInit(fd, request, {}, fds, MSG_DONTWAIT);
    if (sent) break;
    if (sent.error().err != EAGAIN && sent.error().err != EINTR) return std::unexpected(sent.error());
    GCS_TRY(Await(fd, POLLOUT, deadline_ns));
  }
  for (;;) {
    GCS_TRY(Await(fd, POLLIN, deadline_ns));
    auto received = ReceiveInit(fd, MSG_DONTWAIT);
    if (!received) {
      if (received.error().err == EAGAIN || received.error().err == EINTR) continue;
      return received;
    }
    const InitMessage& reply = received->message;
    if (received->size == 0) return MakeError(EPIPE, "recv", "init");
    if (received->size < sizeof reply || reply.magic != kInitMagic || (reply.op & kInitReply) == 0) {
      return MakeError(EPROTO, "recv", "init");
    }
    if (reply.id != request.id) continue;
    if (reply.op != (request.op | kInitReply) ||
        received->size != sizeof reply + received->fds.size() * sizeof received->keys[0]) {
      return MakeError(EPROTO, "recv", "init");
    }
    if (received->fds_cut) return MakeError(EMFILE, "receive descriptors", "init");
    if (reply.status != 0) return MakeError(reply.status, "init request");
    return received;
  }
}

Result<InitMessage> CallInit(int fd, InitOp op, uint64_t arg, int timeout_ms) {
  GCS_ASSIGN(const InitPacket reply,
             CallInit(fd, InitMessage{.op = static_cast<uint32_t>(op), .arg = arg}, {}, timeout_ms));
  return reply.message;
}

}  // namespace gcs::base
