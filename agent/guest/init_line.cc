// SPDX-License-Identifier: Apache-2.0
#include "guest/init_line.h"

#include <fcntl.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

namespace gcs::guest {

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

base::Result<base::InitMessage> InitLine::Call(base::InitOp op, uint64_t arg) {
  if (!connected()) return base::MakeError(EBUSY, "call init", {}, "the agent was not started by init");
  const std::lock_guard lock(mutex_);
  return base::CallInit(fd_.get(), op, arg);
}

base::Result<uint32_t> InitLine::Restarts() {
  GCS_ASSIGN(const base::InitMessage reply, Call(base::InitOp::kHello, 0));
  return reply.arg == 0 ? 0 : static_cast<uint32_t>(reply.arg - 1);
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
