// SPDX-License-Identifier: Apache-2.0
#include "rpc/request_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"

namespace gcs::rpc {

namespace {

constexpr std::string_view kOpenKey = "open/";
constexpr std::string_view kReplyKey = "reply/";

std::string KeyOf(std::string_view kind, const std::string& key) { return std::string(kind) + key; }

void AddNumber(std::string& out, uint64_t number) {
  out.append(reinterpret_cast<const char*>(&number), sizeof number);
}
void AddText(std::string& out, std::string_view text) {
  AddNumber(out, text.size());
  out += text;
}

// Reads what these two have written, by the same program: what is cut reads as zeros and empty texts.
uint64_t TakeNumber(std::string_view& in) {
  uint64_t number = 0;
  if (in.size() < sizeof number) return 0;
  memcpy(&number, in.data(), sizeof number);
  in.remove_prefix(sizeof number);
  return number;
}
std::string TakeText(std::string_view& in) {
  const uint64_t size = std::min<uint64_t>(TakeNumber(in), in.size());
  std::string text(in.substr(0, size));
  in.remove_prefix(size);
  return text;
}

std::string Encode(const RequestCache::Answer& answer, int64_t expires_ns) {
  std::string text;
  AddNumber(text, static_cast<uint64_t>(expires_ns));
  AddNumber(text, static_cast<uint64_t>(answer.status.error_code()));
  AddText(text, answer.status.error_message());
  AddText(text, answer.status.error_details());
  AddText(text, answer.response);
  return text;
}

}  // namespace

RequestCache::RequestCache(Limits limits) : limits_(limits) {}

size_t RequestCache::SizeOf(const std::string& key, const Entry& entry) {
  return sizeof entry + 2 * key.size() + entry.answer.response.size() +
         entry.answer.status.error_message().size() + entry.answer.status.error_details().size();
}

std::vector<RequestCache::Open> RequestCache::KeepIn(guest::Keep* keep,
                                                     const std::vector<guest::Keep::Entry>& entries,
                                                     int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  keep_ = keep;
  for (const guest::Keep::Entry& kept : entries) {
    if (!kept.key.starts_with(kReplyKey)) continue;
    std::string_view text = kept.value;
    const auto expires_ns = static_cast<int64_t>(TakeNumber(text));
    const auto code = static_cast<grpc::StatusCode>(TakeNumber(text));
    const std::string message = TakeText(text);
    const std::string details = TakeText(text);
    const std::string key = kept.key.substr(kReplyKey.size());
    Insert(key, entries_[key], {grpc::Status(code, message, details), TakeText(text)}, expires_ns);
  }
  std::vector<Open> open;
  for (const guest::Keep::Entry& kept : entries) {
    if (!kept.key.starts_with(kOpenKey)) continue;
    std::string_view text = kept.value;
    const auto begun_ns = static_cast<int64_t>(TakeNumber(text));
    const std::string key = kept.key.substr(kOpenKey.size());
    // Answered, but for this note.
    if (!entries_.try_emplace(key).second) {
      keep_->Remove(kept.key);
    } else {
      open.push_back({key, TakeText(text), begun_ns});
    }
  }
  Drop(now_ns);
  return open;
}

bool RequestCache::Begin(const std::string& key, std::string_view subject, Deliver deliver, int64_t now_ns) {
  Answer answer;
  {
    const std::lock_guard lock(mutex_);
    Drop(now_ns);
    auto [at, added] = entries_.try_emplace(key);
    if (added) {
      if (keep_ == nullptr) return true;
      std::string text;
      AddNumber(text, static_cast<uint64_t>(base::RealtimeNs()));
      AddText(text, subject);
      if (auto kept = keep_->Put(KeyOf(kOpenKey, key), text); !kept)
        base::LogError("keep call", kept.error());
      return true;
    }
    if (!at->second.complete) {
      at->second.waiting.push_back(std::move(deliver));
      return false;
    }
    answer = at->second.answer;
  }
  deliver(answer);
  return false;
}

void RequestCache::Insert(const std::string& key, Entry& entry, const Answer& answer, int64_t expires_ns) {
  entry.complete = true;
  entry.answer = answer;
  entry.expires_ns = expires_ns;
  entry.place = completed_.insert(completed_.end(), key);
  bytes_ += SizeOf(key, entry);
}

void RequestCache::Complete(const std::string& key, const Answer& answer, int64_t now_ns) {
  std::vector<Deliver> waiting;
  {
    const std::lock_guard lock(mutex_);
    const auto at = entries_.find(key);
    if (at == entries_.end() || at->second.complete) return;
    waiting = std::exchange(at->second.waiting, {});
    const int64_t expires_ns = now_ns + limits_.life_ns;
    Insert(key, at->second, answer, expires_ns);
    if (keep_ != nullptr) {
      if (auto kept = keep_->Put(KeyOf(kReplyKey, key), Encode(answer, expires_ns)); !kept)
        base::LogError("keep answer", kept.error());
      keep_->Remove(KeyOf(kOpenKey, key));
    }
    Drop(now_ns);
  }
  for (const Deliver& deliver : waiting) deliver(answer);
}

void RequestCache::Abort(const std::string& key) {
  std::vector<Deliver> waiting;
  {
    const std::lock_guard lock(mutex_);
    const auto at = entries_.find(key);
    if (at == entries_.end() || at->second.complete) return;
    waiting = std::exchange(at->second.waiting, {});
    entries_.erase(at);
    if (keep_ != nullptr) keep_->Remove(KeyOf(kOpenKey, key));
  }
  const Answer again{{grpc::StatusCode::UNAVAILABLE, "the agent was restarted before it acted; ask again"},
                     {}};
  for (const Deliver& deliver : waiting) deliver(again);
}

void RequestCache::Drop(int64_t now_ns) {
  while (!completed_.empty()) {
    const auto at = entries_.find(completed_.front());
    const bool over = completed_.size() > limits_.entries || bytes_ > limits_.bytes;
    // The newest answer stays whatever its size: its repetition is the likeliest of all.
    const bool spare = over && completed_.size() > 1;
    if (!spare && at->second.expires_ns > now_ns) return;
    bytes_ -= SizeOf(at->first, at->second);
    if (keep_ != nullptr) keep_->Remove(KeyOf(kReplyKey, at->first));
    completed_.pop_front();
    entries_.erase(at);
  }
}

size_t RequestCache::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace gcs::rpc
