// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "storage_support.h"
#include "support/skip.h"

namespace gcs::storage {
namespace {

bool KernelHas9p() { return ReadFile("/proc/filesystems").find("\t9p\n") != std::string::npos; }

// Numbers of 9P2000.L messages; a reply's is one more.
constexpr uint8_t kRlerror = 7;
constexpr uint8_t kTgetattr = 24;
constexpr uint8_t kTversion = 100;
constexpr uint8_t kTattach = 104;
constexpr uint8_t kTclunk = 120;

// A file server with one empty directory, which stops answering at a chosen message.
class Server {
 public:
  explicit Server(uint8_t silent_at = 0) : silent_at_(silent_at) {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    ours_.Reset(ends[0]);
    client_.Reset(ends[1]);
    thread_ = std::thread([this] { Serve(); });
  }
  ~Server() {
    client_.Reset();
    thread_.join();  // the connection has to end by itself: the kernel lets go of it with the mount
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  base::Fd TakeClient() { return std::move(client_); }

  // For the time after the connection has ended.
  std::string version, user, share;
  uint32_t msize = 0;

 private:
  template <typename T>
  static void Put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void PutQid(std::string& out) {
    Put<uint8_t>(out, 0x80);
    Put<uint32_t>(out, 1);
    Put<uint64_t>(out, 1);
  }
  static std::string GetString(const std::string& in, size_t& at) {
    uint16_t length = 0;
    memcpy(&length, in.data() + at, sizeof length);
    at += sizeof length;
    std::string text = in.substr(at, length);
    at += length;
    return text;
  }

  bool ReadAll(char* data, size_t size) const {
    while (size > 0) {
      const ssize_t n = read(ours_.get(), data, size);
      if (n <= 0) return false;
      data += n;
      size -= static_cast<size_t>(n);
    }
    return true;
  }

  void Serve() {
    for (;;) {
      uint32_t size = 0;
      if (!ReadAll(reinterpret_cast<char*>(&size), sizeof size) || size < 7 || size > 1 << 20) return;
      std::string in(size - 4, '\0');
      if (!ReadAll(in.data(), in.size())) return;
      const auto type = static_cast<uint8_t>(in[0]);
      if (type == silent_at_) continue;  // goes on reading: only the answer is missing
      std::string out = Answer(type, in);
      std::string reply;
      Put<uint32_t>(reply, static_cast<uint32_t>(out.size() + 7));
      Put<uint8_t>(reply, reply_type_);
      reply += in.substr(1, 2);
      reply += out;
      if (write(ours_.get(), reply.data(), reply.size()) != static_cast<ssize_t>(reply.size())) return;
    }
  }

  std::string Answer(uint8_t type, const std::string& in) {
    std::string out;
    reply_type_ = type + 1;
    if (type == kTversion) {
      memcpy(&msize, in.data() + 3, sizeof msize);
      size_t at = 7;
      version = GetString(in, at);
      out = in.substr(3);
    } else if (type == kTattach) {
      // Each further user of the mount attaches again, with an empty name and a number.
      size_t at = 11;
      const std::string name = GetString(in, at);
      if (user.empty()) {
        user = name;
        share = GetString(in, at);
      }
      PutQid(out);
    } else if (type == kTgetattr) {
      Put<uint64_t>(out, 0x7ff);
      PutQid(out);
      Put<uint32_t>(out, S_IFDIR | 0755);
      Put<uint32_t>(out, 0);
      Put<uint32_t>(out, 0);
      Put<uint64_t>(out, 2);
      for (int i = 0; i < 14; ++i) Put<uint64_t>(out, 0);
    } else if (type != kTclunk) {
      reply_type_ = kRlerror;
      Put<uint32_t>(out, EOPNOTSUPP);
    }
    return out;
  }

  const uint8_t silent_at_;
  uint8_t reply_type_ = 0;
  base::Fd ours_;
  base::Fd client_;
  std::thread thread_;
};

TEST_CASE_FIXTURE(StorageFixture, "a share is mounted on a connected descriptor as the request says") {
  if (!KernelHas9p()) GCS_SKIP("v9fs (CONFIG_9P_FS)");
  std::string version, user, share;
  uint32_t msize = 0;
  {
    Server server;
    const auto mounted = storage.MountShare(
        {.mount_id = "s", .port = 564, .share_name = "7", .read_only = true, .msize = 65536},
        server.TakeClient(), Soon());
    REQUIRE_MESSAGE(mounted, Why(mounted));
    struct stat st;
    CHECK(stat(mounted->path.c_str(), &st) == 0);
    CHECK(S_ISDIR(st.st_mode));
    const std::string line = MountLine(mounted->path);
    CHECK(line.find(" ro,nodev") != std::string::npos);
    CHECK(storage.List().at(0).source == "vsock:564 7");
    Unmount("s");
    // The kernel had the only other reference, so the connection has ended: the server's thread can be
    // joined.
    version = server.version;
    user = server.user;
    share = server.share;
    msize = server.msize;
  }
  CHECK(version == "9P2000.L");
  CHECK(user == "root");
  CHECK(share == "7");
  CHECK(msize == 65536);
}

TEST_CASE_FIXTURE(StorageFixture,
                  "a server that stops answering costs its caller the deadline and leaves nothing") {
  if (!KernelHas9p()) GCS_SKIP("v9fs (CONFIG_9P_FS)");
  for (const uint8_t silent_at : {kTversion, kTattach, kTgetattr}) {
    CAPTURE(static_cast<int>(silent_at));
    Server server(silent_at);
    const int64_t begin = base::MonotonicNs();
    const auto mounted = storage.MountShare({.mount_id = "s"}, server.TakeClient(),
                                            {.deadline_ns = begin + base::kNsPerSec / 2});
    const int64_t took = base::MonotonicNs() - begin;
    REQUIRE_FALSE(mounted);
    CHECK(mounted.error().err == ETIMEDOUT);
    CHECK(took < 5 * base::kNsPerSec);
    // The shut-down socket ended the kernel's wait: the id is free again.
    CHECK(storage.MountTmpfs({.mount_id = "s"}, Soon()));
    Unmount("s");
  }
}

TEST_CASE_FIXTURE(StorageFixture, "a server that hangs up fails the mount at once") {
  if (!KernelHas9p()) GCS_SKIP("v9fs (CONFIG_9P_FS)");
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  close(ends[1]);
  const int64_t begin = base::MonotonicNs();
  const auto mounted = storage.MountShare({.mount_id = "s"}, base::Fd(ends[0]), Soon());
  REQUIRE_FALSE(mounted);
  CHECK(mounted.error().step == "mount 9p");
  CHECK(mounted.error().err != ETIMEDOUT);
  CHECK(base::MonotonicNs() - begin < 5 * base::kNsPerSec);
}

}  // namespace
}  // namespace gcs::storage
