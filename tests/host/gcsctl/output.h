// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace google::protobuf {
class Message;
}

namespace gcs::gcsctl {

// One line of JSON with the contract's field names, defaults included.
void PrintJson(const google::protobuf::Message& message);

// Columns as wide as their widest cell; the first row is the head.
class Table {
 public:
  explicit Table(std::vector<std::string> head) { rows_.push_back(std::move(head)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void Print() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string FormatBytes(uint64_t bytes);      // "1.5 MiB"
std::string FormatAge(int64_t since_ns);      // "5 s ago"; "" for 0
std::string FormatTime(int64_t realtime_ns);  // "2026-01-31 12:00:00.123"
std::string FormatDuration(int64_t ns);       // "1.2 ms"
// Control characters shown as \xNN: what a guest says must not steer the terminal.
std::string Printable(const std::string& text);

}  // namespace gcs::gcsctl
