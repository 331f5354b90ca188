// SPDX-License-Identifier: Apache-2.0
#include "init/store.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <optional>
#include <vector>

namespace {

using gcs::base::Fd;
using gcs::base::InitMessage;
using gcs::base::InitOp;
using gcs::base::InitPacket;
using gcs::base::kInitReply;
using gcs::base::kMaxStoreFds;
using gcs::init::Store;

constexpr uint64_t kMaxKey = std::numeric_limits<uint64_t>::max();

struct Rig {
  explicit Rig(size_t most = Store::kMost) : store(most) {
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
    agent.Reset(fds[0]);
    init.Reset(fds[1]);
    REQUIRE(pipe2(fds, O_CLOEXEC) == 0);
    read_end.Reset(fds[0]);
    write_end.Reset(fds[1]);
  }

  // One packet to the store and what comes back, none if nothing does.
  std::optional<InitPacket> Ask(InitOp op, uint64_t arg, uint64_t arg2, const std::vector<int>& fds) {
    REQUIRE(gcs::base::SendInit(
        agent.get(), {.op = static_cast<uint32_t>(op), .id = ++id, .arg = arg, .arg2 = arg2}, {}, fds, 0));
    return Serve(op);
  }
  std::optional<InitPacket> Serve(InitOp op) {
    auto packet = gcs::base::ReceiveInit(init.get(), MSG_DONTWAIT);
    REQUIRE(packet);
    REQUIRE(store.Serve(init.get(), *packet));
    packet->fds.clear();
    auto reply = gcs::base::ReceiveInit(agent.get(), MSG_DONTWAIT);
    if (!reply) {
      CHECK(reply.error().err == EAGAIN);
      return std::nullopt;
    }
    CHECK(reply->message.op == (static_cast<uint32_t>(op) | kInitReply));
    CHECK(reply->message.id == id);
    return *std::move(reply);
  }
  int Put(uint64_t first, const std::vector<int>& fds) {
    const auto reply = Ask(InitOp::kStorePut, first, 0, fds);
    REQUIRE(reply);
    CHECK(reply->size == sizeof(InitMessage));
    return reply->message.status;
  }
  std::vector<uint64_t> Keys() {
    std::vector<uint64_t> keys;
    uint64_t next = 0;
    do {
      const auto reply = Ask(InitOp::kStoreTake, next, 0, {});
      REQUIRE(reply);
      REQUIRE(reply->message.arg == reply->fds.size());
      REQUIRE(reply->size == sizeof(InitMessage) + 8 * reply->fds.size());
      keys.insert(keys.end(), reply->keys.begin(), reply->keys.begin() + reply->fds.size());
      next = reply->message.arg2;
    } while (next != 0);
    return keys;
  }

  Store store;
  Fd agent;
  Fd init;
  Fd read_end;
  Fd write_end;
  uint32_t id = 0;
};

bool AtEnd(int fd) {
  char byte;
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return read(fd, &byte, 1) == 0;
}

}  // namespace

TEST_CASE("a stored descriptor outlives its sender's copy, is replaced and dropped") {
  Rig rig;
  CHECK(rig.Put(7, {rig.write_end.get(), rig.write_end.get()}) == 0);
  rig.write_end.Reset();
  CHECK_FALSE(AtEnd(rig.read_end.get()));
  CHECK(rig.Keys() == std::vector<uint64_t>{7, 8});
  {
    const auto taken = rig.Ask(InitOp::kStoreTake, 8, 0, {});
    REQUIRE(taken);
    REQUIRE(taken->fds.size() == 1);
    CHECK(fcntl(taken->fds[0].get(), F_GETFD) == FD_CLOEXEC);
    CHECK(write(taken->fds[0].get(), "x", 1) == 1);
    char byte = 0;
    CHECK(read(rig.read_end.get(), &byte, 1) == 1);
  }
  CHECK(rig.Put(7, {rig.read_end.get()}) == 0);
  CHECK_FALSE(AtEnd(rig.read_end.get()));
  CHECK_FALSE(rig.Ask(InitOp::kStoreDrop, 8, 1, {}));
  CHECK(AtEnd(rig.read_end.get()));
  CHECK(rig.Keys() == std::vector<uint64_t>{7});
}

TEST_CASE("more than a packet's worth is taken in order, in several packets") {
  Rig rig;
  std::vector<uint64_t> expected;
  for (uint64_t key = 200; key > 0; key -= 2) CHECK(rig.Put(key, {rig.read_end.get()}) == 0);
  for (uint64_t key = 2; key <= 200; key += 2) expected.push_back(key);
  CHECK(rig.Keys() == expected);
  const auto all = rig.Ask(InitOp::kStoreTake, 0, 0, {});
  REQUIRE(all);
  CHECK(all->fds.size() == kMaxStoreFds);
  CHECK(all->message.arg2 == 2 * (kMaxStoreFds + 1));
}

TEST_CASE("a packet that is refused leaves the store as it was and no descriptor open") {
  Rig rig(3);
  CHECK(rig.Put(1, {}) == EINVAL);
  CHECK(rig.Put(kMaxKey, {rig.write_end.get(), rig.write_end.get()}) == EINVAL);
  CHECK(rig.Put(1, {rig.read_end.get(), rig.read_end.get()}) == 0);
  CHECK(rig.Put(2, std::vector<int>(3, rig.write_end.get())) == ENOSPC);
  CHECK(rig.Keys() == std::vector<uint64_t>{1, 2});
  // One replaced, one new: it just fits.
  CHECK(rig.Put(2, {rig.read_end.get(), rig.read_end.get()}) == 0);
  CHECK(rig.Put(9, {rig.write_end.get()}) == ENOSPC);
  CHECK(rig.Put(kMaxKey, {rig.write_end.get()}) == ENOSPC);

  // 33, which the sender's side of ours does not send.
  const std::vector<int> many(kMaxStoreFds + 1, rig.write_end.get());
  InitMessage message{.op = static_cast<uint32_t>(InitOp::kStorePut), .id = ++rig.id, .arg = 1};
  alignas(cmsghdr) char control[CMSG_SPACE((kMaxStoreFds + 1) * sizeof(int))] = {};
  iovec part{&message, sizeof message};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(many.size() * sizeof(int));
  memcpy(CMSG_DATA(rights), many.data(), many.size() * sizeof(int));
  REQUIRE(sendmsg(rig.agent.get(), &header, 0) == sizeof message);
  const auto refused = rig.Serve(InitOp::kStorePut);
  REQUIRE(refused);
  CHECK(refused->message.status == EINVAL);
  CHECK(rig.Keys() == std::vector<uint64_t>{1, 2, 3});

  rig.write_end.Reset();
  CHECK(AtEnd(rig.read_end.get()));
}

TEST_CASE("drops of any range end at once, descriptors sent to other requests are closed") {
  Rig rig;
  CHECK(rig.Put(5, {rig.read_end.get(), rig.read_end.get()}) == 0);
  CHECK(rig.Put(kMaxKey, {rig.read_end.get()}) == 0);
  CHECK_FALSE(rig.Ask(InitOp::kStoreDrop, 5, 0, {}));
  CHECK_FALSE(rig.Ask(InitOp::kStoreDrop, 7, kMaxKey - 7, {}));
  CHECK(rig.Keys() == std::vector<uint64_t>{5, 6, kMaxKey});
  CHECK_FALSE(rig.Ask(InitOp::kStoreDrop, 6, kMaxKey, {rig.write_end.get()}));
  CHECK(rig.Keys() == std::vector<uint64_t>{5});
  CHECK(rig.Ask(InitOp::kStoreTake, kMaxKey, 0, {rig.write_end.get()}));
  rig.write_end.Reset();
  CHECK(AtEnd(rig.read_end.get()));
  CHECK_FALSE(rig.Ask(InitOp::kStoreDrop, 0, kMaxKey, {}));
  CHECK(rig.store.size() == 0);
}

TEST_CASE("an agent that reads no replies cannot hold the store") {
  Rig rig;
  CHECK(rig.Put(1, std::vector<int>(kMaxStoreFds, rig.read_end.get())) == 0);
  for (int i = 0; i < 5000; ++i) {
    InitPacket take{.message = {.op = static_cast<uint32_t>(InitOp::kStoreTake)}};
    REQUIRE(rig.store.Serve(rig.init.get(), take));
  }
  CHECK(rig.store.size() == kMaxStoreFds);
}

TEST_CASE("other requests are not the store's") {
  Rig rig;
  InitPacket hello{.message = {.op = static_cast<uint32_t>(InitOp::kHello)}};
  CHECK_FALSE(rig.store.Serve(rig.init.get(), hello));
}
