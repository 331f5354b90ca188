// SPDX-License-Identifier: Apache-2.0
#include "guest/tar.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstring>
#include <limits>
#include <tuple>

namespace gcs::guest {

using base::MakeError;
using base::Result;

namespace {

// A header block (POSIX.1-2017 pax, "ustar Interchange Format"): offset and width of the fields.
struct Field {
  size_t at, width;
};
constexpr Field kName{0, 100}, kMode{100, 8}, kUid{108, 8}, kGid{116, 8}, kSize{124, 12}, kMtime{136, 12},
    kChecksum{148, 8}, kLink{157, 100}, kMagic{257, 8}, kMajor{329, 8}, kMinor{337, 8}, kPrefix{345, 155};
constexpr size_t kTypeAt = 156;

// Extended attributes have up to 64 KiB each; more than this is not what a file system could hold.
constexpr uint64_t kMaxExtension = 1 << 20;
// Seconds of any time: far beyond what a file system keeps, and no arithmetic overflows.
constexpr int64_t kMaxTime = int64_t{1} << 55;
constexpr std::string_view kXattrKey = "SCHILY.xattr.";

std::unexpected<base::Error> Malformed(std::string_view what) {
  return MakeError(EINVAL, "read tar", {}, what);
}

std::string_view Text(std::string_view block, Field field) {
  const std::string_view text = block.substr(field.at, field.width);
  return text.substr(0, text.find('\0'));
}

// Octal digits between spaces or, with the top bit set, base 256 (GNU).
Result<uint64_t> Number(std::string_view block, Field field) {
  const std::string_view text = block.substr(field.at, field.width);
  const auto first = static_cast<unsigned char>(text[0]);
  uint64_t value = 0;
  if ((first & 0x80) != 0) {
    if (first != 0x80) return Malformed("a negative or huge number");
    for (const char c : text.substr(1)) {
      if ((value >> 56) != 0) return Malformed("a huge number");
      value = value << 8 | static_cast<unsigned char>(c);
    }
    return value;
  }
  const size_t begin = std::min(text.find_first_not_of(' '), text.size());
  const size_t end = std::min(text.find_first_of(std::string_view(" \0", 2), begin), text.size());
  if (begin == end) return 0;
  const auto [at, err] = std::from_chars(text.data() + begin, text.data() + end, value, 8);
  if (err != std::errc() || at != text.data() + end) return Malformed("a number that is not octal");
  return value;
}

Result<uint64_t> Decimal(std::string_view text) {
  uint64_t value = 0;
  const auto [at, err] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (err != std::errc() || at != text.data() + text.size()) return Malformed("a pax number that is none");
  return value;
}

// "[-]seconds[.fraction]".
Result<std::pair<int64_t, uint32_t>> PaxTime(std::string_view text) {
  int64_t seconds = 0;
  const size_t point = std::min(text.find('.'), text.size());
  const auto [at, err] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (err != std::errc() || at != text.data() + point || seconds > kMaxTime || seconds < -kMaxTime) {
    return Malformed("a pax time that is none");
  }
  uint32_t ns = 0;
  uint32_t unit = 100'000'000;
  for (const char c : text.substr(std::min(point + 1, text.size()))) {
    if (c < '0' || c > '9') return Malformed("a pax time that is none");
    ns += unit * static_cast<uint32_t>(c - '0');
    unit /= 10;
  }
  if (text.starts_with('-') && ns != 0) return std::pair(seconds - 1, 1'000'000'000 - ns);
  return std::pair(seconds, ns);
}

// The sum of the block's bytes with spaces in the field of the sum.
uint32_t Checksum(std::string_view block) {
  uint32_t sum = ' ' * kChecksum.width;
  for (size_t i = 0; i < block.size(); ++i) {
    if (i < kChecksum.at || i >= kChecksum.at + kChecksum.width) sum += static_cast<unsigned char>(block[i]);
  }
  return sum;
}

Result<uint32_t> Id(uint64_t value) {
  // The highest is (uid_t)-1, which chown(2) takes for "leave it".
  if (value >= std::numeric_limits<uint32_t>::max()) return Malformed("an owner beyond 32 bits");
  return static_cast<uint32_t>(value);
}

}  // namespace

Result<> TarDecoder::Push(std::string_view bytes) {
  const auto take = [&bytes](uint64_t most) {
    const std::string_view part = bytes.substr(0, most);
    bytes.remove_prefix(part.size());
    return part;
  };
  while (!bytes.empty()) {
    switch (state_) {
      case State::kHeader:
        block_ += take(kTarBlock - block_.size());
        if (block_.size() < kTarBlock) return {};
        GCS_TRY(OnHeader());
        block_.clear();
        break;
      case State::kExtension: {
        const std::string_view part = take(left_);
        body_ += part;
        left_ -= part.size();
        if (left_ == 0) GCS_TRY(OnExtension());
        break;
      }
      case State::kData: {
        const std::string_view part = take(left_);
        left_ -= part.size();
        GCS_TRY(sink_.Data(part));
        if (left_ > 0) break;
        GCS_TRY(sink_.End());
        state_ = State::kPadding;
        break;
      }
      case State::kPadding:
        padding_ -= take(padding_).size();
        if (padding_ == 0) state_ = State::kHeader;
        break;
      case State::kEnd:  // what fills the last record
        return {};
    }
  }
  return {};
}

Result<> TarDecoder::Finish() const {
  if (state_ != State::kEnd) return Malformed("the stream ends before the archive does");
  return {};
}

Result<> TarDecoder::OnHeader() {
  if (block_.find_first_not_of('\0') == std::string::npos) {
    state_ = State::kEnd;
    return {};
  }
  GCS_ASSIGN(const uint64_t sum, Number(block_, kChecksum));
  if (sum != Checksum(block_)) return Malformed("a header with a wrong checksum");
  const char type = block_[kTypeAt];
  if (type != 'x' && type != 'g' && type != 'L' && type != 'K') return BeginEntry(type);
  GCS_ASSIGN(left_, Number(block_, kSize));
  if (left_ == 0) return Malformed("an empty extended header");
  if (left_ > kMaxExtension) return MakeError(E2BIG, "read tar", {}, "an extended header of more than 1 MiB");
  extension_ = type;
  body_.clear();
  padding_ = TarPadding(left_);
  state_ = State::kExtension;
  return {};
}

Result<> TarDecoder::OnExtension() {
  state_ = padding_ == 0 ? State::kHeader : State::kPadding;
  if (extension_ == 'x') return ReadPax(body_, local_);
  if (extension_ == 'g') {
    GCS_TRY(ReadPax(body_, global_));
    global_.xattrs.clear();  // Nobody writes those, and they would add up.
    return {};
  }
  (extension_ == 'L' ? local_.path : local_.link) = body_.substr(0, body_.find('\0'));
  return {};
}

Result<> TarDecoder::ReadPax(std::string_view records, Overrides& out) {
  // "length key=value\n", the length counting all of that.
  while (!records.empty()) {
    size_t length = 0;
    const auto [digits, err] = std::from_chars(records.data(), records.data() + records.size(), length);
    const size_t at = static_cast<size_t>(digits - records.data());
    if (err != std::errc() || length > records.size() || length < at + 3 || records[at] != ' ' ||
        records[length - 1] != '\n') {
      return Malformed("a malformed pax record");
    }
    const std::string_view record = records.substr(at + 1, length - at - 2);
    records.remove_prefix(length);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos) return Malformed("a pax record without \"=\"");
    const std::string_view key = record.substr(0, equals);
    const std::string_view value = record.substr(equals + 1);
    if (key.starts_with("GNU.sparse.") || key.starts_with("SCHILY.acl.")) {
      return MakeError(EOPNOTSUPP, "read tar", key.substr(0, 64));
    }
    if (key.starts_with(kXattrKey)) {
      const std::string_view name = key.substr(kXattrKey.size());
      if (name.find('\0') != std::string_view::npos) return Malformed("NUL in a name");
      out.xattrs.emplace_back(name, value);
    } else if (key == "path" || key == "linkpath") {
      if (value.find('\0') != std::string_view::npos) return Malformed("NUL in a name");
      auto& name = key == "path" ? out.path : out.link;
      name = value.empty() ? std::nullopt : std::optional<std::string>(value);
    } else if (key == "size" || key == "uid" || key == "gid") {
      auto& number = key == "size" ? out.size : key == "uid" ? out.uid : out.gid;
      number.reset();
      if (value.empty()) continue;
      GCS_ASSIGN(number, Decimal(value));
    } else if (key == "mtime") {
      out.mtime.reset();
      if (value.empty()) continue;
      GCS_ASSIGN(out.mtime, PaxTime(value));
    }
  }
  return {};
}

void TarDecoder::Apply(const Overrides& from, TarEntry& entry) {
  if (from.path) entry.path = *from.path;
  if (from.link) entry.link = *from.link;
  if (from.size) entry.size = *from.size;
  if (from.mtime) std::tie(entry.mtime, entry.mtime_ns) = *from.mtime;
}

Result<> TarDecoder::BeginEntry(char type) {
  const Overrides local = std::exchange(local_, {});
  TarEntry entry;
  entry.path = Text(block_, kName);
  entry.link = Text(block_, kLink);
  // GNU's own format has other things where ustar's prefix is.
  if (block_.compare(kMagic.at, 6, std::string_view("ustar\0", 6)) == 0) {
    const std::string_view prefix = Text(block_, kPrefix);
    if (!prefix.empty()) entry.path = std::string(prefix) + "/" + entry.path;
  }
  GCS_ASSIGN(const uint64_t mode, Number(block_, kMode));
  entry.mode = static_cast<uint32_t>(mode & 07777);
  GCS_ASSIGN(uint64_t uid, Number(block_, kUid));
  GCS_ASSIGN(uint64_t gid, Number(block_, kGid));
  GCS_ASSIGN(entry.size, Number(block_, kSize));
  GCS_ASSIGN(const uint64_t mtime, Number(block_, kMtime));
  if (mtime > kMaxTime) return Malformed("a time that is none");
  entry.mtime = static_cast<int64_t>(mtime);
  for (const Overrides* from : std::initializer_list<const Overrides*>{&global_, &local}) {
    Apply(*from, entry);
    uid = from->uid.value_or(uid);
    gid = from->gid.value_or(gid);
  }
  GCS_ASSIGN(entry.uid, Id(uid));
  GCS_ASSIGN(entry.gid, Id(gid));
  entry.xattrs = local.xattrs;

  switch (type) {
    case '\0':  // from before ustar, where a directory is a name with a slash
      entry.type = entry.path.ends_with('/') ? TarType::kDirectory : TarType::kFile;
      break;
    case '7':  // "contiguous"
      entry.type = TarType::kFile;
      break;
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
      entry.type = TarType{type};
      break;
    default:
      return MakeError(EOPNOTSUPP, "read tar", entry.path.substr(0, 256),
                       "an entry of type " + std::to_string(static_cast<unsigned char>(type)));
  }
  if (entry.type == TarType::kCharDevice || entry.type == TarType::kBlockDevice) {
    GCS_ASSIGN(const uint64_t major, Number(block_, kMajor));
    GCS_ASSIGN(const uint64_t minor, Number(block_, kMinor));
    if (major > 0xfff || minor > 0xfffff) return Malformed("a device number beyond 32 bits");
    entry.major = static_cast<uint32_t>(major);
    entry.minor = static_cast<uint32_t>(minor);
  }
  // Some writers give links a size without data, some data: none can be told from the other.
  if (entry.type == TarType::kHardLink && entry.size != 0) return Malformed("a hard link with a size");
  if (entry.type != TarType::kFile) entry.size = 0;
  if (entry.size > INT64_MAX) return Malformed("a huge size");

  GCS_TRY(sink_.Begin(entry));
  left_ = entry.size;
  padding_ = TarPadding(entry.size);
  if (left_ > 0) {
    state_ = State::kData;
    return {};
  }
  return sink_.End();
}

namespace {

void Put(std::string& block, Field field, std::string_view text) {
  memcpy(block.data() + field.at, text.data(), std::min(text.size(), field.width));
}

// As octal digits and a NUL; false if there is no room.
bool PutOctal(std::string& block, Field field, uint64_t value) {
  std::string digits(field.width - 1, '0');
  for (size_t i = digits.size(); i-- > 0; value >>= 3) digits[i] = static_cast<char>('0' + (value & 7));
  if (value != 0) return false;
  Put(block, field, digits);
  return true;
}

void AppendPax(std::string& out, std::string_view key, std::string_view value) {
  // The length counts its own digits.
  const size_t rest = key.size() + value.size() + 3;
  size_t length = rest + 1;
  while (std::to_string(length).size() + rest != length) ++length;
  out += std::to_string(length);
  out += ' ';
  out += key;
  out += '=';
  out += value;
  out += '\n';
}

void AppendBlock(std::string& out, std::string& block, char type) {
  block[kTypeAt] = type;
  Put(block, kMagic, std::string_view("ustar\00000", 8));
  PutOctal(block, {kChecksum.at, kChecksum.width - 1}, Checksum(block));
  block[kChecksum.at + 7] = ' ';
  out += block;
}

}  // namespace

void AppendTarHeader(std::string& out, const TarEntry& entry) {
  std::string block(kTarBlock, '\0');
  std::string pax;
  Put(block, kName, entry.path);
  Put(block, kLink, entry.link);
  if (entry.path.size() > kName.width) AppendPax(pax, "path", entry.path);
  if (entry.link.size() > kLink.width) AppendPax(pax, "linkpath", entry.link);
  PutOctal(block, kMode, entry.mode);
  if (!PutOctal(block, kUid, entry.uid)) AppendPax(pax, "uid", std::to_string(entry.uid));
  if (!PutOctal(block, kGid, entry.gid)) AppendPax(pax, "gid", std::to_string(entry.gid));
  if (!PutOctal(block, kSize, entry.size)) AppendPax(pax, "size", std::to_string(entry.size));
  const bool early = entry.mtime < 0;
  if (early || !PutOctal(block, kMtime, static_cast<uint64_t>(entry.mtime)) || entry.mtime_ns != 0) {
    // Counted away from zero on both sides.
    const bool borrow = early && entry.mtime_ns != 0;
    const uint32_t ns = borrow ? 1'000'000'000 - entry.mtime_ns : entry.mtime_ns;
    const int64_t seconds = borrow ? entry.mtime + 1 : entry.mtime;
    std::string digits = std::to_string(ns);
    digits.insert(0, 9 - digits.size(), '0');
    AppendPax(pax, "mtime", (early && seconds == 0 ? "-0" : std::to_string(seconds)) + "." + digits);
  }
  PutOctal(block, kMajor, entry.major);
  PutOctal(block, kMinor, entry.minor);
  for (const auto& [name, value] : entry.xattrs) AppendPax(pax, std::string(kXattrKey) + name, value);
  if (!pax.empty()) {
    std::string extended(kTarBlock, '\0');
    Put(extended, kName, "pax");
    PutOctal(extended, kMode, 0644);
    PutOctal(extended, kUid, 0);
    PutOctal(extended, kGid, 0);
    PutOctal(extended, kSize, pax.size());
    PutOctal(extended, kMtime, 0);
    AppendBlock(out, extended, 'x');
    out += pax;
    out.append(TarPadding(pax.size()), '\0');
  }
  AppendBlock(out, block, static_cast<char>(entry.type));
}

void AppendTarEnd(std::string& out) { out.append(2 * kTarBlock, '\0'); }

}  // namespace gcs::guest
