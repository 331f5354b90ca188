// SPDX-License-Identifier: Apache-2.0
// Of any bytes the decoder makes the same whatever the size of the pieces; and of what it made, encoded
// again, the same once more.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "guest/tar.h"

namespace {

using gcs::guest::TarDecoder;
using gcs::guest::TarEntry;

struct Sink final : TarDecoder::Sink {
  std::string log;      // of everything that was told
  std::string encoded;  // the same as a stream
  uint64_t left = 0;
  uint64_t padding = 0;

  gcs::base::Result<> Begin(const TarEntry& entry) override {
    if (left != 0) abort();
    left = entry.size;
    padding = gcs::guest::TarPadding(entry.size);
    for (const std::string* text : {&entry.path, &entry.link}) log += *text + '\0';
    for (const uint64_t number :
         {uint64_t{static_cast<uint8_t>(entry.type)}, uint64_t{entry.mode}, uint64_t{entry.uid},
          uint64_t{entry.gid}, entry.size, static_cast<uint64_t>(entry.mtime), uint64_t{entry.mtime_ns},
          uint64_t{entry.major}, uint64_t{entry.minor}}) {
      log += std::to_string(number) + ' ';
    }
    for (const auto& [name, value] : entry.xattrs) log += name + '=' + value + '\0';
    gcs::guest::AppendTarHeader(encoded, entry);
    return {};
  }
  gcs::base::Result<> Data(std::string_view bytes) override {
    if (bytes.empty() || bytes.size() > left) abort();
    left -= bytes.size();
    log += bytes;
    encoded += bytes;
    return {};
  }
  gcs::base::Result<> End() override {
    if (left != 0) abort();
    encoded.append(padding, '\0');
    return {};
  }
};

bool Decode(std::string_view stream, size_t piece, Sink& sink) {
  TarDecoder decoder(&sink);
  for (size_t at = 0; at < stream.size(); at += piece) {
    if (!decoder.Push(stream.substr(at, piece))) return false;
  }
  return decoder.Finish().has_value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view stream(reinterpret_cast<const char*>(data), size);
  Sink whole;
  Sink pieces;
  const bool decoded = Decode(stream, size + 1, whole);
  if (Decode(stream, 61, pieces) != decoded) abort();
  if (pieces.log != whole.log) abort();
  if (!decoded || whole.encoded.size() > (1 << 20)) return 0;
  gcs::guest::AppendTarEnd(whole.encoded);
  Sink again;
  if (!Decode(whole.encoded, 4096, again) || again.log != whole.log) abort();
  return 0;
}
