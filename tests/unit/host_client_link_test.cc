// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <cerrno>
#include <set>
#include <string>

#include "base/clock.h"
#include "host/client/client.h"
#include "host/client/link.h"

namespace gcs::host {
namespace {

TEST_CASE("a status with an ErrorDetail becomes that error; others keep code and message") {
  v1::ErrorDetail detail;
  detail.set_step("mount");
  detail.set_errno_number(ENODEV);
  detail.set_object("/x");
  detail.set_message("why");
  v1::StatusDetails details;
  v1::StatusDetail* any = details.add_details();
  any->set_type_url("type.googleapis.com/gcs.v1.ErrorDetail");
  any->set_value(detail.SerializeAsString());
  const CallError full = ToCallError(
      grpc::Status(grpc::StatusCode::NOT_FOUND, "text", details.SerializeAsString()), "Service.Call");
  CHECK(full.step == "mount");
  CHECK(full.err == ENODEV);
  CHECK(full.object == "/x");
  CHECK(full.message == "why");
  CHECK(full.code == grpc::StatusCode::NOT_FOUND);
  CHECK(full.from_agent);

  const CallError bare = ToCallError(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "no"), "Service.Call");
  CHECK(bare.step == "Service.Call");
  CHECK(bare.err == ENOSYS);
  CHECK(bare.message == "no");
  CHECK_FALSE(bare.from_agent);
  const CallError broken =
      ToCallError(grpc::Status(grpc::StatusCode::INTERNAL, "no", "\xff\xff not a message"), "Service.Call");
  CHECK(broken.err == EIO);
}

TEST_CASE("only a status that nobody has answered means a lost connection") {
  CHECK(IsLost(grpc::Status(grpc::StatusCode::UNAVAILABLE, "broken pipe")));
  CHECK_FALSE(IsLost(grpc::Status(grpc::StatusCode::UNAVAILABLE, "refused", "details")));
  CHECK_FALSE(IsLost(grpc::Status(grpc::StatusCode::NOT_FOUND, "")));
}

TEST_CASE("a connector that fails is asked again until the time is over") {
  int calls = 0;
  Client client(
      [&calls]() -> base::Result<base::Fd> {
        ++calls;
        return base::MakeError(ECONNREFUSED, "connect", "nowhere");
      },
      {.reconnect_timeout_ms = 300});
  const int64_t begin = base::MonotonicNs();
  const auto info = client.Call(v1::InfoRequest());
  const int64_t took = base::MonotonicNs() - begin;
  REQUIRE_FALSE(info);
  CHECK(info.error().err == ECONNREFUSED);
  CHECK(calls > 2);
  CHECK(took < 5 * base::kNsPerSec);
}

TEST_CASE("a peer that hangs up at once is tried on new connections, and the call ends in time") {
  int calls = 0;
  Client client(
      [&calls]() -> base::Result<base::Fd> {
        ++calls;
        int ends[2];
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        const base::Fd theirs(ends[1]);
        return base::Fd(ends[0]);
      },
      {.reconnect_timeout_ms = 300});
  const int64_t begin = base::MonotonicNs();
  const auto info = client.Call(v1::InfoRequest());
  REQUIRE_FALSE(info);
  CHECK(calls > 1);
  CHECK(base::MonotonicNs() - begin < 10 * base::kNsPerSec);
}

TEST_CASE("a peer that hangs up at once ends what follows events and logs, after some pauses") {
  int calls = 0;
  Client client(
      [&calls]() -> base::Result<base::Fd> {
        ++calls;
        int ends[2];
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        const base::Fd theirs(ends[1]);
        return base::Fd(ends[0]);
      },
      {.reconnect_timeout_ms = 300});
  uint64_t cursor = 0;
  const int64_t begin = base::MonotonicNs();
  CHECK_FALSE(client.WatchEvents(cursor, true, [](const v1::Event&) { return true; }));
  CHECK_FALSE(client.ReadLogs(cursor, true, [](const v1::LogRecord&) { return true; }));
  CHECK(calls > 2);
  CHECK(calls < 200);
  CHECK(base::MonotonicNs() - begin < 10 * base::kNsPerSec);
}

TEST_CASE("a peer that says nothing ends the call at its deadline") {
  base::Fd theirs;
  Client client([&theirs]() -> base::Result<base::Fd> {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    theirs.Reset(ends[1]);
    return base::Fd(ends[0]);
  });
  const int64_t begin = base::MonotonicNs();
  const auto info = client.Call(v1::InfoRequest(), {.timeout_ms = 300});
  REQUIRE_FALSE(info);
  CHECK(base::MonotonicNs() - begin < 5 * base::kNsPerSec);
}

TEST_CASE("request ids are UUIDs of version 4, and no two alike") {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string uuid = NewUuid();
    REQUIRE(uuid.size() == 36);
    CHECK(uuid[14] == '4');
    CHECK(seen.insert(uuid).second);
  }
}

}  // namespace
}  // namespace gcs::host
