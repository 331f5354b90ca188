// SPDX-License-Identifier: Apache-2.0
#include "guest/journal.h"

#include <algorithm>
#include <ranges>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "guest/event_text.h"

namespace gcs::guest {

namespace {

size_t SizeOf(const Event& event) {
  size_t size = sizeof event + event.container_id.size() + event.process_id.size();
  if (const auto* device = std::get_if<DeviceChanged>(&event.body)) size += device->device.size();
  return size;
}

std::string KeyOf(uint64_t sequence) { return std::string(Journal::kEventKey) + std::to_string(sequence); }

}  // namespace

Journal::Journal(Limits limits, Keep* keep) : limits_(limits), keep_(keep) {}

void Journal::Restore(const std::vector<Keep::Entry>& entries) {
  const std::lock_guard lock(mutex_);
  for (const Keep::Entry& entry : entries) {
    if (!entry.key.starts_with(kEventKey)) continue;
    auto event = DecodeEvent(entry.value);
    if (!event || event->sequence <= newest_) {
      base::LogError("restore event", event
                                          ? base::Error{"read kept event", EINVAL, entry.key, "out of order"}
                                          : event.error());
      continue;
    }
    newest_ = event->sequence;
    bytes_ += SizeOf(*event);
    events_.push_back(std::move(*event));
  }
  Trim();
}

void Journal::Trim() {
  while (events_.size() > 1 && (events_.size() > limits_.events || bytes_ > limits_.bytes)) {
    if (keep_ != nullptr) keep_->Remove(KeyOf(events_.front().sequence));
    bytes_ -= SizeOf(events_.front());
    events_.pop_front();
  }
}

uint64_t Journal::Append(std::string container_id, std::string process_id, EventBody body) {
  const std::lock_guard lock(mutex_);
  return AppendLocked(std::move(container_id), std::move(process_id), std::move(body));
}

void Journal::AppendOnce(const std::string& container_id, const std::string& process_id, EventBody body) {
  const std::lock_guard lock(mutex_);
  for (const Event& event : std::views::reverse(events_)) {
    if (event.container_id != container_id) continue;
    if (event.process_id == process_id && event.body.index() == body.index()) return;
    // Of an earlier container of that id.
    if (std::holds_alternative<ContainerCreated>(event.body)) break;
    if (std::holds_alternative<ContainerDeleted>(event.body)) break;
  }
  AppendLocked(container_id, process_id, std::move(body));
}

uint64_t Journal::AppendLocked(std::string container_id, std::string process_id, EventBody body) {
  Event event{++newest_, base::RealtimeNs(), std::move(container_id), std::move(process_id), std::move(body)};
  if (keep_ != nullptr) {
    if (auto kept = keep_->Put(KeyOf(event.sequence), EncodeEvent(event)); !kept)
      base::LogError("keep event", kept.error());
  }
  bytes_ += SizeOf(event);
  events_.push_back(std::move(event));
  Trim();
  for (const auto& [id, wake] : watches_) wake();
  return newest_;
}

base::Result<std::vector<Event>> Journal::Read(uint64_t after, size_t limit) const {
  const std::lock_guard lock(mutex_);
  if (after > newest_) {
    return base::MakeError(
        ERANGE, "read events", std::to_string(after),
        "the newest event is " + std::to_string(newest_) + "; the cursor is of an earlier agent");
  }
  std::vector<Event> result;
  if (after == newest_) return result;
  const uint64_t oldest = events_.front().sequence;
  if (after != 0 && after + 1 < oldest) {
    result.push_back(Event{oldest - 1, events_.front().time_ns, {}, {}, EventGap{oldest - 1 - after}});
  }
  const size_t first = after >= oldest ? after - oldest + 1 : 0;
  for (size_t i = first; i < events_.size() && result.size() < std::max<size_t>(limit, 1); ++i) {
    result.push_back(events_[i]);
  }
  return result;
}

uint64_t Journal::newest() const {
  const std::lock_guard lock(mutex_);
  return newest_;
}

uint64_t Journal::AddWatch(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  const uint64_t id = next_watch_++;
  watches_.emplace(id, std::move(wake));
  return id;
}

void Journal::RemoveWatch(uint64_t id) {
  const std::lock_guard lock(mutex_);
  watches_.erase(id);
}

}  // namespace gcs::guest
