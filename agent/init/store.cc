// SPDX-License-Identifier: Apache-2.0
#include "init/store.h"

#include <sys/socket.h>

#include <algorithm>
#include <climits>
#include <iterator>
#include <limits>

#include "init/klog.h"

namespace gcs::init {

namespace {

// What init needs for itself, those of a packet that is just coming in among them.
constexpr size_t kOwnFds = 128;

void Reply(int line, const base::InitMessage& message) {
  // An agent that does not read its replies loses them.
  [[maybe_unused]] const auto sent = base::SendInit(line, message, {}, {}, MSG_DONTWAIT);
}

}  // namespace

bool Store::Serve(int line, base::InitPacket& packet) {
  const base::InitMessage& request = packet.message;
  switch (static_cast<base::InitOp>(request.op)) {
    case base::InitOp::kStorePut:
      Reply(line, {.op = request.op | base::kInitReply,
                   .id = request.id,
                   .status = Put(request.arg, request.arg2, packet)});
      return true;
    case base::InitOp::kStoreDrop:
      Drop(request.arg, request.arg2);
      return true;
    case base::InitOp::kStoreTake:
      SendFrom(line, request);
      return true;
    case base::InitOp::kStoreExit:
      SendExit(line, request);
      return true;
    default:
      return false;
  }
}

int Store::Put(uint64_t first, uint64_t pid, base::InitPacket& packet) {
  const size_t count = packet.fds.size();
  if (packet.fds_cut || count == 0 || count > base::kMaxStoreFds || pid > INT_MAX) return EINVAL;
  if (first > std::numeric_limits<uint64_t>::max() - (count - 1)) return EINVAL;
  size_t added = 0;
  for (size_t i = 0; i < count; ++i) added += held_.contains(first + i) ? 0 : 1;
  if (held_.size() + added > most_) return ENOSPC;
  Drop(first, count);
  for (size_t i = 0; i < count; ++i) held_[first + i] = std::move(packet.fds[i]);
  if (pid != 0) {
    watched_[first].pid = static_cast<pid_t>(pid);
    // The last one to have the number: the one before was reaped by the agent.
    living_[static_cast<pid_t>(pid)] = first;
  }
  return 0;
}

void Store::NoteExit(pid_t pid, const base::InitExit& exit) {
  const auto living = living_.find(pid);
  if (living == living_.end()) return;
  watched_[living->second].exit = exit;
  living_.erase(living);
}

void Store::SendExit(int line, const base::InitMessage& request) const {
  base::InitMessage reply{.op = request.op | base::kInitReply, .id = request.id};
  const auto found = watched_.find(request.arg);
  if (found == watched_.end()) {
    reply.status = ENOENT;
  } else if (!found->second.exit) {
    reply.status = EAGAIN;
  } else {
    reply.arg = found->second.exit->Arg();
    reply.arg2 = found->second.exit->Arg2();
  }
  Reply(line, reply);
}

void Store::Drop(uint64_t first, uint64_t count) {
  if (count == 0) return;
  const uint64_t last = first + std::min(count - 1, std::numeric_limits<uint64_t>::max() - first);
  held_.erase(held_.lower_bound(first), held_.upper_bound(last));
  for (auto at = watched_.lower_bound(first); at != watched_.end() && at->first <= last;) {
    const auto living = living_.find(at->second.pid);
    if (living != living_.end() && living->second == at->first) living_.erase(living);
    at = watched_.erase(at);
  }
}

void Store::SendFrom(int line, const base::InitMessage& request) const {
  uint64_t keys[base::kMaxStoreFds];
  int fds[base::kMaxStoreFds];
  base::InitMessage reply{.op = request.op | base::kInitReply, .id = request.id};
  auto at = held_.lower_bound(request.arg);
  size_t count = 0;
  for (; at != held_.end() && count < base::kMaxStoreFds; ++at, ++count) {
    keys[count] = at->first;
    fds[count] = at->second.get();
  }
  reply.arg = count;
  if (at != held_.end()) reply.arg2 = at->first;
  const auto sent = base::SendInit(line, reply, {keys, count}, {fds, count}, MSG_DONTWAIT);
  if (sent || sent.error().err == EAGAIN) return;
  Reply(line, {.op = reply.op, .id = reply.id, .status = sent.error().err});
}

size_t RaiseFileLimit(rlimit& before) {
  if (getrlimit(RLIMIT_NOFILE, &before) != 0) return 0;
  const rlim_t wanted = Store::kMost + kOwnFds;
  rlimit raised{.rlim_cur = std::max(before.rlim_cur, wanted), .rlim_max = std::max(before.rlim_max, wanted)};
  if (setrlimit(RLIMIT_NOFILE, &raised) == 0) return Store::kMost;
  LogError("raise the limit of descriptors", base::ErrnoError("setrlimit", "RLIMIT_NOFILE").error());
  raised = {.rlim_cur = before.rlim_max, .rlim_max = before.rlim_max};
  if (setrlimit(RLIMIT_NOFILE, &raised) != 0) raised = before;
  return raised.rlim_cur > kOwnFds ? static_cast<size_t>(raised.rlim_cur) - kOwnFds : 0;
}

}  // namespace gcs::init
