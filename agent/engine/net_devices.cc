// SPDX-License-Identifier: Apache-2.0
#include "engine/net_devices.h"

#include <fcntl.h>

#include <string>

#include "base/paths.h"

namespace gcs::engine {

using base::Fd;
using base::Result;

namespace {

constexpr std::string_view kStep = "move network device";

std::unexpected<base::Error> Explain(const base::Error& error, const std::string& object) {
  std::string message = error.message;
  if (error.step != kStep) {
    message = error.step + (message.empty() ? "" : ": " + message);
  }
  return base::MakeError(error.err, kStep, object, message);
}

}  // namespace

Result<> MoveNetDevices(const std::vector<NetDevice>& devices, int proc_fd, int pid,
                        std::optional<net::DeviceMoves>& moves) {
  if (devices.empty()) return {};
  // Not reaped yet, so the pid is its own.
  GCS_ASSIGN(Fd target, base::OpenFileAt(proc_fd, std::to_string(pid) + "/ns/net", O_RDONLY));
  auto begun = net::DeviceMoves::Begin(std::move(target));
  if (!begun) return Explain(begun.error(), "linux.netDevices");
  moves.emplace(std::move(*begun));
  for (const NetDevice& device : devices) {
    const auto moved = moves->Move(device.name, device.new_name);
    if (!moved) return Explain(moved.error(), "linux.netDevices." + device.name);
  }
  return {};
}

}  // namespace gcs::engine
