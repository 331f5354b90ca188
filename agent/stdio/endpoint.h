// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "base/loop.h"
#include "stdio/process_io.h"

namespace gcs::stdio {

// What the parts of a ProcessIo need of the whole. Loop thread only.
class Host {
 public:
  virtual base::Loop* loop() = 0;
  virtual const std::string& name() const = 0;
  // Runs all pumps: now, in the loop's next round (a pump used up its turn), or after a pause (no memory, a
  // socket that claims to be ready and isn't).
  virtual void Pump() = 0;
  virtual void PumpSoon() = 0;
  virtual void PumpAfterPause() = 0;
  // An endpoint has been closed. Any thread.
  virtual void Closed(Part part) = 0;

 protected:
  ~Host() = default;
};

// A non-blocking descriptor that the loop watches edge-triggered: the flags say that trying is worth while,
// and are cleared by whoever meets EAGAIN. An end that is blocked by its other side so costs no epoll_ctl and
// no wake-ups. Loop thread only.
class Endpoint {
 public:
  Endpoint(Host* host, Part part, base::Fd fd) : host_(host), part_(part), fd_(std::move(fd)) {}
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  // Does not touch the loop, which may be gone: close with Close() while it lives.
  ~Endpoint() = default;

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool open() const { return fd_.valid(); }

  base::Result<> Watch(uint32_t events);
  void Close();

  bool can_read = false;
  bool can_write = false;
  bool failed = false;  // EPOLLERR: of a pipe's write end, the reader is gone

  // Asks the kernel what of the flags is true at this moment, for calls whose EAGAIN doesn't tell which side
  // it means. Returns false if neither `read` nor `write`, as far as asked for, had to be cleared.
  bool Recheck(bool read, bool write);

  [[nodiscard]] Part part() const { return part_; }

 private:
  Host* const host_;
  const Part part_;
  base::Fd fd_;
  bool watched_ = false;
};

// Sets O_NONBLOCK and O_CLOEXEC on a descriptor that is this side's own (flags belong to the open file, not
// the process).
base::Result<> MakeNonBlocking(int fd, std::string_view object);

// A pipe, close-on-exec, both ends blocking, owned by the given user.
base::Result<base::FdPair> MakePipe(uid_t uid, gid_t gid, std::string_view object);

// A pipe for bytes on their way between a pty or socket and a memory file, which splice(2) can't move from
// one to the other: like the files it outlives a crash with what is in it.
base::Result<base::FdPair> MakeStage(std::string_view object);

// /dev/null, proved to be character device 1:3.
base::Result<base::Fd> OpenNull();

// Makes a pipe that has proved busy large; memory is only used for what is in it.
void EnlargePipe(int fd);

}  // namespace gcs::stdio
