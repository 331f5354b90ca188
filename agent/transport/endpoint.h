// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <linux/vm_sockets.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdint>
#include <string>

#include "base/error.h"

namespace gcs::transport {

enum class Kind : uint8_t { kVsock, kUnix };

// Where to listen: a vsock port of this machine on any CID, or a unix socket.
struct Endpoint {
  Kind kind = Kind::kVsock;
  uint32_t port = 0;  // kVsock
  std::string path;   // kUnix

  static Endpoint Vsock(uint32_t port) { return {Kind::kVsock, port, {}}; }
  static Endpoint Unix(std::string path) { return {Kind::kUnix, 0, std::move(path)}; }

  // "vsock:1024", "unix:/run/gcs.sock".
  [[nodiscard]] std::string ToString() const;
};

// Only the hypervisor's side may call the agent (vsock(7): VMADDR_CID_HOST). Loopback, this machine's own
// CID, sibling machines and the hypervisor's reserved CID 0 are refused.
bool IsHost(const sockaddr_vm& peer);

// ENAMETOOLONG past 107 bytes.
base::Result<sockaddr_un> UnixAddress(const std::string& path);

}  // namespace gcs::transport
