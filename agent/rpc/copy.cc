// SPDX-License-Identifier: Apache-2.0
#include "rpc/copy.h"

#include <fcntl.h>
#include <grpcpp/alarm.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/paths.h"
#include "guest/pack.h"
#include "guest/sha256.h"
#include "guest/unpack.h"
#include "rpc/services.h"
#include "rpc/status.h"
#include "rpc/unary.h"

namespace gcs::rpc {

namespace {

namespace v1 = gcs::v1;
using base::MakeError;
using base::Result;

constexpr size_t kMaxPiece = 1 << 20;  // CopyInRequest's promise
constexpr size_t kPiece = 256 << 10;   // what CopyOut sends at a time

// One of the copies that go on at a time.
class Place {
 public:
  static Result<Place> Take(std::shared_ptr<std::atomic<int>> going_on) {
    Place place(std::move(going_on));
    if (++*place.going_on_ > Copies::kMaxCopies) return MakeError(EAGAIN, "copy", {}, "too many at a time");
    return place;
  }
  Place(Place&&) = default;
  Place& operator=(Place&&) = delete;
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  ~Place() {
    if (going_on_ != nullptr) --*going_on_;
  }

 private:
  explicit Place(std::shared_ptr<std::atomic<int>> going_on) : going_on_(std::move(going_on)) {}
  std::shared_ptr<std::atomic<int>> going_on_;
};

// What a path is resolved in. Of the guest itself it is /run: nothing else of it can be written, and what its
// directories hold below that is for containers.
Result<base::Fd> OpenRoot(const guest::Containers* containers, const std::string& container_id, bool write,
                          std::string& path) {
  if (path.find('\0') != std::string::npos) return MakeError(EINVAL, "copy", "path", "NUL");
  if (!container_id.empty()) {
    if (containers == nullptr) return MakeError(ENOENT, "find container", container_id.substr(0, 64));
    return containers->OpenRoot(container_id, write);
  }
  constexpr std::string_view kGuestRoot = "/run";
  if (path != kGuestRoot && !path.starts_with("/run/")) {
    return MakeError(EINVAL, "copy", path.substr(0, 256), "of the guest itself only /run is copied");
  }
  path.erase(0, kGuestRoot.size());
  return base::OpenFile(std::string(kGuestRoot), O_PATH | O_DIRECTORY);
}

// Ends a copy that its client gave no deadline.
class Limit {
 public:
  Limit(const Call& call, grpc::CallbackServerContext* context) : target_(std::make_shared<Target>()) {
    if (call.deadline_ns() != INT64_MAX) return;
    target_->context = context;
    alarm_.Set(std::chrono::system_clock::now() + std::chrono::nanoseconds(Copies::kLimitNs),
               [target = target_](bool due) {
                 const std::lock_guard lock(target->mutex);
                 if (due && target->context != nullptr) target->context->TryCancel();
               });
  }
  // In OnDone, after which there is no context.
  void Disarm() {
    const std::lock_guard lock(target_->mutex);
    target_->context = nullptr;
  }

 private:
  struct Target {
    std::mutex mutex;
    grpc::CallbackServerContext* context = nullptr;
  };
  const std::shared_ptr<Target> target_;
  grpc::Alarm alarm_;
};

// Reads the stream piece by piece: one message is asked for, worked off on a thread of the pool, then the
// next.
class Incoming final : public grpc::ServerReadReactor<v1::CopyInRequest> {
 public:
  static Incoming* Start(Core* core, const guest::Containers* containers,
                         std::shared_ptr<std::atomic<int>> going_on, grpc::CallbackServerContext* context,
                         v1::CopyInResponse* response) {
    const std::shared_ptr<Incoming> incoming(
        new Incoming(core, containers, std::move(going_on), context, response));
    incoming->self_ = incoming;
    incoming->StartRead(&incoming->request_);
    return incoming.get();
  }

  void OnReadDone(bool ok) override {
    core_.work->Post([self = self_, ok] { self->Step(ok); });
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override {
    limit_.Disarm();
    const std::shared_ptr<Incoming> last = std::move(self_);
  }

 private:
  Incoming(Core* core, const guest::Containers* containers, std::shared_ptr<std::atomic<int>> going_on,
           grpc::CallbackServerContext* context, v1::CopyInResponse* response)
      : core_(*core),
        containers_(containers),
        going_on_(std::move(going_on)),
        response_(*response),
        call_(std::make_shared<Call>("GuestService.CopyIn", Access::kWrite, *context)),
        limit_(*call_, context) {}

  void Step(bool ok) {
    if (!ok) return End(cancelled_ ? MakeError(ECANCELED, "copy in", {}, "the client left") : Complete());
    const auto handled = Handle();
    if (waits_) return;
    if (!handled) return End(handled);
    StartRead(&request_);
  }

  Result<> Handle() {
    switch (request_.message_case()) {
      case v1::CopyInRequest::kOpen:
        return Open(request_.open());
      case v1::CopyInRequest::kData:
        if (unpacker_ == nullptr) break;
        if (request_.data().size() > kMaxPiece)
          return MakeError(EINVAL, "copy in", "data", "more than 1 MiB");
        if (sha256_) GCS_TRY(sha256_->Update(request_.data()));
        return unpacker_->Push(request_.data());
      case v1::CopyInRequest::MESSAGE_NOT_SET:
        return MakeError(EINVAL, "copy in", {}, "a message of unknown kind");
    }
    return MakeError(EINVAL, "copy in", {}, "the first message must be `open`");
  }

  Result<> Open(const v1::CopyInOpen& open) {
    if (unpacker_ != nullptr) return MakeError(EINVAL, "copy in", "open", "a second `open`");
    call_->SetSubject(open.request_id(), open.container_id());
    if (open.request_id().size() > kMaxRequestIdBytes) {
      return MakeError(EINVAL, "check request", "request_id", "longer than 256 bytes");
    }
    if (!open.request_id().empty() && !BeginOnce(open.request_id())) return {};
    GCS_ASSIGN(Place place, Place::Take(going_on_));
    place_.emplace(std::move(place));
    if (!open.sha256().empty()) {
      if (open.sha256().size() != 32) return MakeError(EINVAL, "copy in", "sha256", "not of 32 bytes");
      GCS_ASSIGN(guest::Sha256 sha256, guest::Sha256::Create());
      sha256_.emplace(std::move(sha256));
      wanted_ = open.sha256();
    }
    std::string path = open.path();
    GCS_ASSIGN(base::Fd root, OpenRoot(containers_, open.container_id(), true, path));
    GCS_ASSIGN(unpacker_, guest::Unpacker::Create(std::move(root), std::move(path)));
    return {};
  }

  // False: the request was made before, and its answer ends this call too.
  bool BeginOnce(const std::string& request_id) {
    std::string key = std::string(call_->method()) + '\n' + request_id;
    waits_ = true;
    const auto repeat = [self = self_](const RequestCache::Answer& answer) {
      const bool parsed = !answer.status.ok() || self->response_.ParseFromString(answer.response);
      self->Finish(parsed ? answer.status : ToStatus({"decode kept answer", EIO, {}, {}}), true);
    };
    if (!core_.requests.Begin(key, {}, repeat, base::MonotonicNs())) return false;
    waits_ = false;
    key_ = std::move(key);
    return true;
  }

  // The client has sent all it wanted to.
  Result<> Complete() {
    if (unpacker_ == nullptr) return MakeError(EINVAL, "copy in", {}, "no `open` before the end");
    GCS_TRY(unpacker_->Finish());
    if (sha256_) {
      GCS_ASSIGN(const std::string digest, sha256_->Finish());
      if (digest != wanted_) return MakeError(EINVAL, "copy in", "sha256", "the stream has another one");
    }
    response_.set_entries(unpacker_->entries());
    response_.set_bytes(unpacker_->bytes());
    return {};
  }

  void End(const Result<>& result) {
    const grpc::Status status = result ? grpc::Status::OK : ToStatus(result.error());
    unpacker_.reset();
    place_.reset();
    if (!key_.empty()) {
      core_.requests.Complete(key_, {status, result ? response_.SerializeAsString() : std::string()},
                              base::MonotonicNs());
    }
    Finish(status, false);
  }

  void Finish(const grpc::Status& status, bool repeated) {
    call_->LogEnd(status, repeated);
    ServerReadReactor::Finish(status);
  }

  Core& core_;
  const guest::Containers* const containers_;
  const std::shared_ptr<std::atomic<int>> going_on_;
  v1::CopyInResponse& response_;
  const CallPtr call_;
  std::shared_ptr<Incoming> self_;  // until OnDone
  std::atomic<bool> cancelled_ = false;
  // Of the one step at a time.
  v1::CopyInRequest request_;
  std::string key_;  // in the cache of requests; empty without
  bool waits_ = false;
  std::optional<Place> place_;
  std::unique_ptr<guest::Unpacker> unpacker_;
  std::optional<guest::Sha256> sha256_;
  std::string wanted_;
  Limit limit_;
};

class Outgoing final : public grpc::ServerWriteReactor<v1::CopyOutResponse> {
 public:
  static Outgoing* Start(Core* core, const guest::Containers* containers,
                         std::shared_ptr<std::atomic<int>> going_on, grpc::CallbackServerContext* context,
                         const v1::CopyOutRequest* request) {
    const std::shared_ptr<Outgoing> outgoing(
        new Outgoing(core, containers, std::move(going_on), context, request));
    outgoing->self_ = outgoing;
    core->work->Post([outgoing] { outgoing->Step(); });
    return outgoing.get();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) cancelled_ = true;
    core_.work->Post([self = self_] { self->Step(); });
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override {
    limit_.Disarm();
    const std::shared_ptr<Outgoing> last = std::move(self_);
  }

 private:
  Outgoing(Core* core, const guest::Containers* containers, std::shared_ptr<std::atomic<int>> going_on,
           grpc::CallbackServerContext* context, const v1::CopyOutRequest* request)
      : core_(*core),
        containers_(containers),
        going_on_(std::move(going_on)),
        request_(*request),
        call_(std::make_shared<Call>("GuestService.CopyOut", Access::kRead, *context)),
        limit_(*call_, context) {
    call_->SetSubject({}, request->container_id());
  }

  void Step() {
    if (cancelled_) return End(MakeError(ECANCELED, "copy out", {}, "the client left"));
    if (done_) return End({});
    if (const auto filled = Fill(); !filled) return End(filled);
    StartWrite(&response_);
  }

  Result<> Fill() {
    if (packer_ == nullptr) {
      GCS_ASSIGN(Place place, Place::Take(going_on_));
      place_.emplace(std::move(place));
      std::string path = request_.path();
      GCS_ASSIGN(const base::Fd root, OpenRoot(containers_, request_.container_id(), false, path));
      GCS_ASSIGN(packer_, guest::Packer::Create(root, path));
      GCS_ASSIGN(guest::Sha256 sha256, guest::Sha256::Create());
      sha256_.emplace(std::move(sha256));
    }
    GCS_ASSIGN(std::string piece, packer_->Next(kPiece));
    GCS_TRY(sha256_->Update(piece));
    done_ = piece.empty();
    response_.set_data(std::move(piece));
    if (done_) {
      GCS_ASSIGN(std::string digest, sha256_->Finish());
      response_.set_sha256(std::move(digest));
    }
    return {};
  }

  void End(const Result<>& result) {
    const grpc::Status status = result ? grpc::Status::OK : ToStatus(result.error());
    packer_.reset();
    place_.reset();
    call_->LogEnd(status, false);
    Finish(status);
  }

  Core& core_;
  const guest::Containers* const containers_;
  const std::shared_ptr<std::atomic<int>> going_on_;
  const v1::CopyOutRequest& request_;  // gRPC's, until OnDone
  const CallPtr call_;
  std::shared_ptr<Outgoing> self_;  // until OnDone
  std::atomic<bool> cancelled_ = false;
  // Of the one step at a time.
  v1::CopyOutResponse response_;
  bool done_ = false;
  std::optional<Place> place_;
  std::unique_ptr<guest::Packer> packer_;
  std::optional<guest::Sha256> sha256_;
  Limit limit_;
};

}  // namespace

grpc::ServerReadReactor<v1::CopyInRequest>* Copies::In(grpc::CallbackServerContext* context,
                                                       v1::CopyInResponse* response) {
  return Incoming::Start(core_, containers_, going_on_, context, response);
}

grpc::ServerWriteReactor<v1::CopyOutResponse>* Copies::Out(grpc::CallbackServerContext* context,
                                                           const v1::CopyOutRequest* request) {
  return Outgoing::Start(core_, containers_, going_on_, context, request);
}

}  // namespace gcs::rpc
