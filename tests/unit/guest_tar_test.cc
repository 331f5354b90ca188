// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "guest/tar.h"

namespace gcs::guest {
namespace {

struct Collected final : TarDecoder::Sink {
  struct Item {
    TarEntry entry;
    std::string data;
    bool ended = false;
  };
  std::vector<Item> items;

  base::Result<> Begin(const TarEntry& entry) override {
    items.push_back({entry, {}, false});
    return {};
  }
  base::Result<> Data(std::string_view bytes) override {
    CHECK_FALSE(bytes.empty());
    items.back().data += bytes;
    return {};
  }
  base::Result<> End() override {
    CHECK_FALSE(items.back().ended);
    items.back().ended = true;
    return {};
  }
};

base::Result<> Decode(const std::string& stream, Collected& sink, size_t piece = 1 << 20) {
  TarDecoder decoder(&sink);
  for (size_t at = 0; at < stream.size(); at += piece) {
    GCS_TRY(decoder.Push(std::string_view(stream).substr(at, piece)));
  }
  return decoder.Finish();
}

int ErrnoOf(const std::string& stream) {
  Collected sink;
  const auto decoded = Decode(stream, sink);
  return decoded ? 0 : decoded.error().err;
}

// A header block with a right checksum.
std::string Block(char type, const std::string& name, const std::string& size = "00000000000") {
  std::string block(kTarBlock, '\0');
  memcpy(block.data(), name.data(), name.size());
  memcpy(block.data() + 124, size.data(), size.size());
  block[156] = type;
  memcpy(block.data() + 257, "ustar\00000", 8);
  unsigned sum = 8 * ' ';
  for (const char c : block) sum += static_cast<unsigned char>(c);
  char digits[8];
  snprintf(digits, sizeof digits, "%06o", sum);
  memcpy(block.data() + 148, digits, 7);
  return block;
}

std::string Extension(char type, std::string body) {
  char size[12];
  snprintf(size, sizeof size, "%011zo", body.size());
  std::string out = Block(type, "ext", size);
  body.append(TarPadding(body.size()), '\0');
  return out + body;
}

const std::string kEnd(2 * kTarBlock, '\0');

TEST_CASE("what is encoded is decoded, whatever the values and the size of the pieces") {
  std::vector<TarEntry> entries(8);
  entries[0] = {.path = "file", .mode = 04755, .uid = 0, .gid = 7, .size = 1000, .mtime = 1, .mtime_ns = 5};
  entries[1] = {.path = std::string(99, 'a') + "/" + std::string(200, 'b'), .size = 512, .mtime = -1};
  entries[2] = {.path = "l\xc3\xa9\xff", .link = std::string(3000, 'x'), .type = TarType::kSymlink};
  entries[3] = {.path = "dev",
                .type = TarType::kCharDevice,
                .uid = 4'000'000'000,
                .gid = 4'294'967'294,
                .major = 10,
                .minor = 229};
  entries[4] = {.path = "early", .mtime = -1, .mtime_ns = 500'000'000};
  entries[5] = {.path = "xattrs", .size = 1, .xattrs = {{"user.a", std::string("\0\n=", 3)}, {"user.b", ""}}};
  entries[6] = {.path = "dir/", .type = TarType::kDirectory, .mode = 01777, .mtime = 1LL << 40};
  entries[7] = {.path = "hard", .link = "file", .type = TarType::kHardLink};
  std::string stream;
  for (const TarEntry& entry : entries) {
    AppendTarHeader(stream, entry);
    stream.append(entry.size, static_cast<char>('0' + entry.size % 10));
    stream.append(TarPadding(entry.size), '\0');
  }
  AppendTarEnd(stream);
  REQUIRE(stream.size() % kTarBlock == 0);
  for (const size_t piece : {1, 7, 511, 512, 513, 1 << 20}) {
    CAPTURE(piece);
    Collected sink;
    const auto decoded = Decode(stream, sink, piece);
    REQUIRE_MESSAGE(decoded, (decoded ? "" : decoded.error().ToString()));
    REQUIRE(sink.items.size() == entries.size());
    for (size_t i = 0; i < entries.size(); ++i) {
      CAPTURE(i);
      const TarEntry& got = sink.items[i].entry;
      CHECK(sink.items[i].ended);
      CHECK(sink.items[i].data ==
            std::string(entries[i].size, static_cast<char>('0' + entries[i].size % 10)));
      CHECK(got.path == entries[i].path);
      CHECK(got.link == entries[i].link);
      CHECK(got.type == entries[i].type);
      CHECK(got.mode == entries[i].mode);
      CHECK(got.uid == entries[i].uid);
      CHECK(got.gid == entries[i].gid);
      CHECK(got.mtime == entries[i].mtime);
      CHECK(got.mtime_ns == entries[i].mtime_ns);
      CHECK(got.major == entries[i].major);
      CHECK(got.minor == entries[i].minor);
      CHECK(got.xattrs == entries[i].xattrs);
    }
  }
}

TEST_CASE("a size of 8 GiB and more is told in an extended header") {
  std::string stream;
  AppendTarHeader(stream, {.path = "big", .size = uint64_t{9} << 30});
  Collected sink;
  CHECK_FALSE(Decode(stream, sink));  // its data is missing
  REQUIRE(sink.items.size() == 1);
  CHECK(sink.items[0].entry.size == uint64_t{9} << 30);
}

TEST_CASE("extended headers hold for one entry, global ones until they are replaced") {
  Collected sink;
  const auto decoded =
      Decode(Extension('g', "9 uid=77\n") + Extension('x', "14 path=other\n") + Block('0', "a") +
                 Block('0', "b") + Extension('g', "7 uid=\n") + Block('0', "c") + kEnd,
             sink);
  REQUIRE_MESSAGE(decoded, (decoded ? "" : decoded.error().ToString()));
  REQUIRE(sink.items.size() == 3);
  CHECK(sink.items[0].entry.path == "other");
  CHECK(sink.items[0].entry.uid == 77);
  CHECK(sink.items[1].entry.path == "b");
  CHECK(sink.items[1].entry.uid == 77);
  CHECK(sink.items[2].entry.uid == 0);
}

TEST_CASE("a stream that is cut off anywhere is an error") {
  std::string stream;
  AppendTarHeader(stream, {.path = std::string(150, 'n'), .size = 600});
  stream.append(600 + TarPadding(600), 'x');
  const size_t end = stream.size();
  AppendTarEnd(stream);
  for (size_t length = 0; length < end + kTarBlock; length += 13) {
    CAPTURE(length);
    CHECK(ErrnoOf(stream.substr(0, length)) == EINVAL);
  }
  CHECK(ErrnoOf(stream.substr(0, end + kTarBlock)) == 0);
  CHECK(ErrnoOf(stream + "what follows is no part of it") == 0);
}

TEST_CASE("hostile headers are refused") {
  std::string flipped = Block('0', "a");
  flipped[0] = 'b';
  CHECK(ErrnoOf(flipped + kEnd) == EINVAL);                                            // checksum
  CHECK(ErrnoOf(Block('0', "a", "9") + kEnd) == EINVAL);                               // no octal digit
  CHECK(ErrnoOf(Block('0', "a", std::string(12, '\xff')) + kEnd) == EINVAL);           // negative
  CHECK(ErrnoOf(Block('0', "a", "\x80" + std::string(11, '\xff')) + kEnd) == EINVAL);  // beyond 64 bits
  CHECK(ErrnoOf(Block('0', "a", std::string("\x80\0\0\0\xff", 5) + std::string(7, '\xff')) + kEnd) == EINVAL);
  CHECK(ErrnoOf(Block('1', "a", "00000000001") + kEnd) == EINVAL);
  CHECK(ErrnoOf(Block('x', "a", "77777777777") + kEnd) == E2BIG);
  CHECK(ErrnoOf(Block('x', "a") + kEnd) == EINVAL);
  CHECK(ErrnoOf(Block('S', "sparse") + kEnd) == EOPNOTSUPP);
  CHECK(ErrnoOf(Block('M', "volume") + kEnd) == EOPNOTSUPP);
  for (const char* pax : {"", "x", "5 a=b", "99 path=b\n", "0 path=b\n", "3 a\n", "9 path b\n", "-9 path=b\n",
                          "18446744073709551616 a=b\n", "12 size=-10\n", "20 mtime=1.2.3.4.5.6\n"}) {
    CAPTURE(pax);
    CHECK(ErrnoOf(Extension('x', std::string(pax) + "?") + Block('0', "a") + kEnd) == EINVAL);
  }
  CHECK(ErrnoOf(Extension('x', std::string("11 path=a\0\n", 11)) + Block('0', "a") + kEnd) == EINVAL);
  CHECK(ErrnoOf(Extension('x', "18 uid=4294967295\n") + Block('0', "a") + kEnd) == EINVAL);
  CHECK(ErrnoOf(Extension('x', "22 GNU.sparse.major=1\n") + Block('0', "a") + kEnd) == EOPNOTSUPP);
  CHECK(ErrnoOf(Extension('x', "24 SCHILY.acl.access=x:\n") + Block('0', "a") + kEnd) == EOPNOTSUPP);
}

}  // namespace
}  // namespace gcs::guest
