// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/executor.h"
#include "rpc/call.h"
#include "rpc/status.h"

namespace gcs::rpc {

// A server stream out of a bounded ring that others fill: sends what is there, then waits to be woken. It
// holds at most one batch of messages per client and one message in gRPC; a client that reads slowly falls
// behind in the ring, where what it lost is reported in the ring's own way.
template <typename Message>
class Feed final : public grpc::ServerWriteReactor<Message> {
 public:
  struct Source {
    // The next messages; none: wait for the watch, or the end without `follow`. Must not block.
    std::function<base::Result<std::vector<Message>>()> read;
    // Adds a watch that calls its argument on news (from any thread, perhaps under locks), and removes it.
    std::function<uint64_t(std::function<void()>)> add_watch;
    std::function<void(uint64_t)> remove_watch;
    bool follow = false;
  };

  static Feed* Start(base::Pool* pool, CallPtr call, Source source) {
    auto feed = std::shared_ptr<Feed>(new Feed(pool, std::move(call), std::move(source)));
    feed->self_ = feed;
    if (feed->source_.follow) {
      feed->watch_ = feed->source_.add_watch([weak = std::weak_ptr<Feed>(feed)] {
        if (auto self = weak.lock()) self->Wake(self);
      });
    }
    feed->Step();
    return feed.get();
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
    if (source_.follow) source_.remove_watch(watch_);
    call_->LogEnd(end_, false);
    const std::shared_ptr<Feed> last = std::move(self_);
  }

 private:
  Feed(base::Pool* pool, CallPtr call, Source source)
      : pool_(pool), call_(std::move(call)), source_(std::move(source)) {}

  void Wake(const std::shared_ptr<Feed>& self) {
    if (woken_.exchange(true)) return;
    pool_->Post([self] { self->Step(); });
  }

  void Step() {
    std::unique_lock lock(mutex_);
    woken_ = false;
    if (writing_ || finished_) return;
    if (!cancelled_ && batch_.empty()) {
      auto next = source_.read();
      if (!next) {
        Finish(lock, ToStatus(next.error()));
        return;
      }
      for (Message& message : *next) batch_.push_back(std::move(message));
    }
    if (cancelled_) {
      Finish(lock, grpc::Status(grpc::StatusCode::CANCELLED, "cancelled by the client"));
    } else if (!batch_.empty()) {
      current_ = std::move(batch_.front());
      batch_.pop_front();
      writing_ = true;
      lock.unlock();
      this->StartWrite(&current_);
    } else if (!source_.follow) {
      Finish(lock, grpc::Status::OK);
    }
  }

  void Finish(std::unique_lock<std::mutex>& lock, const grpc::Status& status) {
    finished_ = true;
    end_ = status;
    lock.unlock();
    grpc::ServerWriteReactor<Message>::Finish(status);
  }

  base::Pool* const pool_;
  const CallPtr call_;
  const Source source_;
  std::shared_ptr<Feed> self_;  // until OnDone
  uint64_t watch_ = 0;
  std::atomic<bool> woken_ = false;
  std::mutex mutex_;
  std::deque<Message> batch_;
  Message current_;
  bool writing_ = false;
  bool finished_ = false;
  bool cancelled_ = false;
  grpc::Status end_;
};

}  // namespace gcs::rpc
