// SPDX-License-Identifier: Apache-2.0
#include "guest/container_keep.h"

#include <algorithm>
#include <climits>
#include <cstdlib>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "guest/event_text.h"

namespace gcs::guest {

using base::Json;
using base::JsonReader;
using base::Result;

namespace {

Json ToJson(const StreamRequest& stream) { return {{"mode", stream.mode}, {"port", stream.port}}; }

StreamRequest StreamFrom(JsonReader reader) {
  return {static_cast<stdio::Mode>(reader.Int("mode", 0, 0, static_cast<int>(stdio::Mode::kSocket))),
          static_cast<uint32_t>(reader.Int("port", 0, 0, UINT32_MAX))};
}

int64_t Number(JsonReader& reader, const char* key) { return reader.Int(key, 0, INT64_MIN, INT64_MAX); }

std::string Text(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

std::string ConfigKey(const std::string& container_id) { return "config/" + container_id; }
std::string ContainerKey(const std::string& container_id) { return "container/" + container_id; }
std::string ProcessKey(const std::string& container_id, const std::string& process_id) {
  return "process/" + container_id + "/" + process_id;
}

std::string Encode(const ContainerRecord& record) {
  Json labels = Json::array();
  for (const auto& [key, value] : record.labels) labels.push_back({{"key", key}, {"value", value}});
  return Text({{"cgroup", record.cgroup_path},
               {"created", record.created_at_ns},
               {"labels", labels},
               {"owned", record.owned_mounts},
               {"pod", record.pod_id},
               {"deleting", record.deleting}});
}

Result<ContainerRecord> DecodeContainer(std::string_view text) {
  GCS_ASSIGN(const Json json, base::ParseJson(text, "kept container"));
  JsonReader reader(json, "read kept container");
  ContainerRecord record{.cgroup_path = reader.RequiredString("cgroup"),
                         .created_at_ns = Number(reader, "created"),
                         .owned_mounts = reader.Strings("owned"),
                         .pod_id = reader.String("pod"),
                         .deleting = reader.Bool("deleting")};
  for (JsonReader& label : reader.Objects("labels"))
    record.labels.emplace_back(label.String("key"), label.String("value"));
  if (reader.error()) return std::unexpected(*reader.error());
  return record;
}

std::string Encode(const ProcessRecord& record) {
  Json parts = Json::array();
  for (const stdio::Part part : record.parts) parts.push_back(std::to_string(static_cast<int>(part)));
  Json json{{"pid", record.pid},
            {"terminal", record.terminal},
            {"in", ToJson(record.stdio.in)},
            {"out", ToJson(record.stdio.out)},
            {"err", ToJson(record.stdio.err)},
            {"overflow", record.stdio.overflow},
            {"ring", record.stdio.ring_bytes},
            {"parts", parts},
            {"starting", record.starting},
            {"started", record.started_at_ns},
            {"oom", record.oom_kills_before}};
  if (record.exit) json["exit"] = ExitToJson(*record.exit);
  return Text(json);
}

Result<ProcessRecord> DecodeProcess(std::string_view text) {
  GCS_ASSIGN(const Json json, base::ParseJson(text, "kept process"));
  JsonReader reader(json, "read kept process");
  ProcessRecord record{.pid = static_cast<int>(reader.Int("pid", 0, 1, INT_MAX)),
                       .terminal = reader.Bool("terminal"),
                       .stdio = {.in = StreamFrom(reader.Object("in")),
                                 .out = StreamFrom(reader.Object("out")),
                                 .err = StreamFrom(reader.Object("err")),
                                 .overflow = static_cast<stdio::Overflow>(reader.Int("overflow", 0, 0, 1)),
                                 .ring_bytes = reader.Uint64("ring", 0)},
                       .starting = reader.Bool("starting"),
                       .started_at_ns = Number(reader, "started"),
                       .oom_kills_before = reader.Uint64("oom", 0)};
  if (record.pid == 0) reader.Fail("pid", "is required");
  for (const std::string& part : reader.Strings("parts"))
    record.parts.push_back(static_cast<stdio::Part>(strtoul(part.c_str(), nullptr, 10)));
  if (reader.Has("exit")) {
    JsonReader exit = reader.Object("exit");
    record.exit = ExitFromJson(exit);
  }
  if (reader.error()) return std::unexpected(*reader.error());
  return record;
}

Result<> KeptProcess::Put(ProcessRecord record, int pidfd, int sync, const stdio::ProcessIo& io) {
  if (keep_ == nullptr) return {};
  GCS_ASSIGN(const auto parts, io.Parts());
  std::vector<int> fds{pidfd, sync};
  for (const auto& [part, fd] : parts) {
    record.parts.push_back(part);
    fds.push_back(fd.get());
  }
  // The streams are at work already.
  const std::lock_guard lock(mutex_);
  GCS_TRY(keep_->Put(key_, Encode(record), fds, record.pid));
  record_ = std::move(record);
  there_ = true;
  for (const stdio::Part part : closed_) DropPart(part);
  return {};
}

void KeptProcess::Adopt(const ProcessRecord& record) {
  const std::lock_guard lock(mutex_);
  record_ = record;
  there_ = true;
}

void KeptProcess::Change(const std::function<void(ProcessRecord&)>& change) {
  const std::lock_guard lock(mutex_);
  if (!there_) return;
  change(record_);
  if (auto kept = keep_->Update(key_, Encode(record_)); !kept) base::LogError("keep process", kept.error());
}

Result<std::optional<ExitStatus>> KeptProcess::ExitOfInherited(int pidfd) {
  if (keep_ == nullptr) return base::MakeError(ECHILD, "find exit", key_);
  const auto seen = keep_->ExitOf(key_);
  if (!seen) return ExitByPidfd(pidfd);
  if (!*seen) return std::nullopt;
  ExitStatus exit = FromWaitStatus((*seen)->status);
  exit.user_time_ns = (*seen)->user_ms * base::kNsPerMs;
  exit.system_time_ns = (*seen)->system_ms * base::kNsPerMs;
  exit.max_rss_kib = (*seen)->max_rss_kib;
  return exit;
}

void KeptProcess::DropSync() {
  const std::lock_guard lock(mutex_);
  if (there_) keep_->DropFd(key_, kSyncIndex);
}

void KeptProcess::DropPart(stdio::Part part) {
  const auto at = std::ranges::find(record_.parts, part);
  if (at != record_.parts.end())
    keep_->DropFd(key_, kPartsIndex + static_cast<size_t>(at - record_.parts.begin()));
}

void KeptProcess::Closed(stdio::Part part) {
  const std::lock_guard lock(mutex_);
  if (there_) {
    DropPart(part);
  } else {
    closed_.insert(part);
  }
}

void KeptProcess::Remove() {
  const std::lock_guard lock(mutex_);
  if (!there_) return;
  there_ = false;
  keep_->Remove(key_);
}

}  // namespace gcs::guest
