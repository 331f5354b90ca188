// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <utility>
#include <vector>

#include "gcs/v1/events.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/feed.h"
#include "rpc/services.h"

namespace gcs::rpc {

namespace {

constexpr size_t kEventBatch = 64;

class EventService final : public gcs::v1::EventService::CallbackService {
 public:
  EventService(Core* core, guest::Journal* journal) : core_(*core), journal_(*journal) {}

  grpc::ServerWriteReactor<gcs::v1::Event>* Watch(grpc::CallbackServerContext* context,
                                                  const gcs::v1::WatchEventsRequest* request) override {
    auto cursor = std::make_shared<uint64_t>(request->after_sequence());
    Feed<gcs::v1::Event>::Source source;
    source.follow = !request->no_follow();
    source.read = [this, cursor]() -> base::Result<std::vector<gcs::v1::Event>> {
      GCS_ASSIGN(const std::vector<guest::Event> events, journal_.Read(*cursor, kEventBatch));
      std::vector<gcs::v1::Event> out;
      out.reserve(events.size());
      for (const guest::Event& event : events) out.push_back(ToProto(event));
      if (!events.empty()) *cursor = events.back().sequence;
      return out;
    };
    source.add_watch = [this](std::function<void()> wake) { return journal_.AddWatch(std::move(wake)); };
    source.remove_watch = [this](uint64_t id) { journal_.RemoveWatch(id); };
    return Feed<gcs::v1::Event>::Start(core_.quick,
                                       std::make_shared<Call>("EventService.Watch", Access::kRead, *context),
                                       std::move(source));
  }

 private:
  Core& core_;
  guest::Journal& journal_;
};

}  // namespace

BuiltService MakeEventService(Core* core, guest::Journal* journal) {
  return {std::make_unique<EventService>(core, journal), {"EventService.Watch"}};
}

}  // namespace gcs::rpc
