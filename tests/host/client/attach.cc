// SPDX-License-Identifier: Apache-2.0
#include "host/client/attach.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "gcs/v1/stdio.grpc.pb.h"
#include "host/client/link.h"

namespace gcs::host {

namespace {

using Stream = grpc::ClientReaderWriter<v1::AttachRequest, v1::AttachResponse>;

// Input that the process has not accepted yet. Well below the 1 MiB past which the agent reads no message of
// ours.
constexpr size_t kWindow = 256 << 10;
constexpr size_t kPiece = 64 << 10;
// How long the agent may take to notice that the connection which held stdin is gone.
constexpr int64_t kStdinHandOverNs = 60 * base::kNsPerSec;

}  // namespace

struct AttachSession::State {
  Client* client = nullptr;
  AttachOptions options;

  std::mutex mutex;
  std::condition_variable changed;
  // Outputs: next offset wanted.
  std::map<v1::Stream, uint64_t> offsets;
  std::map<v1::Stream, bool> ended;
  // Input: bytes from `input_base` on that may have to be sent again.
  std::string input;
  uint64_t input_base = 0;
  bool close_input = false;
  bool input_closed = false;  // by the process
  uint32_t width = 0, height = 0;
  bool attached = false;
  bool terminal = false;
  bool stopping = false;
  bool finished = false;
  std::optional<CallError> failure;
  uint64_t reconnects = 0;
  uint64_t lost_bytes = 0;

  // The conversation, owned by Run; others may cancel it.
  grpc::ClientContext* context = nullptr;

  std::thread thread;

  void Run();
  // One connection's conversation: the status it ended with.
  grpc::Status Converse(Stream& stream, bool first);
  void Handle(const v1::AttachResponse& response, std::optional<v1::AttachRequest>& answer);
  void SendInput(Stream& stream, std::mutex& writing, const bool& over);
  bool AllEnded() const {
    return !ended.empty() && std::ranges::all_of(ended, [](const auto& entry) { return entry.second; });
  }
  // Nothing is left that a further conversation could carry. A process may close its outputs and go on
  // reading.
  bool Over() const { return AllEnded() && (!options.in || input_closed || (close_input && input.empty())); }
};

// Under no lock.
void AttachSession::State::Handle(const v1::AttachResponse& response,
                                  std::optional<v1::AttachRequest>& answer) {
  if (response.has_attached()) {
    const std::lock_guard lock(mutex);
    attached = true;
    terminal = response.attached().terminal();
    const uint64_t at = response.attached().stdin_offset();
    if (options.in && at >= input_base) {
      const size_t taken = std::min<uint64_t>(at - input_base, input.size());
      input.erase(0, taken);
      // A second client of the same process begins where the first ended.
      input_base = at;
    }
    changed.notify_all();
    return;
  }
  if (response.has_stdin()) {
    const std::lock_guard lock(mutex);
    const uint64_t at = response.stdin().accepted_offset();
    if (at > input_base) {
      const size_t taken = std::min<uint64_t>(at - input_base, input.size());
      input.erase(0, taken);
      input_base += taken;
    }
    input_closed = input_closed || response.stdin().closed();
    changed.notify_all();
    return;
  }
  if (!response.has_output()) return;
  const v1::OutputData& output = response.output();
  std::string_view data = output.data();
  uint64_t expected = 0;
  {
    const std::lock_guard lock(mutex);
    expected = offsets[output.stream()];
    if (output.offset() > expected) lost_bytes += output.offset() - expected;
  }
  if (output.offset() < expected) {
    data.remove_prefix(std::min<uint64_t>(expected - output.offset(), data.size()));
  }
  if (!data.empty() && options.on_output) options.on_output(output.stream(), data);
  const uint64_t end = std::max(expected, output.offset() + output.data().size());
  {
    const std::lock_guard lock(mutex);
    offsets[output.stream()] = end;
    if (output.end()) ended[output.stream()] = true;
    changed.notify_all();
  }
  if (!output.data().empty()) {
    answer.emplace();
    answer->mutable_ack()->set_stream(output.stream());
    answer->mutable_ack()->set_offset(end);
  }
}

// The writer's side of one conversation: input, half-close, window sizes.
void AttachSession::State::SendInput(Stream& stream, std::mutex& writing, const bool& over) {
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return attached || over || stopping; });
  uint64_t sent = input_base;
  bool closed = false;
  uint32_t told_width = 0;
  uint32_t told_height = 0;
  while (!over && !stopping) {
    v1::AttachRequest message;
    sent = std::max(sent, input_base);
    const uint64_t end = input_base + input.size();
    if (options.in && !input_closed && sent < end) {
      const size_t size = std::min<uint64_t>(kPiece, end - sent);
      message.mutable_stdin()->set_offset(sent);
      message.mutable_stdin()->set_data(input.substr(sent - input_base, size));
      sent += size;
    } else if (options.in && close_input && !closed && !input_closed) {
      message.mutable_stdin()->set_offset(sent);
      message.mutable_stdin()->set_close(true);
      closed = true;
    } else if (width != 0 && (width != told_width || height != told_height)) {
      message.mutable_resize()->set_width(width);
      message.mutable_resize()->set_height(height);
      told_width = width;
      told_height = height;
    } else {
      changed.wait(lock);
      continue;
    }
    lock.unlock();
    {
      const std::lock_guard write_lock(writing);
      // A failure is seen by the reader, too.
      if (!stream.Write(message)) return;
    }
    lock.lock();
  }
}

grpc::Status AttachSession::State::Converse(Stream& stream, bool first) {
  v1::AttachRequest open;
  {
    const std::lock_guard lock(mutex);
    attached = false;
    open.mutable_open()->set_container_id(options.container_id);
    open.mutable_open()->set_process_id(options.process_id);
    open.mutable_open()->set_stdin(options.in && !input_closed);
    open.mutable_open()->set_manual_ack(true);
    for (const auto& [which, offset] : offsets) {
      if (ended[which]) continue;
      v1::OutputSelect* select = open.mutable_open()->add_outputs();
      select->set_stream(which);
      select->set_offset(offset);
    }
    if (!first) ++reconnects;
  }
  std::mutex writing;
  bool over = false;
  if (stream.Write(open)) {
    std::thread writer([&] { SendInput(stream, writing, over); });
    v1::AttachResponse response;
    while (stream.Read(&response)) {
      std::optional<v1::AttachRequest> answer;
      Handle(response, answer);
      if (answer) {
        const std::lock_guard write_lock(writing);
        // It fails when the agent has said all it had to and ended the call; what it said is still to be
        // read.
        stream.Write(*answer);
      }
      const std::lock_guard lock(mutex);
      if (stopping) break;
    }
    {
      const std::lock_guard lock(mutex);
      over = true;
      changed.notify_all();
    }
    writer.join();
  }
  while (true) {
    v1::AttachResponse rest;
    if (!stream.Read(&rest)) break;
  }
  return stream.Finish();
}

void AttachSession::State::Run() {
  int64_t busy_since = 0;
  bool first = true;
  int64_t lost_since = 0;
  while (true) {
    auto connection = client->link()->Get(0);
    if (!connection) {
      const std::lock_guard lock(mutex);
      failure = std::move(connection).error();
      break;
    }
    grpc::ClientContext call;
    grpc::Status status;
    {
      {
        const std::lock_guard lock(mutex);
        if (stopping) break;
        context = &call;
      }
      const auto stream = v1::StdioService::NewStub(connection->channel)->Attach(&call);
      status = Converse(*stream, first);
      const std::lock_guard lock(mutex);
      context = nullptr;
      if (stopping || Over()) break;
      if (attached) {
        first = false;
        busy_since = 0;
        lost_since = 0;
      }
    }
    const int64_t now = base::MonotonicNs();
    if (status.ok()) {
      // The agent ends a conversation only when all is told.
      const std::lock_guard lock(mutex);
      if (!ended.empty() && !AllEnded()) {
        failure =
            CallError{{"attach", EPROTO, options.container_id, "ended before the outputs did"}, 0, false};
      }
      break;
    }
    if (IsLost(status)) {
      client->link()->Broken(connection->generation);
      if (lost_since == 0) lost_since = now;
      if (now - lost_since < client->link()->options().reconnect_timeout_ms * base::kNsPerMs) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        continue;
      }
    } else if (status.error_code() == grpc::StatusCode::ABORTED && !first) {
      // The agent still believes in the connection that we lost.
      if (busy_since == 0) busy_since = now;
      if (now - busy_since < kStdinHandOverNs) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        continue;
      }
    }
    const std::lock_guard lock(mutex);
    failure = ToCallError(status, "StdioService.Attach");
    break;
  }
  const std::lock_guard lock(mutex);
  finished = true;
  changed.notify_all();
}

AttachSession::AttachSession(std::unique_ptr<State> state) : state_(std::move(state)) {}

CallResult<std::unique_ptr<AttachSession>> AttachSession::Open(Client& client, AttachOptions options) {
  auto state = std::make_unique<State>();
  state->client = &client;
  if (options.out) state->offsets[v1::STREAM_STDOUT] = 0;
  if (options.err) state->offsets[v1::STREAM_STDERR] = 0;
  for (const auto& [stream, offset] : state->offsets) state->ended[stream] = false;
  state->options = std::move(options);
  State* const raw = state.get();
  std::unique_ptr<AttachSession> session(new AttachSession(std::move(state)));
  raw->thread = std::thread([raw] { raw->Run(); });
  std::unique_lock lock(raw->mutex);
  raw->changed.wait(lock, [raw] { return raw->attached || raw->finished; });
  if (raw->failure && !raw->attached) return std::unexpected(*raw->failure);
  return session;
}

AttachSession::~AttachSession() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
    if (state_->context != nullptr) state_->context->TryCancel();
    state_->changed.notify_all();
  }
  if (state_->thread.joinable()) state_->thread.join();
}

bool AttachSession::Write(std::string_view data) {
  while (!data.empty()) {
    std::unique_lock lock(state_->mutex);
    state_->changed.wait(lock, [this] {
      return state_->input.size() < kWindow || state_->input_closed || state_->finished || state_->stopping;
    });
    if (state_->input_closed || state_->finished || state_->stopping) return false;
    const size_t size = std::min(data.size(), kWindow - state_->input.size());
    state_->input.append(data.substr(0, size));
    data.remove_prefix(size);
    state_->changed.notify_all();
  }
  return true;
}

void AttachSession::CloseStdin() {
  const std::lock_guard lock(state_->mutex);
  state_->close_input = true;
  state_->changed.notify_all();
}

void AttachSession::Resize(uint32_t width, uint32_t height) {
  const std::lock_guard lock(state_->mutex);
  state_->width = width;
  state_->height = height;
  state_->changed.notify_all();
}

CallResult<> AttachSession::WaitOutputs(int64_t timeout_ms) {
  std::unique_lock lock(state_->mutex);
  const auto done = [this] { return state_->finished || state_->AllEnded(); };
  if (timeout_ms == 0) {
    state_->changed.wait(lock, done);
  } else if (!state_->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), done)) {
    return std::unexpected(
        ToCallError(base::Error{"wait for output", ETIMEDOUT, state_->options.container_id, {}}));
  }
  if (state_->failure && !state_->AllEnded()) return std::unexpected(*state_->failure);
  return {};
}

bool AttachSession::terminal() const {
  const std::lock_guard lock(state_->mutex);
  return state_->terminal;
}
uint64_t AttachSession::reconnects() const {
  const std::lock_guard lock(state_->mutex);
  return state_->reconnects;
}
uint64_t AttachSession::lost_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->lost_bytes;
}

}  // namespace gcs::host
