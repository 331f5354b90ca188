// SPDX-License-Identifier: Apache-2.0
#include "transport/endpoint.h"

#include <cstring>

namespace gcs::transport {

std::string Endpoint::ToString() const {
  return kind == Kind::kVsock ? "vsock:" + std::to_string(port) : "unix:" + path;
}

bool IsHost(const sockaddr_vm& peer) {
  return peer.svm_family == AF_VSOCK && peer.svm_cid == VMADDR_CID_HOST;
}

base::Result<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty()) return base::MakeError(EINVAL, "unix address", path, "empty path");
  if (path.size() >= sizeof address.sun_path) return base::MakeError(ENAMETOOLONG, "unix address", path);
  memcpy(address.sun_path, path.data(), path.size());
  return address;
}

}  // namespace gcs::transport
