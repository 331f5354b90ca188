// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace gcs::base {

enum class Level : uint8_t { kDebug, kInfo, kWarn, kError };
std::string_view LevelName(Level level);  // "debug", "info", "warning", "error"

struct Field {
  std::string_view key;
  std::string value;
};

// One line: written to the sink at once, kept in a bounded ring for later readers. Any thread. Lines that a
// non-blocking sink does not take are dropped from the sink, not from the ring, and counted by a line "log
// lines were dropped count=N".
void Log(Level level, std::string_view message, std::initializer_list<Field> fields = {});
// The same with an Error's parts as fields step, errno, object, detail.
void LogError(std::string_view message, const Error& error, std::initializer_list<Field> fields = {});

// What a reader of the ring gets. `text` is one JSON object without a newline:
// {"time":"2026-01-02T03:04:05.123456789Z","level":"info","msg":"...",key:"value"...}.
struct LogLine {
  uint64_t sequence;  // from 1, without gaps; a jump between two reads means that the ring overflowed
  int64_t time_ns;    // CLOCK_REALTIME
  Level level;
  std::string text;
};

// Lines with sequence > `after`, oldest first, at most `limit`.
std::vector<LogLine> ReadLog(uint64_t after, size_t limit);
// Calls `wake` (any thread, must not block or log) after each new line, until RemoveLogWatch of the returned
// id.
uint64_t AddLogWatch(std::function<void()> wake);
void RemoveLogWatch(uint64_t id);

enum class LogFormat : uint8_t { kText, kJson };
// Where lines go: descriptor (default 2), format (default text) and least level (default info). Before
// threads start.
void SetLogOutput(int fd, LogFormat format, Level least);
// From now on no line waits for the reader of a pipe or terminal. O_NONBLOCK belongs to the open file
// description, which others share (whoever has started us, the containers' parent), so it is opened again:
// the log no longer follows what becomes of the descriptor.
Result<> OwnLogOutput();

// Appends `value` to `out` as a JSON string with its quotes. Bytes that are no UTF-8 become U+FFFD.
void AppendJsonString(std::string& out, std::string_view value);

}  // namespace gcs::base
