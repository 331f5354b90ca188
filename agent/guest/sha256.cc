// SPDX-License-Identifier: Apache-2.0
#include "guest/sha256.h"

#include <linux/if_alg.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace gcs::guest {

base::Result<Sha256> Sha256::Create() {
  const base::Fd transform(socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!transform) return base::ErrnoError("socket", "AF_ALG");
  const sockaddr_alg address{.salg_family = AF_ALG, .salg_type = "hash", .salg_name = "sha256"};
  if (bind(transform.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return base::ErrnoError("bind", "sha256");
  }
  base::Fd operation(accept4(transform.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!operation) return base::ErrnoError("accept", "sha256");
  return Sha256(std::move(operation));
}

base::Result<> Sha256::Update(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(operation_.get(), bytes.data(), bytes.size(), MSG_MORE);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::ErrnoError("send", "sha256");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

base::Result<std::string> Sha256::Finish() {
  std::string digest(32, '\0');
  const ssize_t n = read(operation_.get(), digest.data(), digest.size());
  if (n < 0) return base::ErrnoError("read", "sha256");
  if (n != static_cast<ssize_t>(digest.size())) return base::MakeError(EIO, "read", "sha256");
  return digest;
}

}  // namespace gcs::guest
