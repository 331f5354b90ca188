// SPDX-License-Identifier: Apache-2.0
#include "host/client/client.h"

#include <fcntl.h>
#include <grpcpp/generic/generic_stub.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <future>
#include <utility>

#include "base/clock.h"
#include "host/client/link.h"

namespace gcs::host {

namespace {

// Longer deadlines overflow gRPC's clock conversions.
constexpr int64_t kLongestTimeoutMs = int64_t{365} * 24 * 3'600'000;

grpc::ByteBuffer Pack(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return {&slice, 1};
}

std::string Unpack(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return {};
  std::string out;
  for (const grpc::Slice& slice : slices) {
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return out;
}

grpc::Status CallOnce(grpc::Channel& channel, const std::string& path, const std::string& request,
                      std::string& response, int64_t deadline_ns) {
  grpc::ClientContext context;
  if (deadline_ns != 0) {
    const int64_t left = std::max<int64_t>(deadline_ns - base::MonotonicNs(), 0);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::nanoseconds(left));
  }
  grpc::GenericStub stub(std::shared_ptr<grpc::ChannelInterface>(&channel, [](auto*) {}));
  const grpc::ByteBuffer in = Pack(request);
  grpc::ByteBuffer out;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, path, grpc::StubOptions(), &in, &out,
                 [&done](grpc::Status status) { done.set_value(std::move(status)); });
  grpc::Status status = done.get_future().get();
  if (status.ok()) response = Unpack(out);
  return status;
}

// The whole of a unary call: again on a new connection while the old one breaks.
CallResult<std::string> CallBytes(Link& link, const std::string& path, const std::string& request,
                                  const CallOptions& options) {
  const int64_t timeout_ms = std::min(options.timeout_ms, kLongestTimeoutMs);
  const int64_t deadline = timeout_ms == 0 ? 0 : base::MonotonicNs() + (timeout_ms * base::kNsPerMs);
  Losses losses;
  while (true) {
    auto connection = link.Get(deadline);
    if (!connection) return std::unexpected(std::move(connection).error());
    std::string response;
    const int64_t begin = base::MonotonicNs();
    const grpc::Status status = CallOnce(*connection->channel, path, request, response, deadline);
    if (status.ok()) return response;
    if (!IsLost(status) || !losses.Retry(link, connection->generation, begin) ||
        (deadline != 0 && base::MonotonicNs() >= deadline)) {
      return std::unexpected(ToCallError(status, path));
    }
  }
}

// Fills an empty `request_id`.
void NameRequest(google::protobuf::Message& request) {
  const auto* field = request.GetDescriptor()->FindFieldByName("request_id");
  if (field == nullptr || field->type() != google::protobuf::FieldDescriptor::TYPE_STRING) return;
  const auto* reflection = request.GetReflection();
  if (reflection->GetString(request, field).empty()) reflection->SetString(&request, field, NewUuid());
}

}  // namespace

std::string NewUuid() {
  std::array<unsigned char, 16> bytes{};
  // Up to 256 bytes come whole and without an error once the kernel's pool is ready.
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    perror("getrandom");
    abort();
  }
  bytes[6] = static_cast<unsigned char>((bytes[6] & 0x0f) | 0x40);
  bytes[8] = static_cast<unsigned char>((bytes[8] & 0x3f) | 0x80);
  std::string out;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    constexpr char kDigits[] = "0123456789abcdef";
    out += kDigits[bytes[i] >> 4];
    out += kDigits[bytes[i] & 15];
  }
  return out;
}

Client::Client(Connector connector, ClientOptions options)
    : link_(std::make_shared<Link>(std::move(connector), options)) {}

Client::~Client() = default;

Client::Connector Client::UnixConnector(std::string path) {
  return [path = std::move(path)]() -> base::Result<base::Fd> {
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    if (path.size() >= sizeof address.sun_path) return base::MakeError(ENAMETOOLONG, "connect", path);
    memcpy(address.sun_path, path.c_str(), path.size() + 1);
    base::Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) return base::ErrnoError("socket", path);
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      return base::ErrnoError("connect", path);
    }
    return fd;
  };
}

uint64_t Client::connections() const { return link_->generation(); }

CallResult<> Client::CallMethod(const std::string& path, google::protobuf::Message& request,
                                google::protobuf::Message& response, CallOptions options) {
  NameRequest(request);
  auto bytes = CallBytes(*link_, path, request.SerializeAsString(), options);
  if (!bytes) return std::unexpected(std::move(bytes).error());
  if (!response.ParseFromString(*bytes)) {
    return std::unexpected(ToCallError(base::Error{path, EBADMSG, {}, "the answer does not parse"}));
  }
  return {};
}

CallResult<bool> Client::Healthy(const std::string& service) {
  // HealthCheckRequest {string service = 1}, HealthCheckResponse {enum status = 1; SERVING = 1}, by hand: the
  // agent's description of them is for reflection only.
  if (service.size() > 127) return std::unexpected(ToCallError(base::Error{"health", EINVAL, service, {}}));
  std::string request;
  if (!service.empty()) request = std::string("\x0a") + static_cast<char>(service.size()) + service;
  auto bytes = CallBytes(*link_, "/grpc.health.v1.Health/Check", request, {});
  if (!bytes) return std::unexpected(std::move(bytes).error());
  return *bytes == "\x08\x01";
}

}  // namespace gcs::host
