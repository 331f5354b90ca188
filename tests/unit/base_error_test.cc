// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::base {
namespace {

bool IsOpen(int fd) { return fcntl(fd, F_GETFD) >= 0; }

int OpenNull() {
  const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  REQUIRE(fd >= 0);
  return fd;
}

Result<int> Half(int value) {
  if (value % 2 != 0) return MakeError(EDOM, "halve", std::to_string(value), "odd");
  return value / 2;
}

Result<int> Quarter(int value) {
  GCS_ASSIGN(const int half, Half(value));
  GCS_ASSIGN(const int quarter, Half(half));
  return quarter;
}

Result<> CheckEven(int value) {
  GCS_TRY(Half(value));
  return {};
}

TEST_CASE("an error's text names step, object, errno and message, and leaves out what is empty") {
  CHECK(Error{"mount", ENODEV, "/run/layers/0", "ext4"}.ToString() ==
        "mount (/run/layers/0): No such device: ext4");
  CHECK(Error{"mount", ENODEV, "/run/layers/0", ""}.ToString() == "mount (/run/layers/0): No such device");
  CHECK(Error{"fork", EAGAIN, "", ""}.ToString() == "fork: Resource temporarily unavailable");
  CHECK(Error{"parse", 0, "config.json", "no root"}.ToString() == "parse (config.json): no root");
  CHECK(Error{"parse", 0, "", ""}.ToString() == "parse");
}

TEST_CASE("an errno without a name keeps its number") {
  CHECK(ErrnoName(ENOENT) == "ENOENT");
  CHECK(ErrnoName(4000) == "E?4000");
  CHECK(Error{"ioctl", 4000, "", ""}.ToString() == "ioctl: error 4000");
}

TEST_CASE("ErrnoError takes errno at the call") {
  REQUIRE(open("/nonexistent/file", O_RDONLY) == -1);
  const Result<> result = ErrnoError("open", "/nonexistent/file");
  REQUIRE(!result);
  CHECK(result.error().err == ENOENT);
  CHECK(result.error().step == "open");
  CHECK(result.error().object == "/nonexistent/file");
}

TEST_CASE("GCS_ASSIGN and GCS_TRY hand the first error to the caller, whole") {
  CHECK(*Quarter(12) == 3);
  const Result<int> outer = Quarter(7);
  REQUIRE(!outer);
  CHECK(outer.error().object == "7");
  const Result<int> inner = Quarter(6);
  REQUIRE(!inner);
  CHECK(inner.error().object == "3");
  CHECK(inner.error().message == "odd");
  CHECK(CheckEven(2).has_value());
  REQUIRE(!CheckEven(5));
  CHECK(CheckEven(5).error().err == EDOM);
}

TEST_CASE("a descriptor is closed once by its last owner") {
  const int raw = OpenNull();
  {
    Fd first(raw);
    const Fd second(std::move(first));
    CHECK(!first.valid());  // NOLINT(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is tested
    CHECK(second.get() == raw);
    CHECK(IsOpen(raw));
  }
  CHECK(!IsOpen(raw));
}

TEST_CASE("assigning to a descriptor closes the old one and survives self-move") {
  const int one = OpenNull();
  const int two = OpenNull();
  Fd fd(one);
  fd = Fd(two);
  CHECK(!IsOpen(one));
  Fd& alias = fd;
  fd = std::move(alias);
  CHECK(fd.get() == two);
  CHECK(IsOpen(two));
  const int released = fd.Release();
  CHECK(released == two);
  fd.Reset();
  CHECK(IsOpen(two));
  close(two);
}

TEST_CASE("closing a descriptor keeps errno") {
  errno = ENOTUNIQ;
  {
    const Fd bad(1'000'000);
  }  // close(2) fails with EBADF
  CHECK(errno == ENOTUNIQ);
}

}  // namespace
}  // namespace gcs::base
