// SPDX-License-Identifier: Apache-2.0
#include "host/image/tar_names.h"

#include <cstdint>
#include <optional>

namespace gcs::host {
namespace {

constexpr size_t kBlock = 512;
// Header fields: offset and width (POSIX.1-2017 pax, "ustar Interchange Format").
constexpr size_t kName = 0, kNameWidth = 100;
constexpr size_t kSize = 124, kSizeWidth = 12;
constexpr size_t kType = 156;
constexpr size_t kLink = 157, kLinkWidth = 100;
constexpr size_t kMagic = 257;
constexpr size_t kPrefix = 345, kPrefixWidth = 155;

std::unexpected<base::Error> Malformed(std::string_view what) {
  return base::MakeError(EBADMSG, "read tar header", {}, what);
}

std::string_view Field(std::string_view block, size_t at, size_t width) {
  const std::string_view field = block.substr(at, width);
  return field.substr(0, field.find('\0'));
}

// Octal text or, with the top bit set, base 256 (GNU).
std::optional<uint64_t> Number(std::string_view field) {
  uint64_t value = 0;
  if ((static_cast<unsigned char>(field[0]) & 0x80) != 0) {
    for (size_t i = 1; i < field.size(); ++i) {
      if ((value >> 56) != 0) return std::nullopt;
      value = value << 8 | static_cast<unsigned char>(field[i]);
    }
    return value;
  }
  for (const char c : field) {
    if (c == ' ' && value == 0) continue;
    if (c < '0' || c > '7') break;
    value = value << 3 | static_cast<uint64_t>(c - '0');
  }
  return value;
}

struct PaxNames {
  std::optional<std::string> path, link, sparse_name;
};

base::Result<> ReadPax(std::string_view body, PaxNames& out) {
  while (!body.empty() && body[0] != '\0') {
    size_t length = 0;
    size_t at = 0;
    while (at < body.size() && body[at] >= '0' && body[at] <= '9' && length < body.size()) {
      length = length * 10 + static_cast<size_t>(body[at++] - '0');
    }
    if (at == 0 || at >= body.size() || body[at] != ' ' || length > body.size() || length < at + 3 ||
        body[length - 1] != '\n') {
      return Malformed("malformed pax record");
    }
    const std::string_view record = body.substr(at + 1, length - at - 2);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos) return Malformed("pax record without \"=\"");
    const std::string_view key = record.substr(0, equals);
    const std::string_view value = record.substr(equals + 1);
    if (key.find('\0') != std::string_view::npos) return Malformed("NUL in a pax keyword");
    std::optional<std::string>* target = key == "path"              ? &out.path
                                         : key == "linkpath"        ? &out.link
                                         : key == "GNU.sparse.name" ? &out.sparse_name
                                                                    : nullptr;
    if (target != nullptr) {
      if (value.find('\0') != std::string_view::npos) return Malformed("NUL in a name");
      *target = std::string(value);
    }
    body.remove_prefix(length);
  }
  return {};
}

base::Result<std::string> GnuLongName(std::string_view body) {
  const size_t end = body.find('\0');
  if (end != std::string_view::npos && body.find_first_not_of('\0', end) != std::string_view::npos) {
    return Malformed("NUL in a name");
  }
  return std::string(body.substr(0, end));
}

}  // namespace

base::Result<TarNames> ParseTarNames(std::string_view headers) {
  PaxNames pax;
  std::optional<std::string> long_path;
  std::optional<std::string> long_link;
  while (headers.size() >= kBlock) {
    const std::string_view block = headers.substr(0, kBlock);
    const char type = block[kType];
    const bool is_extension =
        type == 'x' || type == 'X' || type == 'g' || type == 'L' || type == 'K' || type == 'V' || type == 'A';
    if (!is_extension) {
      TarNames names;
      names.type = type;
      const std::string_view prefix = block.substr(kMagic, 6) == std::string_view("ustar\0", 6)
                                          ? Field(block, kPrefix, kPrefixWidth)
                                          : "";
      names.path = std::string(Field(block, kName, kNameWidth));
      if (!prefix.empty()) names.path = std::string(prefix) + "/" + names.path;
      names.link = std::string(Field(block, kLink, kLinkWidth));
      if (long_path) names.path = *long_path;
      if (long_link) names.link = *long_link;
      if (pax.path) names.path = *pax.path;
      if (pax.link) names.link = *pax.link;
      if (pax.sparse_name) names.path = *pax.sparse_name;
      return names;
    }
    const std::optional<uint64_t> size = Number(block.substr(kSize, kSizeWidth));
    headers.remove_prefix(kBlock);
    if (!size || *size > headers.size()) return Malformed("extension header longer than the archive says");
    const std::string_view body = headers.substr(0, *size);
    if (type == 'x' || type == 'X') {
      GCS_TRY(ReadPax(body, pax));
    } else if (type == 'L') {
      GCS_ASSIGN(long_path, GnuLongName(body));
    } else if (type == 'K') {
      GCS_ASSIGN(long_link, GnuLongName(body));
    }
    headers.remove_prefix(std::min<size_t>((*size + kBlock - 1) / kBlock * kBlock, headers.size()));
  }
  return Malformed("the entry's own header is missing");
}

}  // namespace gcs::host
