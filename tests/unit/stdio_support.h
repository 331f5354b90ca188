// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dirent.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/loop.h"
#include "stdio/process_io.h"

namespace gcs::stdio::test {

using namespace std::chrono_literals;

// A loop on a thread of its own, as the agent runs it.
class LoopThread {
 public:
  LoopThread() : loop_(std::move(base::Loop::Create().value())), thread_([this] { loop_->Run(); }) {}
  ~LoopThread() {
    loop_->Stop();
    thread_.join();
  }
  LoopThread(const LoopThread&) = delete;
  LoopThread& operator=(const LoopThread&) = delete;
  base::Loop* get() { return loop_.get(); }
  // Runs everything that is queued now.
  void Sync() {
    std::mutex mutex;
    std::condition_variable wake;
    bool done = false;
    loop_->Post([&] {
      const std::lock_guard lock(mutex);
      done = true;
      wake.notify_one();
    });
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return done; });
  }

 private:
  std::unique_ptr<base::Loop> loop_;
  std::thread thread_;
};

// What the memory files of a process hold, in bytes.
inline uint64_t RingMemory(const ProcessIo& io) {
  uint64_t bytes = 0;
  const auto parts = io.Parts();
  REQUIRE(parts);
  for (const auto& [part, fd] : *parts) {
    struct stat info{};
    if (fstat(fd.get(), &info) == 0 && S_ISREG(info.st_mode))
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return bytes;
}

// Set by wake callbacks, waited for by tests.
class Signal {
 public:
  void Set() {
    const std::lock_guard lock(mutex_);
    set_ = true;
    wake_.notify_all();
  }
  bool Wait(std::chrono::milliseconds limit = 10s) {
    std::unique_lock lock(mutex_);
    const bool got = wake_.wait_for(lock, limit, [this] { return set_; });
    set_ = false;
    return got;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool set_ = false;
};

inline bool WaitUntil(const std::function<bool()>& condition, std::chrono::milliseconds limit = 10s) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

// Bytes that tell their offset: no piece of a stream equals another one.
inline void FillPattern(char* out, uint64_t offset, size_t bytes) {
  for (size_t i = 0; i < bytes;) {
    uint64_t word = (offset + i) / 8 * 0x9E3779B97F4A7C15U;
    word ^= word >> 29;
    const size_t skip = (offset + i) % 8;
    const size_t piece = std::min<size_t>(8 - skip, bytes - i);
    memcpy(out + i, reinterpret_cast<const char*>(&word) + skip, piece);
    i += piece;
  }
}
inline std::string Pattern(uint64_t offset, size_t bytes) {
  std::string out(bytes, '\0');
  FillPattern(out.data(), offset, bytes);
  return out;
}

inline bool WriteAll(int fd, std::string_view data) {
  while (!data.empty()) {
    const ssize_t n = write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    data.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}
inline std::string ReadAll(int fd, size_t max = SIZE_MAX) {
  std::string out;
  char buffer[65536];
  while (out.size() < max) {
    const ssize_t n = read(fd, buffer, std::min(sizeof buffer, max - out.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    out.append(buffer, static_cast<size_t>(n));
  }
  return out;
}

// Writes or checks `total` pattern bytes; false at the first difference or early end.
inline bool WritePattern(int fd, uint64_t total) {
  std::string block;
  for (uint64_t at = 0; at < total; at += block.size()) {
    block = Pattern(at, std::min<uint64_t>(1 << 18, total - at));
    if (!WriteAll(fd, block)) return false;
  }
  return true;
}
inline uint64_t CheckPattern(int fd) {
  std::vector<char> buffer(1 << 18);
  uint64_t at = 0;
  for (;;) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0 ? at : UINT64_MAX;
    if (std::string_view(buffer.data(), static_cast<size_t>(n)) != Pattern(at, static_cast<size_t>(n))) {
      return UINT64_MAX;
    }
    at += static_cast<uint64_t>(n);
  }
}

inline base::FdPair SocketPair() {
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  return {base::Fd(ends[0]), base::Fd(ends[1])};
}

inline size_t OpenFds() {
  size_t count = 0;
  DIR* dir = opendir("/proc/self/fd");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

// A session with its wake signal.
struct Client {
  std::shared_ptr<Signal> signal = std::make_shared<Signal>();
  std::unique_ptr<Session> session;

  struct Options {
    bool out = true;
    bool err = false;
    bool in = false;
    bool manual_ack = false;
    uint64_t offset = 0;
  };
  Client(ProcessIo& io, const Options& options) {
    AttachOptions attach;
    if (options.out) attach.outputs.push_back({Stream::kStdout, options.offset});
    if (options.err) attach.outputs.push_back({Stream::kStderr, options.offset});
    attach.want_stdin = options.in;
    attach.manual_ack = options.manual_ack;
    attach.wake = [signal = signal] { signal->Set(); };
    auto made = io.Attach(std::move(attach));
    REQUIRE_MESSAGE(made, made.error().ToString());
    session = std::move(*made);
  }

  // Reads until the end or `max` bytes; waits as long as something comes within `limit`.
  struct Output {
    std::string data;
    uint64_t gap = 0;
    bool end = false;
  };
  Output Drain(Stream stream, size_t max = SIZE_MAX, std::chrono::milliseconds limit = 10s,
               bool ack = false) {
    Output out;
    while (out.data.size() < max) {
      auto chunk = session->Read(stream, std::min<size_t>(64 << 10, max - out.data.size()));
      REQUIRE(chunk);
      out.gap += chunk->gap;
      out.data += chunk->data;
      if (ack) REQUIRE(session->Ack(stream, chunk->offset + chunk->data.size()));
      if (chunk->end) {
        out.end = true;
        break;
      }
      if (chunk->data.empty() && !signal->Wait(limit)) break;
    }
    return out;
  }

  // Writes all input, waiting for room; the received offset.
  uint64_t Write(uint64_t offset, std::string_view data, bool close) {
    for (;;) {
      auto received = session->WriteStdin(offset, data, close);
      REQUIRE_MESSAGE(received, received.error().ToString());
      if (*received >= offset + data.size()) return *received;
      if (*received > offset) {
        data.remove_prefix(*received - offset);
        offset = *received;
      }
      REQUIRE(signal->Wait());
    }
  }
};

// A ProcessIo with kStream in, out and err.
inline ProcessIo::Created Streams(LoopThread& loop, uint64_t ring = 0, Overflow overflow = Overflow::kBlock) {
  Config config;
  config.name = "c/p";
  config.in.mode = config.out.mode = config.err.mode = Mode::kStream;
  config.ring_bytes = ring;
  config.overflow = overflow;
  auto made = ProcessIo::Create(loop.get(), std::move(config));
  REQUIRE_MESSAGE(made, made.error().ToString());
  return std::move(*made);
}

}  // namespace gcs::stdio::test
