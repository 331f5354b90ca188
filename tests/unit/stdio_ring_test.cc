// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <string>

#include "stdio/endpoint.h"
#include "stdio/ring.h"
#include "unit/stdio_support.h"

using gcs::base::Fd;
using gcs::stdio::MakeStage;
using gcs::stdio::Ring;
using gcs::stdio::test::Pattern;

namespace {

constexpr size_t kPage = 4096;

Ring MakeRing() {
  auto ring = Ring::Create("test");
  REQUIRE(ring);
  return std::move(*ring);
}

std::string All(const Ring& ring) {
  std::string kept;
  ring.Copy(ring.begin(), SIZE_MAX, kept);
  return kept;
}

// As the next life of the agent gets it.
Ring Inherit(const Ring& ring) {
  auto next = Ring::Restore(Fd(dup(ring.fd())), "test");
  REQUIRE(next);
  return std::move(*next);
}

}  // namespace

TEST_CASE("a ring keeps every byte at its offset over page borders, also in another life") {
  for (const size_t size : {size_t{1}, kPage - 1, kPage, kPage + 1, size_t{100'000}}) {
    Ring ring = MakeRing();
    for (int round = 0; round < 5; ++round) {
      const uint64_t at = ring.end();
      const std::string data = Pattern(at, size);
      REQUIRE(ring.Append(data) == size);
      ring.DropTo(ring.end() - std::min<uint64_t>(ring.size(), size / 2 + 7));
      CHECK(All(ring) == Pattern(ring.begin(), ring.size()));
      std::string middle;
      ring.Copy(ring.begin() + ring.size() / 2, 10, middle);
      CHECK(middle == Pattern(ring.begin() + ring.size() / 2, middle.size()));
      Ring next = Inherit(ring);
      CHECK(next.begin() == ring.begin());
      CHECK(next.end() == ring.end());
      CHECK(All(next) == All(ring));
      ring = std::move(next);
    }
  }
}

TEST_CASE("a ring takes from a pipe and gives to one, and the file counts both") {
  Ring ring = MakeRing();
  auto from = MakeStage("test");
  auto to = MakeStage("test");
  REQUIRE(from);
  REQUIRE(to);
  const std::string data = Pattern(0, 10'000);
  REQUIRE(write(from->second.get(), data.data(), data.size()) == static_cast<ssize_t>(data.size()));
  CHECK(ring.TakeFrom(from->first.get(), 3000) == 3000);
  CHECK(ring.TakeFrom(from->first.get(), 1 << 20) == 7000);
  CHECK(ring.TakeFrom(from->first.get(), 1) == -1);
  CHECK(errno == EAGAIN);
  CHECK(All(ring) == data);
  // What a pipe holds is of the file's pages, which may be given back meanwhile.
  CHECK(ring.GiveTo(to->second.get(), 9000) == 9000);
  CHECK(Inherit(ring).begin() == 9000);
  CHECK(ring.GiveTo(to->second.get(), 9000) == 1000);
  CHECK(ring.empty());
  const std::string more = Pattern(10'000, 2000);
  REQUIRE(ring.Append(more) == more.size());
  std::string got(data.size(), '\0');
  REQUIRE(read(to->first.get(), got.data(), got.size()) == static_cast<ssize_t>(got.size()));
  CHECK(got == data);
  from->second.Reset();
  CHECK(ring.TakeFrom(from->first.get(), 1) == 0);
}

TEST_CASE("an empty ring holds no more than the page that it is in") {
  Ring ring = MakeRing();
  CHECK(ring.memory() == 0);
  const std::string data = Pattern(0, 1 << 20);
  REQUIRE(ring.Append(data) == data.size());
  CHECK(ring.memory() == 1 << 20);
  ring.DropTo(1 << 19);
  CHECK(ring.memory() == 1 << 19);
  CHECK(All(ring) == Pattern(1 << 19, 1 << 19));
  ring.Clear();
  CHECK(ring.memory() == 0);
  REQUIRE(ring.Append("x") == 1);
  ring.Clear();
  CHECK(ring.memory() <= kPage);
  CHECK(ring.begin() == (1 << 20) + 1);
}

TEST_CASE("a ring's drop never goes backwards or beyond its end") {
  Ring ring = MakeRing();
  REQUIRE(ring.Append("0123456789") == 10);
  ring.DropTo(4);
  ring.DropTo(2);
  CHECK(ring.begin() == 4);
  ring.DropTo(50);
  CHECK(ring.begin() == 10);
  CHECK(ring.end() == 10);
}

TEST_CASE("a ring's mark outlives its user, and a file that is no ring's is refused") {
  Ring ring = MakeRing();
  CHECK_FALSE(ring.over());
  CHECK_FALSE(Inherit(ring).over());
  ring.MarkOver();
  CHECK(ring.over());
  CHECK(Inherit(ring).over());
  lseek(ring.fd(), 5, SEEK_SET);
  CHECK(Ring::Restore(Fd(dup(ring.fd())), "test").error().err == EINVAL);
  auto pipe = MakeStage("test");
  REQUIRE(pipe);
  CHECK(Ring::Restore(std::move(pipe->first), "test").error().err == ESPIPE);
}
