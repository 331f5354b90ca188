// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "base/fd.h"
#include "base/loop.h"
#include "host/vsock/mux.h"

namespace gcs::host::vsock {

// The unix sockets by which host programs reach the guest, in Firecracker's convention (its docs/vsock.md):
// connect to `path`, write "CONNECT <port>\n", read "OK <host port>\n", then the stream. A close instead of
// OK is a refusal.
class HybridListener {
 public:
  struct Options {
    size_t max_waiting = 4096;  // sockets that have not sent their line yet
    int64_t line_timeout_ns = 5'000'000'000;
  };
  static base::Result<std::unique_ptr<HybridListener>> Listen(base::Loop* loop, const std::string& path,
                                                              const Options& options, Mux* mux);
  ~HybridListener();
  HybridListener(const HybridListener&) = delete;
  HybridListener& operator=(const HybridListener&) = delete;

 private:
  struct Waiting {
    base::Fd socket;
    base::Loop::TimerId timer = 0;
  };
  HybridListener(base::Loop* loop, std::string path, const Options& options, Mux* mux, base::Fd listener);
  base::Result<> Watch();
  void OnAccept();
  void OnLine(int fd, uint32_t events);
  void Forget(int fd);

  base::Loop* const loop_;
  const std::string path_;
  const Options options_;
  Mux* const mux_;
  base::Fd listener_;
  base::Loop::TimerId retry_ = 0;
  std::unordered_map<int, Waiting> waiting_;  // by descriptor
};

// For the other direction: whoever listens on "<path>_<port>" serves that port of the host.
base::Result<base::Fd> DialHostPort(const std::string& path, uint32_t port);

// Parses "CONNECT <port>\n" (the newline included); nothing for anything else.
std::optional<uint32_t> ParseConnect(std::string_view line);

}  // namespace gcs::host::vsock
