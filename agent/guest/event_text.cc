// SPDX-License-Identifier: Apache-2.0
#include "guest/event_text.h"

#include <climits>
#include <type_traits>

namespace gcs::guest {

using base::Json;
using base::JsonReader;
using base::Result;

namespace {

int64_t Number(JsonReader& reader, const char* key) { return reader.Int(key, 0, INT64_MIN, INT64_MAX); }

Json ToJson(const EventBody& body) {
  return std::visit(
      [](const auto& event) -> Json {
        using Body = std::decay_t<decltype(event)>;
        if constexpr (std::is_same_v<Body, ContainerCreated> || std::is_same_v<Body, ProcessStarted>) {
          return {{"pid", event.pid}};
        } else if constexpr (std::is_same_v<Body, ProcessExited>) {
          return ExitToJson(event.exit);
        } else if constexpr (std::is_same_v<Body, ContainerOom>) {
          return {{"kills", event.kills}};
        } else if constexpr (std::is_same_v<Body, DeviceChanged>) {
          return {{"added", event.added}, {"device", event.device}};
        } else if constexpr (std::is_same_v<Body, ClockStepped>) {
          return {{"step", event.step_ns}};
        } else if constexpr (std::is_same_v<Body, AgentStarted>) {
          return {{"restarts", event.restarts}};
        } else {
          return Json::object();
        }
      },
      body);
}

// The body with number `index` of the variant.
template <size_t I = 0>
std::optional<EventBody> FromJson(size_t index, JsonReader& reader) {
  if constexpr (I == std::variant_size_v<EventBody>) {
    return std::nullopt;
  } else {
    if (index != I) return FromJson<I + 1>(index, reader);
    using Body = std::variant_alternative_t<I, EventBody>;
    if constexpr (std::is_same_v<Body, ContainerCreated> || std::is_same_v<Body, ProcessStarted>) {
      return Body{static_cast<int>(reader.Int("pid", 0, 0, INT_MAX))};
    } else if constexpr (std::is_same_v<Body, ProcessExited>) {
      return Body{ExitFromJson(reader)};
    } else if constexpr (std::is_same_v<Body, ContainerOom>) {
      return Body{reader.Uint64("kills", 0)};
    } else if constexpr (std::is_same_v<Body, DeviceChanged>) {
      return Body{reader.Bool("added"), reader.String("device")};
    } else if constexpr (std::is_same_v<Body, ClockStepped>) {
      return Body{Number(reader, "step")};
    } else if constexpr (std::is_same_v<Body, AgentStarted>) {
      return Body{static_cast<uint32_t>(reader.Int("restarts", 0, 0, UINT32_MAX))};
    } else {
      return Body{};
    }
  }
}

}  // namespace

Json ExitToJson(const ExitStatus& exit) {
  return {{"code", exit.exit_code},        {"signal", exit.signal},       {"oom", exit.oom_killed},
          {"started", exit.started_at_ns}, {"exited", exit.exited_at_ns}, {"user", exit.user_time_ns},
          {"system", exit.system_time_ns}, {"rss", exit.max_rss_kib}};
}

ExitStatus ExitFromJson(JsonReader& reader) {
  return {.exit_code = static_cast<int>(reader.Int("code", 0, INT_MIN, INT_MAX)),
          .signal = static_cast<int>(reader.Int("signal", 0, INT_MIN, INT_MAX)),
          .oom_killed = reader.Bool("oom"),
          .started_at_ns = Number(reader, "started"),
          .exited_at_ns = Number(reader, "exited"),
          .user_time_ns = Number(reader, "user"),
          .system_time_ns = Number(reader, "system"),
          .max_rss_kib = Number(reader, "rss")};
}

std::string EncodeEvent(const Event& event) {
  const Json json{{"sequence", event.sequence},      {"time", event.time_ns},
                  {"container", event.container_id}, {"process", event.process_id},
                  {"kind", event.body.index()},      {"body", ToJson(event.body)}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<Event> DecodeEvent(std::string_view text) {
  GCS_ASSIGN(const Json json, base::ParseJson(text, "kept event"));
  JsonReader reader(json, "read kept event");
  Event event{.sequence = reader.Uint64("sequence", 0),
              .time_ns = Number(reader, "time"),
              .container_id = reader.String("container"),
              .process_id = reader.String("process"),
              .body = {}};
  JsonReader inner = reader.Object("body");
  auto body = FromJson(reader.Uint64("kind", std::variant_npos), inner);
  if (!body) reader.Fail("kind", "is none that there is");
  if (reader.error()) return std::unexpected(*reader.error());
  event.body = std::move(*body);
  return event;
}

}  // namespace gcs::guest
