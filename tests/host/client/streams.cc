// SPDX-License-Identifier: Apache-2.0
// The server's streams that a cursor continues, and the tar streams, which nothing can.
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "gcs/v1/events.grpc.pb.h"
#include "gcs/v1/guest.grpc.pb.h"
#include "host/client/link.h"

namespace gcs::host {

namespace {

constexpr size_t kTarPiece = 256 << 10;

// Reads to the end of the stream that `open` starts, again from the cursor on a new connection when one is
// lost.
template <typename Record, typename Open, typename Handle>
CallResult<> Follow(Link& link, uint64_t& cursor, const char* what, const Open& open, const Handle& handle) {
  Losses losses;
  while (true) {
    auto connection = link.Get(0);
    if (!connection) return std::unexpected(std::move(connection).error());
    const int64_t begin = base::MonotonicNs();
    grpc::ClientContext context;
    auto stream = open(*connection, context);
    Record record;
    bool stopped = false;
    while (!stopped && stream->Read(&record)) {
      losses = {};
      cursor = record.sequence();
      stopped = !handle(record);
    }
    if (stopped) {
      context.TryCancel();
      stream->Finish();
      return {};
    }
    const grpc::Status status = stream->Finish();
    if (status.ok()) return {};
    if (!IsLost(status) || !losses.Retry(link, connection->generation, begin)) {
      return std::unexpected(ToCallError(status, what));
    }
  }
}

}  // namespace

CallResult<> Client::WatchEvents(uint64_t& cursor, bool follow,
                                 const std::function<bool(const v1::Event&)>& handle) {
  const auto open = [&](const Link::Connection& connection, grpc::ClientContext& context) {
    v1::WatchEventsRequest request;
    request.set_after_sequence(cursor);
    request.set_no_follow(!follow);
    return v1::EventService::NewStub(connection.channel)->Watch(&context, request);
  };
  return Follow<v1::Event>(*link_, cursor, "EventService.Watch", open, handle);
}

CallResult<> Client::ReadLogs(uint64_t& cursor, bool follow,
                              const std::function<bool(const v1::LogRecord&)>& handle) {
  const auto open = [&](const Link::Connection& connection, grpc::ClientContext& context) {
    v1::LogsRequest request;
    request.set_after_sequence(cursor);
    request.set_follow(follow);
    return v1::GuestService::NewStub(connection.channel)->Logs(&context, request);
  };
  return Follow<v1::LogRecord>(*link_, cursor, "GuestService.Logs", open, handle);
}

CallResult<v1::CopyInResponse> Client::CopyIn(const std::string& container_id, const std::string& path,
                                              const std::function<base::Result<std::string>()>& read) {
  auto connection = link_->Get(0);
  if (!connection) return std::unexpected(std::move(connection).error());
  grpc::ClientContext context;
  v1::CopyInResponse response;
  const auto stream = v1::GuestService::NewStub(connection->channel)->CopyIn(&context, &response);
  v1::CopyInRequest message;
  message.mutable_open()->set_request_id(NewUuid());
  message.mutable_open()->set_container_id(container_id);
  message.mutable_open()->set_path(path);
  bool going = stream->Write(message);
  while (going) {
    auto piece = read();
    if (!piece) {
      context.TryCancel();
      stream->Finish();
      return std::unexpected(ToCallError(std::move(piece).error()));
    }
    if (piece->empty()) break;
    for (size_t at = 0; going && at < piece->size(); at += kTarPiece) {
      message.set_data(piece->substr(at, kTarPiece));
      going = stream->Write(message);
    }
  }
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  if (!status.ok()) return std::unexpected(ToCallError(status, "GuestService.CopyIn"));
  return response;
}

CallResult<> Client::CopyOut(const std::string& container_id, const std::string& path,
                             const std::function<base::Result<>(const std::string&)>& write) {
  auto connection = link_->Get(0);
  if (!connection) return std::unexpected(std::move(connection).error());
  grpc::ClientContext context;
  v1::CopyOutRequest request;
  request.set_container_id(container_id);
  request.set_path(path);
  const auto stream = v1::GuestService::NewStub(connection->channel)->CopyOut(&context, request);
  v1::CopyOutResponse piece;
  while (stream->Read(&piece)) {
    auto written = write(piece.data());
    if (!written) {
      context.TryCancel();
      stream->Finish();
      return std::unexpected(ToCallError(std::move(written).error()));
    }
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) return std::unexpected(ToCallError(status, "GuestService.CopyOut"));
  return {};
}

}  // namespace gcs::host
