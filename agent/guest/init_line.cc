// SPDX-License-Identifier: Apache-2.0
#include "guest/init_line.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "base/log.h"

namespace gcs::guest {

namespace {

// Some thousand packets: a burst of drops that init gets to read later.
constexpr int kSendBuffer = 4 << 20;

}  // namespace

InitLine::InitLine(base::Fd fd) : fd_(std::move(fd)) {
  if (!fd_) return;
  // Without the privilege it stays what it is.
  (void)setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &kSendBuffer, sizeof kSendBuffer);
}

base::Result<std::unique_ptr<InitLine>> InitLine::FromEnvironment() {
  const char* text = getenv(base::kInitFdVariable);
  if (text == nullptr) return std::unique_ptr<InitLine>(new InitLine(base::Fd()));
  int number = -1;
  const char* end = text + strlen(text);
  const auto parsed = std::from_chars(text, end, number);
  if (parsed.ec != std::errc() || parsed.ptr != end || number < 3) {
    return base::MakeError(EINVAL, "read environment", base::kInitFdVariable, text);
  }
  int type = 0;
  socklen_t length = sizeof type;
  if (getsockopt(number, SOL_SOCKET, SO_TYPE, &type, &length) != 0) {
    return base::ErrnoError("getsockopt SO_TYPE", base::kInitFdVariable, text);
  }
  if (type != SOCK_SEQPACKET)
    return base::MakeError(EINVAL, "check type", base::kInitFdVariable, "not SEQPACKET");
  base::Fd fd(number);
  // Neither the containers nor anything else that the agent starts may reach init.
  if (fcntl(number, F_SETFD, FD_CLOEXEC) != 0)
    return base::ErrnoError("fcntl F_SETFD", base::kInitFdVariable);
  unsetenv(base::kInitFdVariable);
  return std::unique_ptr<InitLine>(new InitLine(std::move(fd)));
}

base::Result<base::InitPacket> InitLine::Call(base::InitOp op, uint64_t arg, std::span<const int> fds,
                                              uint64_t arg2) {
  if (!connected()) return base::MakeError(EBUSY, "call init", {}, "the agent was not started by init");
  const std::lock_guard lock(mutex_);
  {
    const std::lock_guard drops_lock(drops_mutex_);
    SendDrops();
  }
  return base::CallInit(fd_.get(),
                        {.op = static_cast<uint32_t>(op), .id = ++last_id_, .arg = arg, .arg2 = arg2}, fds);
}

base::Result<uint32_t> InitLine::Restarts() {
  GCS_ASSIGN(const base::InitPacket reply, Call(base::InitOp::kHello, 0));
  return reply.message.arg == 0 ? 0 : static_cast<uint32_t>(reply.message.arg - 1);
}

base::Result<> InitLine::Put(uint64_t first, std::span<const int> fds, int pid) {
  GCS_TRY(Call(base::InitOp::kStorePut, first, fds, static_cast<uint64_t>(pid)));
  return {};
}

base::Result<std::optional<base::InitExit>> InitLine::ExitOf(uint64_t first) {
  const auto reply = Call(base::InitOp::kStoreExit, first);
  if (reply) return base::InitExit::From(reply->message.arg, reply->message.arg2);
  if (reply.error().err == EAGAIN) return std::nullopt;
  return std::unexpected(reply.error());
}

void InitLine::Drop(uint64_t first, uint64_t count) {
  if (!connected() || count == 0) return;
  const std::lock_guard lock(drops_mutex_);
  drops_.emplace_back(first, count);
  SendDrops();
}

void InitLine::SendDrops() {
  size_t sent = 0;
  for (; sent < drops_.size(); ++sent) {
    const base::InitMessage message{.op = static_cast<uint32_t>(base::InitOp::kStoreDrop),
                                    .arg = drops_[sent].first,
                                    .arg2 = drops_[sent].second};
    const auto result = base::SendInit(fd_.get(), message, {}, {}, MSG_DONTWAIT);
    if (result) continue;
    if (!drops_late_) base::LogError("drop descriptors that init holds", result.error());
    if (result.error().err != EAGAIN) sent = drops_.size();  // the line is dead
    break;
  }
  drops_late_ = sent < drops_.size();
  drops_.erase(drops_.begin(), drops_.begin() + static_cast<ptrdiff_t>(sent));
}

base::Result<std::vector<std::pair<uint64_t, base::Fd>>> InitLine::TakeAll() {
  std::vector<std::pair<uint64_t, base::Fd>> all;
  uint64_t next = 0;
  do {
    GCS_ASSIGN(base::InitPacket packet, Call(base::InitOp::kStoreTake, next));
    const base::InitMessage& reply = packet.message;
    const size_t count = packet.fds.size();
    for (size_t i = 0; i < count; ++i) all.emplace_back(packet.keys[i], std::move(packet.fds[i]));
    // A line that never comes to its end must not hold the agent.
    if (reply.arg2 != 0 && (count == 0 || reply.arg2 <= packet.keys[count - 1])) {
      return base::MakeError(EPROTO, "take descriptors", "init");
    }
    next = reply.arg2;
  } while (next != 0);
  return all;
}

base::Result<> InitLine::PowerOff(uint32_t grace_ms) {
  GCS_TRY(Call(base::InitOp::kPowerOff, grace_ms));
  return {};
}

base::Result<> InitLine::Reboot(uint32_t grace_ms) {
  GCS_TRY(Call(base::InitOp::kReboot, grace_ms));
  return {};
}

}  // namespace gcs::guest
