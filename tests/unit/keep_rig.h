// SPDX-License-Identifier: Apache-2.0
// Lives of an agent on init's descriptor store.
#pragma once

#include <doctest/doctest.h>
#include <sys/socket.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/init_control.h"
#include "guest/init_line.h"
#include "guest/keep.h"
#include "init/store.h"

namespace gcs::guest::test {

using base::Fd;
using base::InitPacket;
using init::Store;

inline base::FdPair MakePair() {
  int fds[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

inline std::unique_ptr<InitLine> LineOver(Fd fd) {
  setenv(base::kInitFdVariable, std::to_string(fd.get()).c_str(), 1);
  auto line = InitLine::FromEnvironment();
  if (!line) abort();
  (void)fd.Release();
  return *std::move(line);
}

// PID 1 as far as the store goes: serves one line until its other end is closed and all that was sent is
// done.
class InitThread {
 public:
  // `before`, `after` serving a packet; may wait.
  using Hook = std::function<void(const InitPacket&)>;
  InitThread(Store* store, Fd end, const Hook& before = {}, const Hook& after = {})
      : thread_([=, fd = end.Release()] {
          const Fd init(fd);
          for (;;) {
            auto packet = base::ReceiveInit(init.get(), 0);
            if (!packet) continue;  // ECONNRESET, once
            if (packet->size == 0) return;
            if (before) before(*packet);
            if (!store->Serve(init.get(), *packet)) abort();
            if (after) after(*packet);
          }
        }) {}
  ~InitThread() { thread_.join(); }
  InitThread(const InitThread&) = delete;
  InitThread& operator=(const InitThread&) = delete;

 private:
  std::thread thread_;
};

// One life of an agent on a store. Ends without ceremony.
struct Life {
  explicit Life(Store* store, const InitThread::Hook& before = {}, const InitThread::Hook& after = {}) {
    auto pair = MakePair();
    init.emplace(store, std::move(pair.second), before, after);
    line = LineOver(std::move(pair.first));
    auto opened = Keep::Open(line.get());
    if (!opened) FAIL(opened.error().ToString());
    keep = *std::move(opened);
  }
  Keep* operator->() const { return keep.get(); }

  std::optional<InitThread> init;  // ends last, when the line is closed
  std::unique_ptr<InitLine> line;
  std::unique_ptr<Keep> keep;
};

}  // namespace gcs::guest::test
