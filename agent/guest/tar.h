// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace gcs::guest {

// The tar interchange format as GNU tar, bsdtar, Go and Python write it: ustar with pax extended headers
// (POSIX.1-2017, "pax Interchange Format"), GNU long names and GNU base-256 numbers. Names and link targets
// are bytes, never text of a locale.

enum class TarType : char {
  kFile = '0',
  kHardLink = '1',
  kSymlink = '2',
  kCharDevice = '3',
  kBlockDevice = '4',
  kDirectory = '5',
  kFifo = '6',
};

struct TarEntry {
  std::string path;  // as the stream has it: may be absolute, hold ".." or end in "/"
  std::string link;  // kSymlink: the target; kHardLink: the name of another entry
  TarType type = TarType::kFile;
  uint32_t mode = 0;  // the twelve permission bits
  uint32_t uid = 0, gid = 0;
  uint64_t size = 0;  // of the data that follows; 0 unless kFile
  int64_t mtime = 0;  // seconds since 1970
  uint32_t mtime_ns = 0;
  uint32_t major = 0, minor = 0;
  std::vector<std::pair<std::string, std::string>> xattrs;  // full names ("user.x"), raw values
};

inline constexpr size_t kTarBlock = 512;

// Reads a stream that comes in pieces of any size. Errors: EINVAL malformed, EOPNOTSUPP well-formed but not
// built (sparse files, ACLs as text, multi-volume archives), and what the sink says; after one there is
// nothing to go on with.
class TarDecoder {
 public:
  class Sink {
   public:
    virtual ~Sink() = default;
    virtual base::Result<> Begin(const TarEntry& entry) = 0;
    virtual base::Result<> Data(std::string_view bytes) = 0;  // never empty, `size` bytes in all
    virtual base::Result<> End() = 0;
  };

  explicit TarDecoder(Sink* sink) : sink_(*sink) {}

  base::Result<> Push(std::string_view bytes);
  // The stream is at its end. EINVAL unless the archive's own end was seen, which a broken pipe has not.
  base::Result<> Finish() const;

 private:
  enum class State : uint8_t { kHeader, kExtension, kData, kPadding, kEnd };
  struct Overrides {  // of extended headers
    std::optional<std::string> path, link;
    std::optional<uint64_t> size, uid, gid;
    std::optional<std::pair<int64_t, uint32_t>> mtime;
    std::vector<std::pair<std::string, std::string>> xattrs;
  };

  base::Result<> OnHeader();
  base::Result<> OnExtension();
  base::Result<> BeginEntry(char type);
  static base::Result<> ReadPax(std::string_view records, Overrides& out);
  static void Apply(const Overrides& from, TarEntry& entry);

  Sink& sink_;
  State state_ = State::kHeader;
  std::string block_;
  std::string body_;  // of the extension header being read
  char extension_ = 0;
  uint64_t left_ = 0;     // bytes of body or data still to come
  uint64_t padding_ = 0;  // bytes up to the next block
  Overrides global_;
  Overrides local_;
};

// Appends the headers of an entry, extended ones only where ustar has no room. The caller appends the data
// and TarPadding(size) zeros.
void AppendTarHeader(std::string& out, const TarEntry& entry);
inline size_t TarPadding(uint64_t size) { return (kTarBlock - size % kTarBlock) % kTarBlock; }
void AppendTarEnd(std::string& out);

}  // namespace gcs::guest
