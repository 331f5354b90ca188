// SPDX-License-Identifier: Apache-2.0
#include "rpc/request_cache.h"

#include <utility>

namespace gcs::rpc {

RequestCache::RequestCache(Limits limits) : limits_(limits) {}

size_t RequestCache::SizeOf(const std::string& key, const Entry& entry) {
  return sizeof entry + 2 * key.size() + entry.answer.response.size() +
         entry.answer.status.error_message().size() + entry.answer.status.error_details().size();
}

bool RequestCache::Begin(const std::string& key, Deliver deliver, int64_t now_ns) {
  Answer answer;
  {
    const std::lock_guard lock(mutex_);
    Drop(now_ns);
    auto [at, added] = entries_.try_emplace(key);
    if (added) return true;
    if (!at->second.complete) {
      at->second.waiting.push_back(std::move(deliver));
      return false;
    }
    answer = at->second.answer;
  }
  deliver(answer);
  return false;
}

void RequestCache::Complete(const std::string& key, const Answer& answer, int64_t now_ns) {
  std::vector<Deliver> waiting;
  {
    const std::lock_guard lock(mutex_);
    const auto at = entries_.find(key);
    if (at == entries_.end() || at->second.complete) return;
    Entry& entry = at->second;
    entry.complete = true;
    entry.answer = answer;
    entry.expires_ns = now_ns + limits_.life_ns;
    entry.place = completed_.insert(completed_.end(), key);
    waiting = std::exchange(entry.waiting, {});
    bytes_ += SizeOf(key, entry);
    Drop(now_ns);
  }
  for (const Deliver& deliver : waiting) deliver(answer);
}

void RequestCache::Drop(int64_t now_ns) {
  while (!completed_.empty()) {
    const auto at = entries_.find(completed_.front());
    const bool over = completed_.size() > limits_.entries || bytes_ > limits_.bytes;
    // The newest answer stays whatever its size: its repetition is the likeliest of all.
    const bool spare = over && completed_.size() > 1;
    if (!spare && at->second.expires_ns > now_ns) return;
    bytes_ -= SizeOf(at->first, at->second);
    completed_.pop_front();
    entries_.erase(at);
  }
}

size_t RequestCache::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace gcs::rpc
