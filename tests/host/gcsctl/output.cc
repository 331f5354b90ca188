// SPDX-License-Identifier: Apache-2.0
#include "host/gcsctl/output.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>

#include "base/clock.h"

namespace gcs::gcsctl {

void PrintJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) text = "null";
  printf("%s\n", text.c_str());
  fflush(stdout);
}

void Table::Print() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - row[i].size() + 2, ' ');
    }
    printf("%s\n", line.c_str());
  }
}

std::string FormatBytes(uint64_t bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text.data();
}

std::string FormatDuration(int64_t ns) {
  std::array<char, 32> text{};
  const auto value = static_cast<double>(ns);
  if (ns < 1'000'000) {
    snprintf(text.data(), text.size(), "%.0f us", value / 1e3);
  } else if (ns < base::kNsPerSec) {
    snprintf(text.data(), text.size(), "%.1f ms", value / 1e6);
  } else {
    snprintf(text.data(), text.size(), "%.1f s", value / 1e9);
  }
  return text.data();
}

std::string FormatAge(int64_t since_ns) {
  if (since_ns == 0) return {};
  const int64_t seconds = std::max<int64_t>(base::RealtimeNs() - since_ns, 0) / base::kNsPerSec;
  if (seconds < 120) return std::to_string(seconds) + " s ago";
  if (seconds < 7200) return std::to_string(seconds / 60) + " min ago";
  return std::to_string(seconds / 3600) + " h ago";
}

std::string FormatTime(int64_t realtime_ns) {
  const time_t seconds = realtime_ns / base::kNsPerSec;
  tm parts{};
  localtime_r(&seconds, &parts);
  std::array<char, 40> text{};
  const size_t used = strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &parts);
  snprintf(text.data() + used, text.size() - used, ".%03d",
           static_cast<int>(realtime_ns % base::kNsPerSec / base::kNsPerMs));
  return text.data();
}

std::string Printable(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      out += c;
      continue;
    }
    constexpr char kDigits[] = "0123456789abcdef";
    out += "\\x";
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

}  // namespace gcs::gcsctl
