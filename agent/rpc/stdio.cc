// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gcs/v1/stdio.grpc.pb.h"
#include "guest/containers.h"
#include "rpc/services.h"
#include "rpc/status.h"
#include "stdio/process_io.h"

namespace gcs::rpc {

namespace {

namespace v1 = gcs::v1;

constexpr size_t kMaxChunk = 64 << 10;  // OutputData's promise
// Input that this client has sent and the process's queue has not yet taken. Past it no message of the client
// is read, and HTTP/2's flow control stops the client.
constexpr size_t kMaxPendingInput = 1 << 20;

bool IsOutput(v1::Stream stream) { return stream == v1::STREAM_STDOUT || stream == v1::STREAM_STDERR; }

// One client's conversation. gRPC allows one read and one write at a time: `reading_` and `writing_` hold
// them, Step starts what is due. Everything below the lock is bounded work, as Session never blocks.
class Attachment final : public grpc::ServerBidiReactor<v1::AttachRequest, v1::AttachResponse> {
 public:
  static Attachment* Start(Core* core, guest::Containers* containers, CallPtr call) {
    auto attachment = std::shared_ptr<Attachment>(new Attachment(core, containers, std::move(call)));
    attachment->self_ = attachment;
    attachment->Step();
    return attachment.get();
  }

  void OnReadDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      reading_ = false;
      if (!ok) {
        client_done_ = true;
      } else if (auto handled = Handle(); !handled) {
        if (!failure_) failure_ = std::move(handled).error();
      }
    }
    Step();
  }

  void OnWriteDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      writing_ = false;
      if (!ok) cancelled_ = true;
    }
    Step();
  }

  void OnCancel() override {
    {
      const std::lock_guard lock(mutex_);
      cancelled_ = true;
    }
    Step();
  }

  void OnDone() override {
    call_->LogEnd(end_, false);
    const std::shared_ptr<Attachment> last = std::move(self_);
  }

 private:
  struct OutputView {
    stdio::Stream stream = stdio::Stream::kStdout;
    bool ended = false;
  };
  struct Input {
    uint64_t offset = 0;
    std::string data;
    bool close = false;
  };

  Attachment(Core* core, guest::Containers* containers, CallPtr call)
      : core_(*core), containers_(*containers), call_(std::move(call)) {}

  // With mutex_ held, from here to Finished.

  base::Result<> Handle() {
    switch (request_.message_case()) {
      case v1::AttachRequest::kOpen:
        return Open(request_.open());
      case v1::AttachRequest::kStdin:
        if (session_ == nullptr) break;
        if (!with_stdin_) return base::MakeError(EINVAL, "attach", "stdin", "open has not asked for stdin");
        pending_bytes_ += request_.stdin().data().size();
        pending_.push_back({request_.stdin().offset(), std::move(*request_.mutable_stdin()->mutable_data()),
                            request_.stdin().close()});
        return {};
      case v1::AttachRequest::kAck:
        if (session_ == nullptr) break;
        if (!IsOutput(request_.ack().stream())) return base::MakeError(EINVAL, "attach", "ack.stream");
        return session_->Ack(static_cast<stdio::Stream>(request_.ack().stream()), request_.ack().offset());
      case v1::AttachRequest::kResize:
        if (session_ == nullptr) break;
        return containers_.Resize(container_id_, process_id_, request_.resize().width(),
                                  request_.resize().height());
      case v1::AttachRequest::MESSAGE_NOT_SET:
        return base::MakeError(EINVAL, "attach", {}, "a message of unknown kind");
    }
    return base::MakeError(EINVAL, "attach", {}, "the first message must be `open`");
  }

  base::Result<> Open(const v1::AttachOpen& open) {
    if (session_ != nullptr) return base::MakeError(EINVAL, "attach", "open", "a second `open`");
    container_id_ = open.container_id();
    process_id_ = open.process_id();
    with_stdin_ = open.stdin();
    call_->SetSubject({}, container_id_);
    stdio::AttachOptions options;
    for (const v1::OutputSelect& select : open.outputs()) {
      const auto stream = static_cast<stdio::Stream>(select.stream());
      if (!IsOutput(select.stream())) return base::MakeError(EINVAL, "attach", "outputs", "no output stream");
      for (const OutputView& other : outputs_) {
        if (other.stream == stream) return base::MakeError(EINVAL, "attach", "outputs", "a stream twice");
      }
      options.outputs.push_back({stream, select.offset()});
      outputs_.push_back({stream, false});
    }
    options.want_stdin = open.stdin();
    options.manual_ack = open.manual_ack();
    options.wake = [weak = std::weak_ptr<Attachment>(self_)] {
      if (const auto self = weak.lock()) self->Wake(self);
    };
    auto session = containers_.Attach(container_id_, process_id_, std::move(options));
    if (!session) {
      // The contract's code for a stdin that another client holds, which waiting may cure.
      if (session.error().err == EBUSY) failure_code_ = grpc::StatusCode::ABORTED;
      return std::unexpected(std::move(session).error());
    }
    session_ = *std::move(session);
    return {};
  }

  // Gives pending input to the process, as much as it takes.
  base::Result<> FlushInput() {
    while (!pending_.empty()) {
      Input& input = pending_.front();
      GCS_ASSIGN(const uint64_t received, session_->WriteStdin(input.offset, input.data, input.close));
      const uint64_t end = input.offset + input.data.size();
      if (received < end) {
        if (received > input.offset) {
          const size_t taken = received - input.offset;
          input.data.erase(0, taken);
          input.offset = received;
          pending_bytes_ -= taken;
        }
        return {};
      }
      closed_ = closed_ || input.close;
      pending_bytes_ -= input.data.size();
      pending_.pop_front();
    }
    return {};
  }

  // Fills `response_` with what is due; false if nothing is.
  base::Result<bool> NextMessage() {
    if (!greeted_) {
      greeted_ = true;
      told_ = session_->Stdin();
      response_.mutable_attached()->set_stdin_offset(told_.received);
      response_.mutable_attached()->set_terminal(session_->terminal());
      return true;
    }
    const stdio::StdinState state = session_->Stdin();
    if (with_stdin_ && (state.accepted != told_.accepted || state.closed != told_.closed)) {
      told_ = state;
      response_.mutable_stdin()->set_accepted_offset(state.accepted);
      response_.mutable_stdin()->set_closed(state.closed);
      return true;
    }
    for (size_t i = 0; i < outputs_.size(); ++i) {
      OutputView& output = outputs_[next_output_++ % outputs_.size()];  // in turn, so that neither starves
      if (output.ended) continue;
      GCS_ASSIGN(stdio::OutputChunk chunk, session_->Read(output.stream, kMaxChunk));
      if (chunk.data.empty() && !chunk.end) continue;
      output.ended = chunk.end;
      v1::OutputData* out = response_.mutable_output();
      out->set_stream(static_cast<v1::Stream>(output.stream));
      out->set_offset(chunk.offset);
      out->set_data(std::move(chunk.data));
      out->set_end(chunk.end);
      return true;
    }
    return false;
  }

  // Every end is told, and no input is left to be given.
  bool Finished() const {
    if (!std::ranges::all_of(outputs_, &OutputView::ended)) return false;
    if (!with_stdin_ || told_.closed || (client_done_ && pending_.empty())) return true;
    return closed_ && pending_.empty() && told_.accepted == session_->Stdin().received;
  }

  std::optional<grpc::Status> StepLocked() {
    if (cancelled_) {
      return writing_ ? std::nullopt
                      : std::optional(grpc::Status(grpc::StatusCode::CANCELLED, "cancelled by the client"));
    }
    if (session_ != nullptr && !failure_) {
      if (auto flushed = FlushInput(); !flushed) failure_ = std::move(flushed).error();
    }
    if (failure_) return writing_ ? std::nullopt : std::optional(FailureStatus());
    if (session_ == nullptr) {
      return client_done_ ? std::optional(ToStatus({"attach", EINVAL, {}, "no `open` before the end"}))
                          : std::nullopt;
    }
    if (writing_) return std::nullopt;
    response_.Clear();
    auto next = NextMessage();
    if (!next) {
      failure_ = std::move(next).error();
      return FailureStatus();
    }
    if (*next) {
      writing_ = true;
      return std::nullopt;
    }
    return Finished() ? std::optional(grpc::Status::OK) : std::nullopt;
  }

  grpc::Status FailureStatus() const {
    return failure_code_ ? ToStatus(*failure_, *failure_code_) : ToStatus(*failure_);
  }

  // Without the lock.

  void Wake(const std::shared_ptr<Attachment>& self) {
    if (woken_.exchange(true)) return;
    core_.quick->Post([self] { self->Step(); });
  }

  void Step() {
    std::unique_lock lock(mutex_);
    woken_ = false;
    if (finished_) return;
    const bool was_writing = writing_;
    if (const auto end = StepLocked()) {
      finished_ = true;
      end_ = *end;
      session_.reset();
      lock.unlock();
      Finish(end_);
      return;
    }
    // Started under the lock, so that no other thread's Finish comes between; gRPC never calls back from
    // inside.
    if (writing_ && !was_writing) StartWrite(&response_);
    if (!reading_ && !client_done_ && !failure_ && pending_bytes_ < kMaxPendingInput) {
      reading_ = true;
      StartRead(&request_);
    }
  }

  Core& core_;
  guest::Containers& containers_;
  const CallPtr call_;
  std::shared_ptr<Attachment> self_;  // until OnDone
  std::atomic<bool> woken_ = false;

  std::mutex mutex_;
  v1::AttachRequest request_;    // gRPC's while reading_
  v1::AttachResponse response_;  // gRPC's while writing_
  bool reading_ = false;
  bool writing_ = false;
  bool finished_ = false;
  bool cancelled_ = false;
  bool client_done_ = false;  // the client has ended its side
  std::optional<base::Error> failure_;
  std::optional<grpc::StatusCode> failure_code_;
  grpc::Status end_;

  std::string container_id_;
  std::string process_id_;
  std::unique_ptr<stdio::Session> session_;
  std::vector<OutputView> outputs_;
  size_t next_output_ = 0;
  bool with_stdin_ = false;
  bool closed_ = false;  // the client's `close` was taken
  bool greeted_ = false;
  stdio::StdinState told_;
  std::deque<Input> pending_;
  size_t pending_bytes_ = 0;
};

class StdioService final : public v1::StdioService::CallbackService {
 public:
  StdioService(Core* core, guest::Containers* containers) : core_(*core), containers_(*containers) {}

  grpc::ServerBidiReactor<v1::AttachRequest, v1::AttachResponse>* Attach(
      grpc::CallbackServerContext* context) override {
    return Attachment::Start(&core_, &containers_,
                             std::make_shared<Call>("StdioService.Attach", Access::kRead, *context));
  }

 private:
  Core& core_;
  guest::Containers& containers_;
};

}  // namespace

BuiltService MakeStdioService(Core* core, guest::Containers* containers) {
  return {std::make_unique<StdioService>(core, containers), {"StdioService.Attach"}};
}

}  // namespace gcs::rpc
