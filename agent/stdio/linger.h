// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "base/loop.h"
#include "stdio/endpoint.h"

namespace gcs::stdio {

// A socket that this side is done with: shut down in one direction and kept until the peer's end or a time
// limit, as close(2) on a socket with bytes under way may reset the connection and lose them. Loop thread
// only.
class Linger {
 public:
  Linger(Host* host, Endpoint* socket, int64_t limit_ns)
      : host_(host), socket_(socket), limit_ns_(limit_ns) {}

  // `how` as of shutdown(2).
  void Begin(int how);
  // Throws away what the peer still sends; closes at its end.
  void Pump();
  void Close();
  [[nodiscard]] bool begun() const { return begun_; }

 private:
  Host* const host_;
  Endpoint* const socket_;
  const int64_t limit_ns_;
  bool begun_ = false;
  bool reading_over_ = false;  // SHUT_RD: reads tell nothing any more
  base::Loop::TimerId timer_ = 0;
};

}  // namespace gcs::stdio
