// SPDX-License-Identifier: Apache-2.0
#include "stdio/core.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include "base/log.h"

namespace gcs::stdio {
namespace {

constexpr int64_t kPauseNs = 2'000'000;

uint64_t RingBytes(const Config& config) {
  return config.ring_bytes == 0 ? kDefaultRingBytes : config.ring_bytes;
}

// splice(2) and write(2) to a pipe without a reader raise SIGPIPE in the calling thread, and splice takes no
// MSG_NOSIGNAL. Blocked here, it stays without effect; the disposition, which children inherit, is left
// alone.
void BlockSigpipe() {
  thread_local bool blocked = false;
  if (blocked) return;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGPIPE);
  blocked = pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0;
}

}  // namespace

Core::Core(base::Loop* loop, const Config& config)
    : loop_(loop),
      name_(config.name),
      terminal_(config.terminal),
      drain_limit_ns_(config.drain_limit_ns),
      closed_(config.closed),
      in_(this, config.in.mode, config.linger_ns),
      out_(this, Stream::kStdout, config.out.mode, config.overflow, RingBytes(config), config.linger_ns),
      err_(this, Stream::kStderr, config.err.mode, config.overflow, RingBytes(config), config.linger_ns),
      width_(config.width),
      height_(config.height) {}

base::Result<ChildFds> Core::MakePipes(Config& config) {
  GCS_TRY(in_.Make(std::move(config.in.socket), terminal_));
  GCS_TRY(out_.Make(std::move(config.out.socket), terminal_));
  GCS_TRY(err_.Make(std::move(config.err.socket), terminal_));
  ChildFds child;
  if (terminal_) return child;
  if (config.in.mode == Mode::kNull) {
    GCS_ASSIGN(child.in, OpenNull());
  } else {
    GCS_ASSIGN(base::FdPair pipe, MakePipe(config.owner_uid, config.owner_gid, name_));
    GCS_TRY(MakeNonBlocking(pipe.second.get(), name_));
    in_.UsePipe(std::move(pipe.second));
    child.in = std::move(pipe.first);
  }
  const auto make_output = [&](Mode mode, Output& output, base::Fd& end) -> base::Result<> {
    if (mode == Mode::kNull) {
      GCS_ASSIGN(end, OpenNull());
      return {};
    }
    GCS_ASSIGN(base::FdPair pipe, MakePipe(config.owner_uid, config.owner_gid, name_));
    GCS_TRY(MakeNonBlocking(pipe.first.get(), name_));
    output.UsePipe(std::move(pipe.first));
    end = std::move(pipe.second);
    return {};
  };
  GCS_TRY(make_output(config.out.mode, out_, child.out));
  GCS_TRY(make_output(config.err.mode, err_, child.err));
  return child;
}

base::Result<> Core::Restore(std::map<Part, base::Fd>& parts) {
  GCS_TRY(in_.Restore(parts, terminal_));
  GCS_TRY(out_.Restore(parts, terminal_));
  GCS_TRY(err_.Restore(parts, terminal_));
  if (base::Fd& master = parts[Part::kMaster]; terminal_ && master.valid())
    master_.emplace(this, Part::kMaster, std::move(master));
  return {};
}

base::Result<std::vector<std::pair<Part, base::Fd>>> Core::Parts() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<Part, int>> parts;
  in_.AddParts(parts);
  out_.AddParts(parts);
  err_.AddParts(parts);
  if (master_ && master_->open()) parts.emplace_back(Part::kMaster, master_->fd());
  std::vector<std::pair<Part, base::Fd>> copies;
  for (const auto& [part, fd] : parts) {
    base::Fd copy(fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!copy) return base::ErrnoError("dup", name_);
    copies.emplace_back(part, std::move(copy));
  }
  return copies;
}

void Core::Closed(Part part) {
  if (!down_ && closed_) closed_(part);
}

void Core::Start() {
  BlockSigpipe();
  const std::lock_guard lock(mutex_);
  if (down_) return;
  // Without a watch nothing would ever move; ending the stream lets the process and the clients see it.
  if (auto watched = in_.Watch(); !watched) {
    base::LogError("stdin can't be watched", watched.error(), {{"process", name_}});
    in_.Close();
  }
  for (Output* output : {&out_, &err_}) {
    if (auto watched = output->Watch(); !watched) {
      base::LogError("output can't be watched", watched.error(), {{"process", name_}});
      output->Close();
    }
  }
}

void Core::Resume() {
  Start();
  if (master_) WatchTerminal();
  Pump();
}

base::Result<> Core::AttachTerminal(base::Fd master) {
  {
    const std::lock_guard lock(mutex_);
    if (!terminal_) return base::MakeError(EINVAL, "attach terminal", name_, "the process has pipes");
    if (master_) return base::MakeError(EALREADY, "attach terminal", name_);
    GCS_TRY(MakeNonBlocking(master.get(), name_));
    if (isatty(master.get()) == 0) return base::ErrnoError("attach terminal", name_);
    master_.emplace(this, Part::kMaster, std::move(master));
    if (auto sized = SetWindowSize(); !sized) {
      master_.reset();
      return sized;
    }
  }
  loop_->Post([self = shared_from_this()] { self->WatchTerminal(); });
  return {};
}

void Core::WatchTerminal() {
  {
    const std::lock_guard lock(mutex_);
    if (down_) return;
    if (auto watched = master_->Watch(EPOLLIN | EPOLLOUT); !watched) {
      base::LogError("terminal can't be watched", watched.error(), {{"process", name_}});
      in_.Close();
      out_.Close();
      return;
    }
    in_.UseTerminal(&*master_);
    out_.UseTerminal(&*master_);
  }
  Pump();
}

base::Result<> Core::Resize(uint32_t width, uint32_t height) {
  if (!terminal_) return base::MakeError(ENOTTY, "resize", name_, "the process has no terminal");
  if (width == 0 || height == 0 || width > UINT16_MAX || height > UINT16_MAX) {
    return base::MakeError(EINVAL, "resize", name_,
                           "no window size: " + std::to_string(width) + "x" + std::to_string(height));
  }
  const std::lock_guard lock(mutex_);
  width_ = static_cast<uint16_t>(width);
  height_ = static_cast<uint16_t>(height);
  return SetWindowSize();
}

base::Result<> Core::SetWindowSize() {
  if (!master_ || !master_->open() || width_ == 0 || height_ == 0) return {};
  winsize size{};
  size.ws_col = width_;
  size.ws_row = height_;
  if (ioctl(master_->fd(), TIOCSWINSZ, &size) != 0) return base::ErrnoError("ioctl TIOCSWINSZ", name_);
  return {};
}

base::Result<std::unique_ptr<Session>> Core::Attach(AttachOptions options) {
  const std::lock_guard lock(mutex_);
  const uint64_t id = next_client_++;
  if (options.want_stdin) {
    if (in_.mode() != Mode::kStream)
      return base::MakeError(EINVAL, "attach", name_, "stdin is not a kept stream");
    if (stdin_holder_ != 0) return base::MakeError(EBUSY, "attach", name_, "another client holds stdin");
  }
  for (const OutputSelect& select : options.outputs) {
    Output* output = Find(select.stream);
    auto added = output == nullptr ? base::MakeError(EINVAL, "attach", name_, "stdin is no output")
                                   : output->AddReader(id, select.offset, options.manual_ack, name_);
    if (!added) {
      out_.RemoveReader(id);
      err_.RemoveReader(id);
      return std::unexpected(std::move(added).error());
    }
  }
  if (options.want_stdin) stdin_holder_ = id;
  if (options.wake) {
    clients_.push_back({id, std::make_shared<const std::function<void()>>(std::move(options.wake))});
  }
  if (out_.WantsPump() || err_.WantsPump()) PumpSoon();
  return std::unique_ptr<Session>(new Session(shared_from_this(), id));
}

void Core::Detach(uint64_t session) {
  const std::lock_guard lock(mutex_);
  if (stdin_holder_ == session) stdin_holder_ = 0;
  out_.RemoveReader(session);
  err_.RemoveReader(session);
  std::erase_if(clients_, [session](const Client& client) { return client.id == session; });
  // Others may have acknowledged what only this one still wanted.
  if (out_.WantsPump() || err_.WantsPump()) PumpSoon();
}

Output* Core::Find(Stream stream) {
  if (stream == Stream::kStdout) return &out_;
  if (stream == Stream::kStderr) return &err_;
  return nullptr;
}

base::Result<OutputChunk> Core::Read(uint64_t session, Stream stream, size_t max) {
  const std::lock_guard lock(mutex_);
  Output* output = Find(stream);
  if (output == nullptr) return base::MakeError(EINVAL, "read", name_, "stdin is no output");
  auto chunk = output->Read(session, max, name_);
  if (output->WantsPump()) PumpSoon();
  return chunk;
}

base::Result<> Core::Ack(uint64_t session, Stream stream, uint64_t offset) {
  const std::lock_guard lock(mutex_);
  Output* output = Find(stream);
  if (output == nullptr) return base::MakeError(EINVAL, "acknowledge", name_, "stdin is no output");
  GCS_TRY(output->Ack(session, offset, name_));
  if (output->WantsPump()) PumpSoon();
  return {};
}

base::Result<uint64_t> Core::WriteStdin(uint64_t session, uint64_t offset, std::string_view data,
                                        bool close) {
  const std::lock_guard lock(mutex_);
  if (stdin_holder_ != session)
    return base::MakeError(EINVAL, "write stdin", name_, "this client doesn't hold stdin");
  auto received = in_.Write(offset, data, close, name_);
  if (received) PumpSoon();
  return received;
}

StdinState Core::Stdin() const {
  const std::lock_guard lock(mutex_);
  return in_.State();
}

OutputState Core::StateOf(Stream stream) const {
  const std::lock_guard lock(mutex_);
  return stream == Stream::kStderr ? err_.State() : out_.State();
}

void Core::ProcessExited(std::function<void()> drained) {
  {
    const std::lock_guard lock(mutex_);
    if (down_) return;
    in_.ProcessExited();
    out_.ProcessExited();
    err_.ProcessExited();
    drained_ = std::move(drained);
    drain_timer_ = loop_->After(drain_limit_ns_, [this] {
      drain_timer_ = 0;
      TellDrained();
    });
    wake_all_ = true;  // stdin is closed now, and a terminal that never came has ended
  }
  Pump();
}

void Core::TellDrained() {
  if (drain_timer_ != 0) loop_->Cancel(drain_timer_);
  drain_timer_ = 0;
  if (const auto drained = std::exchange(drained_, nullptr)) drained();
}

void Core::Pump() {
  std::vector<Wake> wakes;
  bool settled = false;
  {
    const std::lock_guard lock(mutex_);
    if (down_) return;
    const bool in = in_.Pump();
    const bool out = out_.Pump();
    const bool err = err_.Pump();
    const bool all = std::exchange(wake_all_, false);
    CollectWakes(in || all, out || all, err || all, wakes);
    settled = drained_ && out_.Settled() && err_.Settled();
  }
  for (const Wake& wake : wakes) (*wake)();
  if (settled) TellDrained();
}

void Core::CollectWakes(bool in, bool out, bool err, std::vector<Wake>& wakes) const {
  if (!in && !out && !err) return;
  for (const Client& client : clients_) {
    if ((in && client.id == stdin_holder_) || (out && out_.HasReader(client.id)) ||
        (err && err_.HasReader(client.id))) {
      wakes.push_back(client.wake);
    }
  }
}

void Core::PumpSoon() {
  if (pump_posted_.exchange(true)) return;
  loop_->Post([self = shared_from_this()] {
    self->pump_posted_ = false;
    self->Pump();
  });
}

void Core::PumpAfterPause() {
  if (pause_timer_ != 0) return;
  pause_timer_ = loop_->After(kPauseNs, [this] {
    pause_timer_ = 0;
    Pump();
  });
}

void Core::Shutdown() {
  std::vector<Wake> wakes;
  {
    const std::lock_guard lock(mutex_);
    down_ = true;
    in_.Close();
    out_.Close();
    err_.Close();
    if (master_) master_->Close();
    CollectWakes(true, true, true, wakes);
  }
  if (drain_timer_ != 0) loop_->Cancel(drain_timer_);
  if (pause_timer_ != 0) loop_->Cancel(pause_timer_);
  drain_timer_ = pause_timer_ = 0;
  drained_ = nullptr;
  for (const Wake& wake : wakes) (*wake)();
}

}  // namespace gcs::stdio
