// SPDX-License-Identifier: Apache-2.0
#include "host/gcsctl/console.h"

#include <limits.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace gcs::gcsctl {

namespace {

constexpr int kForwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH};
// As the first process of a pid namespace may ignore everything but SIGKILL.
constexpr int kInterruptsThatKill = 3;

sigset_t ForwardedSet() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kForwarded) sigaddset(&set, signal);
  return set;
}

// False: nobody reads any more, or `stop` has become readable.
bool WriteAll(int fd, std::string_view data, int stop) {
  while (!data.empty()) {
    std::array<pollfd, 2> fds = {pollfd{.fd = fd, .events = POLLOUT, .revents = 0},
                                 pollfd{.fd = stop, .events = POLLIN, .revents = 0}};
    if (poll(fds.data(), fds.size(), -1) < 0) continue;
    if (fds[1].revents != 0) return false;
    // A pipe that poll calls writable takes this much without blocking.
    const ssize_t n = write(fd, data.data(), std::min<size_t>(data.size(), PIPE_BUF));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return false;
    data.remove_prefix(n);
  }
  return true;
}

}  // namespace

base::Result<std::unique_ptr<RawTerminal>> RawTerminal::Enter(int fd) {
  termios saved{};
  if (tcgetattr(fd, &saved) != 0) return base::ErrnoError("tcgetattr");
  termios raw = saved;
  cfmakeraw(&raw);
  if (tcsetattr(fd, TCSANOW, &raw) != 0) return base::ErrnoError("tcsetattr");
  return std::unique_ptr<RawTerminal>(new RawTerminal(fd, saved));
}

RawTerminal::~RawTerminal() { tcsetattr(fd_, TCSADRAIN, &saved_); }

WindowSize TerminalSize() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO}) {
    winsize size{};
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col != 0) return {size.ws_col, size.ws_row};
  }
  return {};
}

void BlockSignals() {
  const sigset_t set = ForwardedSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

struct Console::State {
  host::Client* client = nullptr;
  ConsoleOptions options;
  base::Fd event;  // all is over, or the output has nowhere to go
  base::Fd stop;   // the reader of our stdin and the writer of our outputs are to end
  base::Fd signals;
  std::unique_ptr<RawTerminal> raw;
  std::unique_ptr<host::AttachSession> session;
  std::atomic<bool> broken_output = false;
  std::atomic<bool> ended = false;     // the process
  std::atomic<bool> finished = false;  // it, and all its output is written; what follows is set
  host::CallResult<v1::WaitProcessResponse> exit;
  host::CallResult<> outputs;
  std::thread waiter, reader;
  int interrupts = 0;
  bool interrupted = false;  // while output waited for its reader after the process's end

  static void Ring(const base::Fd& eventfd) {
    const uint64_t one = 1;
    if (write(eventfd.get(), &one, sizeof one) < 0) perror("gcsctl: eventfd");
  }
  void Wait();
  void ReadInput();
  void OnSignal(int signal);
  void Send(int signal);
};

void Console::State::ReadInput() {
  std::vector<char> buffer(64 << 10);
  while (true) {
    std::array<pollfd, 2> fds = {pollfd{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0},
                                 pollfd{.fd = stop.get(), .events = POLLIN, .revents = 0}};
    if (poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) break;
    if (fds[1].revents != 0) return;
    if (fds[0].revents == 0) continue;
    const ssize_t n = read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) break;
    if (!session->Write({buffer.data(), static_cast<size_t>(n)})) return;
  }
  session->CloseStdin();
}

void Console::State::Send(int signal) {
  v1::SignalProcessRequest request;
  request.set_container_id(options.container_id);
  request.set_process_id(options.process_id);
  request.set_signal(signal);
  const auto sent = client->Call(request);
  // It may have ended just now.
  if (!sent && sent.error().err != ESRCH && sent.error().err != ENOENT) {
    fprintf(stderr, "gcsctl: %s\r\n", sent.error().ToString().c_str());
  }
}

void Console::State::Wait() {
  v1::WaitProcessRequest request;
  request.set_container_id(options.container_id);
  request.set_process_id(options.process_id);
  exit = client->Call(request, {.timeout_ms = 0});
  ended = true;
  // A reader that pauses may take its time: the agent ends the outputs, a lost connection the session.
  if (exit) outputs = session->WaitOutputs(0);
  finished = true;
  Ring(event);
}

void Console::State::OnSignal(int signal) {
  if (ended) {
    if (signal != SIGINT && signal != SIGTERM && signal != SIGHUP && signal != SIGQUIT) return;
    interrupted = true;
    Ring(stop);
    return;
  }
  if (signal == SIGWINCH) {
    const WindowSize size = TerminalSize();
    if (options.terminal && size.width != 0) session->Resize(size.width, size.height);
    return;
  }
  if ((signal == SIGINT || signal == SIGTERM) && ++interrupts >= kInterruptsThatKill) signal = SIGKILL;
  Send(signal);
}

Console::Console(std::unique_ptr<State> state) : state_(std::move(state)) {}

host::CallResult<std::unique_ptr<Console>> Console::Attach(host::Client& client, ConsoleOptions options) {
  auto state = std::make_unique<State>();
  State* const raw = state.get();
  state->client = &client;
  state->options = std::move(options);
  state->event.Reset(eventfd(0, EFD_CLOEXEC));
  state->stop.Reset(eventfd(0, EFD_CLOEXEC));
  const sigset_t set = ForwardedSet();
  state->signals.Reset(signalfd(-1, &set, SFD_CLOEXEC));
  host::AttachOptions attach;
  attach.container_id = state->options.container_id;
  attach.process_id = state->options.process_id;
  attach.in = state->options.in;
  attach.err = state->options.err;
  attach.on_output = [raw](v1::Stream stream, std::string_view data) {
    if (raw->broken_output) return;
    if (WriteAll(stream == v1::STREAM_STDERR ? STDERR_FILENO : STDOUT_FILENO, data, raw->stop.get())) return;
    raw->broken_output = true;
    State::Ring(raw->event);
  };
  GCS_ASSIGN(state->session, host::AttachSession::Open(client, std::move(attach)));
  return std::unique_ptr<Console>(new Console(std::move(state)));
}

Console::~Console() {
  State::Ring(state_->stop);
  // A writer that waits for room is woken by the process's end or by the session's failure.
  if (state_->reader.joinable()) state_->reader.join();
  if (state_->waiter.joinable()) state_->waiter.join();
}

host::CallResult<v1::ExitStatus> Console::Run() {
  State& state = *state_;
  if (state.options.terminal && state.options.in && isatty(STDIN_FILENO) == 1) {
    auto raw = RawTerminal::Enter(STDIN_FILENO);
    if (raw) state.raw = std::move(*raw);
  }
  if (state.options.terminal) state.OnSignal(SIGWINCH);
  if (state.options.in) state.reader = std::thread([&state] { state.ReadInput(); });
  state.waiter = std::thread([&state] { state.Wait(); });
  bool killed = false;
  while (!state.finished) {
    std::array<pollfd, 2> fds = {pollfd{.fd = state.signals.get(), .events = POLLIN, .revents = 0},
                                 pollfd{.fd = state.event.get(), .events = POLLIN, .revents = 0}};
    if (poll(fds.data(), fds.size(), -1) < 0) continue;
    if (fds[0].revents != 0) {
      signalfd_siginfo info{};
      if (read(state.signals.get(), &info, sizeof info) == sizeof info) {
        state.OnSignal(static_cast<int>(info.ssi_signo));
      }
    }
    if (fds[1].revents != 0 && !state.finished) {
      uint64_t count = 0;
      if (read(state.event.get(), &count, sizeof count) < 0) break;
      // Nobody reads us any more ("| head"): what would get SIGPIPE here ends there.
      if (state.broken_output && !killed && !state.ended) {
        killed = true;
        state.Send(SIGKILL);
      }
    }
  }
  state.raw.reset();
  if (!state.exit) return std::unexpected(state.exit.error());
  if (!state.outputs) return std::unexpected(state.outputs.error());
  if (state.interrupted && state.broken_output) {
    return std::unexpected(
        host::CallError{{"write output", EINTR, state.options.container_id, "not all of it"}, 0, false});
  }
  return state.exit->exit();
}

}  // namespace gcs::gcsctl
