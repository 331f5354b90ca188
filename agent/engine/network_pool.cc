// SPDX-License-Identifier: Apache-2.0
#include "engine/network_pool.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>

#include "base/error.h"
#include "base/log.h"
#include "base/paths.h"
#include "engine/loopback.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::Result;

namespace {

constexpr char kOwnNamespace[] = "/proc/thread-self/ns/net";

// Leaves the calling thread in the namespace that it makes.
Result<Fd> MakeNamespace() {
  if (unshare(CLONE_NEWNET) != 0) return ErrnoError("make network namespace", "spare");
  GCS_ASSIGN(Fd made, base::OpenFile(kOwnNamespace, O_RDONLY));
  if (const int err = SetLoopbackUp(); err != 0)
    return base::MakeError(-err, "set up loopback", "spare network namespace");
  return made;
}

}  // namespace

NetworkPool::~NetworkPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wanted_.notify_one();
  if (filler_.joinable()) filler_.join();
}

Fd NetworkPool::Take() {
  if (size_ == 0) return {};
  Fd taken;
  {
    const std::lock_guard lock(mutex_);
    if (!filler_.joinable()) filler_ = std::thread([this] { Fill(); });
    if (!spare_.empty()) {
      taken = std::move(spare_.back());
      spare_.pop_back();
    }
    // Several at a time, so that not each container pays for waking the thread.
    if (spare_.size() > Low()) return taken;
  }
  wanted_.notify_one();
  return taken;
}

void NetworkPool::Clear() {
  std::vector<Fd> dropped;  // closed without the lock: the last descriptor ends a namespace
  {
    const std::lock_guard lock(mutex_);
    dropped.swap(spare_);
    ++generation_;
  }
  wanted_.notify_one();
}

void NetworkPool::Fill() {
  pthread_setname_np(pthread_self(), "gcs-netns");
  const auto give_up = [](const base::Error& error) {
    // Containers have theirs from clone(2), and its error if that fails, too.
    base::Log(base::Level::kWarn, "no spare network namespaces", {{"error", error.ToString()}});
  };
  const auto own = base::OpenFile(kOwnNamespace, O_RDONLY);
  if (!own) return give_up(own.error());
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (spare_.size() < size_) {
      const uint64_t generation = generation_;
      lock.unlock();
      Result<Fd> made = MakeNamespace();
      lock.lock();
      if (!made) return give_up(made.error());
      if (generation == generation_) {
        spare_.push_back(std::move(*made));
        continue;
      }
      // net.core.devconf_inherit_init_net may be 3: the next one would inherit from this.
      if (setns(own->get(), CLONE_NEWNET) != 0) return give_up({"setns", errno, "own network namespace", {}});
      continue;
    }
    // A namespace lives as long as there is a thread in it.
    if (setns(own->get(), CLONE_NEWNET) != 0) return give_up({"setns", errno, "own network namespace", {}});
    wanted_.wait(lock, [&] { return stop_ || spare_.size() <= Low(); });
  }
}

}  // namespace gcs::engine
