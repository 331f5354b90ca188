// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <string>

#include "stdio/ring.h"
#include "unit/stdio_support.h"

using gcs::stdio::ChunksInUse;
using gcs::stdio::Ring;
using gcs::stdio::test::Pattern;

TEST_CASE("a ring keeps every byte at its offset over chunk borders") {
  for (const size_t size :
       {size_t{1}, Ring::kChunkBytes - 1, Ring::kChunkBytes, Ring::kChunkBytes + 1, size_t{100'000}}) {
    Ring ring;
    for (int round = 0; round < 5; ++round) {
      const uint64_t at = ring.end();
      const std::string data = Pattern(at, size);
      REQUIRE(ring.Append(data.data(), data.size()) == size);
      ring.DropTo(ring.end() - std::min<uint64_t>(ring.size(), size / 2 + 7));
      std::string kept;
      ring.Copy(ring.begin(), SIZE_MAX, kept);
      CHECK(kept == Pattern(ring.begin(), ring.size()));
      std::string middle;
      ring.Copy(ring.begin() + ring.size() / 2, 10, middle);
      CHECK(middle == Pattern(ring.begin() + ring.size() / 2, middle.size()));
      iovec iov[16];
      const int pieces = ring.Peek(SIZE_MAX, iov, 16);
      std::string peeked;
      for (int i = 0; i < pieces; ++i) peeked.append(static_cast<char*>(iov[i].iov_base), iov[i].iov_len);
      CHECK(peeked == kept);
    }
  }
}

TEST_CASE("an empty ring holds no memory and an unused reservation is given back") {
  const size_t before = ChunksInUse();
  Ring ring;
  CHECK(ChunksInUse() == before);
  iovec iov[8];
  CHECK(ring.Prepare(65536, iov, 8) == 4);
  ring.Commit(10);
  CHECK(ChunksInUse() == before + 1);
  ring.DropTo(10);
  CHECK(ring.empty());
  CHECK(ChunksInUse() == before);
  CHECK(ring.begin() == 10);
  const std::string data = Pattern(10, 1 << 20);
  REQUIRE(ring.Append(data.data(), data.size()) == data.size());
  CHECK(ChunksInUse() == before + 64);
  ring.DropTo(10 + (1 << 19));
  CHECK(ChunksInUse() == before + 32);
  ring.Clear();
  CHECK(ChunksInUse() == before);
}

TEST_CASE("a ring's drop never goes backwards or beyond its end") {
  Ring ring;
  REQUIRE(ring.Append("0123456789", 10) == 10);
  ring.DropTo(4);
  ring.DropTo(2);
  CHECK(ring.begin() == 4);
  ring.DropTo(50);
  CHECK(ring.begin() == 10);
  CHECK(ring.end() == 10);
}
