// SPDX-License-Identifier: Apache-2.0
#include "host/vsock/vhost_user.h"

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "host/vsock/unix_socket.h"

namespace gcs::host::vsock {

namespace {

// No header of Debian's describes the protocol.
enum Request : uint32_t {
  kGetFeatures = 1,
  kSetFeatures = 2,
  kSetOwner = 3,
  kResetOwner = 4,
  kSetMemTable = 5,
  kSetVringNum = 8,
  kSetVringAddr = 9,
  kSetVringBase = 10,
  kGetVringBase = 11,
  kSetVringKick = 12,
  kSetVringCall = 13,
  kSetVringErr = 14,
  kGetProtocolFeatures = 15,
  kSetProtocolFeatures = 16,
  kGetQueueNum = 17,
  kSetVringEnable = 18,
  kGetConfig = 24,
  kSetConfig = 25,
};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kFlagReply = 4;
constexpr uint32_t kFlagNeedReply = 8;
constexpr uint64_t kNoFd = 1U << 8;
constexpr size_t kMaxRegions = 8;
constexpr size_t kMaxPayload = 4096;

constexpr uint64_t Bit(int n) { return uint64_t{1} << n; }
constexpr int kProtocolFeaturesBit = 30;  // VHOST_USER_F_PROTOCOL_FEATURES
constexpr uint64_t kFeatures = Bit(VIRTIO_F_VERSION_1) | Bit(kProtocolFeaturesBit) |
                               Bit(VIRTIO_RING_F_EVENT_IDX) | Bit(VIRTIO_RING_F_INDIRECT_DESC);
constexpr uint64_t kProtocolMq = Bit(0);
constexpr uint64_t kProtocolReplyAck = Bit(3);
constexpr uint64_t kProtocolConfig = Bit(9);
constexpr uint64_t kProtocolFeatures = kProtocolMq | kProtocolReplyAck | kProtocolConfig;

struct VringState {
  uint32_t index;
  uint32_t num;
};
struct VringAddr {
  uint32_t index;
  uint32_t flags;
  uint64_t desc;
  uint64_t used;
  uint64_t avail;
  uint64_t log;
};
struct MemoryRegion {
  uint64_t guest;
  uint64_t size;
  uint64_t user;
  uint64_t offset;
};
struct ConfigRange {
  uint32_t offset;
  uint32_t size;
  uint32_t flags;
};

template <typename T>
base::Result<T> Read(const std::vector<uint8_t>& payload, size_t offset = 0) {
  if (offset + sizeof(T) > payload.size()) {
    return base::MakeError(EPROTO, "vhost-user message", std::to_string(payload.size()),
                           "payload is too short");
  }
  T value;
  memcpy(&value, payload.data() + offset, sizeof value);
  return value;
}

template <typename T>
std::span<const uint8_t> Bytes(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
}

}  // namespace

base::Result<std::unique_ptr<VhostUser>> VhostUser::Listen(base::Loop* loop, const std::string& path,
                                                           uint64_t guest_cid, Mux* mux) {
  GCS_ASSIGN(base::Fd listener, ListenUnix(path, 1));
  std::unique_ptr<VhostUser> server(new VhostUser(loop, path, guest_cid, mux, std::move(listener)));
  GCS_TRY(server->WatchListener());
  return server;
}

VhostUser::VhostUser(base::Loop* loop, std::string path, uint64_t guest_cid, Mux* mux, base::Fd listener)
    : loop_(loop), path_(std::move(path)), guest_cid_(guest_cid), mux_(mux), listener_(std::move(listener)) {}

VhostUser::~VhostUser() {
  if (client_) {
    Disconnect("device ends");
  }
  loop_->Remove(listener_.get());
  unlink(path_.c_str());
}

base::Result<> VhostUser::WatchListener() {
  return loop_->Add(listener_.get(), EPOLLIN, [this](uint32_t) { OnAccept(); });
}

void VhostUser::OnAccept() {
  client_.Reset(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!client_) return;
  // One VMM at a time: the next waits in the backlog until this one has gone.
  loop_->Remove(listener_.get());
  received_ = 0;
  const auto added = loop_->Add(client_.get(), EPOLLIN, [this](uint32_t) { OnReadable(); });
  if (!added) Disconnect("epoll_ctl failed");
}

void VhostUser::Disconnect(std::string_view why) {
  base::Log(base::Level::kDebug, "vsock: VMM disconnected", {{"why", std::string(why)}});
  for (Queue& queue : queues_) {
    StopQueue(queue);
    queue = Queue{};
  }
  loop_->Remove(client_.get());
  client_.Reset();
  message_ = {};
  features_ = protocol_features_ = 0;
  memory_ = GuestMemory{};
  const auto watched = WatchListener();
  if (!watched) base::LogError("vsock: no further VMM can connect", watched.error());
}

void VhostUser::OnReadable() {
  const auto complete = Receive();
  if (!complete) {
    if (complete.error().err == EPIPE) return Disconnect("end of stream");
    base::LogError("vsock: VMM dropped", complete.error());
    return Disconnect("protocol error");
  }
  if (!*complete) return;
  Message message = std::exchange(message_, {});
  received_ = 0;
  const auto handled = Handle(message);
  if (!handled)
    base::LogError("vsock: vhost-user request failed", handled.error(),
                   {{"request", std::to_string(message.request)}});
  const bool has_reply = message.request == kGetFeatures || message.request == kGetProtocolFeatures ||
                         message.request == kGetQueueNum || message.request == kGetVringBase ||
                         message.request == kGetConfig;
  const bool wants_ack =
      (message.flags & kFlagNeedReply) != 0 && (protocol_features_ & kProtocolReplyAck) != 0;
  if (wants_ack && !has_reply) {
    if (ReplyU64(message, handled ? 0 : 1)) return;
    return Disconnect("reply failed");
  }
  if (!handled) Disconnect("request failed");
}

base::Result<bool> VhostUser::Receive() {
  // Never more than to the end of this message, so that descriptors stay with the message they belong to.
  const size_t wanted =
      received_ < header_.size() ? header_.size() : header_.size() + message_.payload.size();
  uint8_t* at = received_ < header_.size() ? header_.data() + received_
                                           : message_.payload.data() + (received_ - header_.size());
  iovec iov = {.iov_base = at, .iov_len = wanted - received_};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxRegions * sizeof(int))> control;
  msghdr header = {};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  if (iov.iov_len > 0) {
    const ssize_t n = recvmsg(client_.get(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n == 0 || (n < 0 && errno == ECONNRESET)) return base::MakeError(EPIPE, "recvmsg", path_);
    if (n < 0) return base::ErrnoError("recvmsg", path_);
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd = -1;
        memcpy(&fd, CMSG_DATA(c) + (i * sizeof(int)), sizeof fd);
        message_.fds.emplace_back(fd);
      }
    }
    if ((header.msg_flags & MSG_CTRUNC) != 0 || message_.fds.size() > kMaxRegions) {
      return base::MakeError(EPROTO, "recvmsg", path_, "too many descriptors");
    }
    received_ += n;
  }
  if (received_ < header_.size()) return false;
  if (received_ == header_.size()) {
    uint32_t size = 0;
    memcpy(&message_.request, header_.data(), 4);
    memcpy(&message_.flags, header_.data() + 4, 4);
    memcpy(&size, header_.data() + 8, 4);
    if ((message_.flags & 3) != kVersion)
      return base::MakeError(EPROTO, "vhost-user message", path_, "unknown version");
    if (size > kMaxPayload) return base::MakeError(EMSGSIZE, "vhost-user message", path_);
    message_.payload.resize(size);
    // The payload is there already or comes with the next event.
    if (size > 0) return Receive();
  }
  return received_ == header_.size() + message_.payload.size();
}

base::Result<> VhostUser::Reply(const Message& to, std::span<const uint8_t> payload) {
  std::vector<uint8_t> out(header_.size() + payload.size());
  const uint32_t flags = kVersion | kFlagReply;
  const auto size = static_cast<uint32_t>(payload.size());
  memcpy(out.data(), &to.request, 4);
  memcpy(out.data() + 4, &flags, 4);
  memcpy(out.data() + 8, &size, 4);
  std::ranges::copy(payload, out.begin() + header_.size());
  // The VMM waits for each reply, so that its socket buffer is empty.
  if (send(client_.get(), out.data(), out.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(out.size())) {
    return base::ErrnoError("send", path_, "vhost-user reply");
  }
  return {};
}

base::Result<> VhostUser::ReplyU64(const Message& to, uint64_t value) { return Reply(to, Bytes(value)); }

base::Result<VhostUser::Queue*> VhostUser::QueueOf(const Message& message) {
  GCS_ASSIGN(const uint32_t index, Read<uint32_t>(message.payload));
  if (index >= queues_.size())
    return base::MakeError(EINVAL, "vhost-user queue", std::to_string(index), "no such queue");
  return &queues_[index];
}

base::Result<> VhostUser::Handle(Message& message) {
  switch (message.request) {
    case kGetFeatures:
      return ReplyU64(message, kFeatures);
    case kSetFeatures: {
      GCS_ASSIGN(features_, Read<uint64_t>(message.payload));
      return {};
    }
    case kGetProtocolFeatures:
      return ReplyU64(message, kProtocolFeatures);
    case kSetProtocolFeatures: {
      GCS_ASSIGN(protocol_features_, Read<uint64_t>(message.payload));
      return {};
    }
    case kGetQueueNum:
      return ReplyU64(message, 3);  // rx, tx and the event queue, which stays with the VMM
    case kSetOwner:
      return {};
    case kResetOwner:
      for (Queue& queue : queues_) StopQueue(queue);
      return {};
    case kSetMemTable:
      return SetMemTable(message);
    case kSetVringNum: {
      GCS_ASSIGN(Queue * queue, QueueOf(message));
      GCS_ASSIGN(const auto state, Read<VringState>(message.payload));
      queue->config.num = state.num;
      return {};
    }
    case kSetVringAddr:
      return SetVringAddr(message);
    case kSetVringBase: {
      GCS_ASSIGN(Queue * queue, QueueOf(message));
      GCS_ASSIGN(const auto state, Read<VringState>(message.payload));
      queue->base = static_cast<uint16_t>(state.num);
      return {};
    }
    case kGetVringBase: {
      GCS_ASSIGN(Queue * queue, QueueOf(message));
      GCS_ASSIGN(auto state, Read<VringState>(message.payload));
      StopQueue(*queue);
      if (queue->kick) loop_->Remove(queue->kick.get());
      queue->kick.Reset();
      state.num = queue->base;
      return Reply(message, Bytes(state));
    }
    case kSetVringKick:
    case kSetVringCall:
    case kSetVringErr:
      return SetVringFd(message);
    case kSetVringEnable: {
      GCS_ASSIGN(Queue * queue, QueueOf(message));
      GCS_ASSIGN(const auto state, Read<VringState>(message.payload));
      queue->enabled = state.num != 0;
      if (queue->enabled) {
        StartQueue(*queue);
      } else {
        StopQueue(*queue);
      }
      return {};
    }
    case kGetConfig:
      return GetConfig(message);
    case kSetConfig:
      return base::MakeError(EPERM, "vhost-user set config", {}, "the device has no writable configuration");
    default:
      return base::MakeError(EOPNOTSUPP, "vhost-user message", std::to_string(message.request),
                             "unknown request");
  }
}

base::Result<> VhostUser::SetMemTable(Message& message) {
  GCS_ASSIGN(const auto count, Read<uint32_t>(message.payload));
  if (count > kMaxRegions || count != message.fds.size()) {
    return base::MakeError(EINVAL, "vhost-user memory table", std::to_string(count),
                           "regions and descriptors differ");
  }
  GuestMemory memory;
  for (uint32_t i = 0; i < count; ++i) {
    GCS_ASSIGN(const auto region, Read<MemoryRegion>(message.payload, 8 + (i * sizeof(MemoryRegion))));
    GCS_TRY(memory.Map(region.guest, region.user, region.size, region.offset, message.fds[i]));
  }
  // The Mux keeps no pointer into the memory between two events, so that the table may change under running
  // queues (memory hot-plug).
  memory_ = std::move(memory);
  for (Queue& queue : queues_) {
    if (!queue.ring.running()) continue;
    const auto mapped = queue.ring.Remap();
    if (mapped) continue;
    StopQueue(queue);
    return mapped;
  }
  return {};
}

base::Result<> VhostUser::SetVringAddr(const Message& message) {
  GCS_ASSIGN(Queue * queue, QueueOf(message));
  GCS_ASSIGN(const auto addr, Read<VringAddr>(message.payload));
  queue->config.desc = addr.desc;
  queue->config.avail = addr.avail;
  queue->config.used = addr.used;
  queue->addressed = true;
  return {};
}

base::Result<> VhostUser::SetVringFd(Message& message) {
  GCS_ASSIGN(const uint64_t word, Read<uint64_t>(message.payload));
  const uint64_t index = word & 0xFF;
  const bool none = (word & kNoFd) != 0;
  if (index >= queues_.size() || message.fds.size() != (none ? 0 : 1)) {
    return base::MakeError(EINVAL, "vhost-user queue descriptor", std::to_string(index));
  }
  Queue& queue = queues_[index];
  base::Fd fd = none ? base::Fd() : std::move(message.fds[0]);
  switch (message.request) {
    case kSetVringKick:
      if (none) return base::MakeError(EOPNOTSUPP, "vhost-user kick", std::to_string(index), "polling mode");
      if (queue.kick) loop_->Remove(queue.kick.get());
      queue.kick = std::move(fd);
      // Edge-triggered: the counter need not be read.
      GCS_TRY(loop_->Add(queue.kick.get(), EPOLLIN | EPOLLET, [this](uint32_t) { mux_->OnKick(); }));
      StartQueue(queue);
      return {};
    case kSetVringCall:
      queue.call = std::move(fd);
      // Whatever was signalled through the old descriptor may have been lost.
      Signal(static_cast<QueueIndex>(index));
      return {};
    default:
      return {};  // nobody listens on the error descriptor; errors are logged
  }
}

base::Result<> VhostUser::GetConfig(const Message& message) {
  GCS_ASSIGN(const auto range, Read<ConfigRange>(message.payload));
  std::vector<uint8_t> payload = message.payload;
  if (range.offset > sizeof guest_cid_ || range.size > sizeof guest_cid_ - range.offset ||
      payload.size() < sizeof range + range.size) {
    return Reply(message, {});  // an empty reply is the protocol's error
  }
  memcpy(payload.data() + sizeof range, reinterpret_cast<const uint8_t*>(&guest_cid_) + range.offset,
         range.size);
  return Reply(message, payload);
}

void VhostUser::StartQueue(Queue& queue) {
  const bool enabled = queue.enabled || (features_ & Bit(kProtocolFeaturesBit)) == 0;
  if (!enabled || !queue.kick || !queue.addressed || queue.config.num == 0 || queue.ring.running()) return;
  queue.config.event_idx = (features_ & Bit(VIRTIO_RING_F_EVENT_IDX)) != 0;
  queue.config.indirect = (features_ & Bit(VIRTIO_RING_F_INDIRECT_DESC)) != 0;
  // The addresses are the guest driver's: a bad one disables the queue, not the VMM's connection.
  const auto started = queue.ring.Start(&memory_, queue.config, queue.base);
  if (!started) {
    base::LogError("vsock: queue disabled until the driver is reset", started.error(),
                   {{"queue", std::to_string(&queue - queues_.data())}});
    return;
  }
  if (queues_[kRxQueue].ring.running() && queues_[kTxQueue].ring.running()) {
    mux_->Start(&queues_[kRxQueue].ring, &queues_[kTxQueue].ring);
  }
}

void VhostUser::StopQueue(Queue& queue) {
  if (mux_->running()) mux_->Stop();
  if (queue.ring.running()) queue.base = queue.ring.Stop();
}

void VhostUser::Signal(QueueIndex index) {
  if (!queues_[index].call) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(queues_[index].call.get(), &one, sizeof one);
}

}  // namespace gcs::host::vsock
