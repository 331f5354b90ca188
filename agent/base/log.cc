// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <ctime>
#include <deque>
#include <map>
#include <mutex>

#include "base/clock.h"
#include "base/fd.h"
#include "base/paths.h"

namespace gcs::base {

namespace {

constexpr size_t kRingBytes = 256 * 1024;

struct State {
  std::mutex mutex;
  std::deque<LogLine> ring;
  size_t ring_bytes = 0;
  uint64_t next_sequence = 1;
  std::map<uint64_t, std::function<void()>> watches;
  uint64_t next_watch = 1;
  std::atomic<Level> least = Level::kInfo;

  // Apart from the ring, whose readers and watches must not wait for a writer.
  std::mutex sink_mutex;
  int fd = 2;
  Fd own;  // what `fd` is, then, by an open file description of our own
  LogFormat format = LogFormat::kText;
  uint64_t dropped = 0;  // lines since the last that was written
  bool cut = false;      // of the last line only a part was
};

// Never destroyed: threads of gRPC may log while the process exits.
State& GetState() {
  static State& state = *new State;
  return state;
}

std::string Rfc3339(int64_t time_ns) {
  const time_t seconds = time_ns / kNsPerSec;
  tm parts{};
  gmtime_r(&seconds, &parts);
  char text[48];
  const size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  snprintf(text + n, sizeof text - n, ".%09lldZ", static_cast<long long>(time_ns % kNsPerSec));
  return text;
}

// Length of the well-formed UTF-8 sequence at the start of `s`, 0 if there is none.
size_t Utf8Length(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char b = byte(0);
  size_t n = 0;
  uint32_t code = 0;
  if (b < 0x80) return 1;
  if (b >= 0xc2 && b < 0xe0) {
    n = 2;
    code = b & 0x1f;
  } else if (b >= 0xe0 && b < 0xf0) {
    n = 3;
    code = b & 0x0f;
  } else if (b >= 0xf0 && b < 0xf5) {
    n = 4;
    code = b & 0x07;
  } else {
    return 0;
  }
  if (s.size() < n) return 0;
  for (size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    code = (code << 6) | (byte(i) & 0x3f);
  }
  const bool overlong = (n == 3 && code < 0x800) || (n == 4 && (code < 0x10000 || code > 0x10ffff));
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  return overlong || surrogate ? 0 : n;
}

std::string TextLine(Level level, std::string_view message, std::initializer_list<Field> fields) {
  std::string line(LevelName(level));
  line += ' ';
  line += message;
  for (const Field& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    const bool plain = !field.value.empty() && field.value.find_first_of(" \"\\\n\r\t=") == std::string::npos;
    if (plain) {
      line += field.value;
    } else {
      AppendJsonString(line, field.value);
    }
  }
  return line;
}

std::string JsonLine(int64_t now, Level level, std::string_view message,
                     std::initializer_list<Field> fields) {
  std::string json = R"({"time":")" + Rfc3339(now) + R"(","level":")";
  json += LevelName(level);
  json += R"(","msg":)";
  AppendJsonString(json, message);
  for (const Field& field : fields) {
    json += ',';
    AppendJsonString(json, field.key);
    json += ':';
    AppendJsonString(json, field.value);
  }
  json += '}';
  return json;
}

// One write per line. A reader that is gone or slow must not stop the agent: what it does not take at once is
// lost, and the next line that it takes tells how many were.
void WriteLine(State& state, int64_t now, Level level, std::string_view message,
               std::initializer_list<Field> fields, const std::string& json) {
  const std::lock_guard lock(state.sink_mutex);
  const bool as_json = state.format == LogFormat::kJson;
  std::string text = state.cut ? "\n" : "";
  if (state.dropped > 0) {
    const std::initializer_list<Field> count{{"count", std::to_string(state.dropped)}};
    constexpr std::string_view kNote = "log lines were dropped";
    text += as_json ? JsonLine(now, Level::kWarn, kNote, count) : TextLine(Level::kWarn, kNote, count);
    text += '\n';
  }
  text += as_json ? json : TextLine(level, message, fields);
  text += '\n';
  const ssize_t n = write(state.fd, text.data(), text.size());
  const bool whole = n == static_cast<ssize_t>(text.size());
  state.dropped = whole ? 0 : state.dropped + 1;
  if (n > 0) state.cut = !whole;
}

}  // namespace

std::string_view LevelName(Level level) {
  switch (level) {
    case Level::kDebug:
      return "debug";
    case Level::kInfo:
      return "info";
    case Level::kWarn:
      return "warning";
    case Level::kError:
      return "error";
  }
  return "info";
}

void AppendJsonString(std::string& out, std::string_view value) {
  out += '"';
  for (size_t i = 0; i < value.size();) {
    const char c = value[i];
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
      ++i;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      char escape[8];
      snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      out += escape;
      ++i;
    } else if (const size_t n = Utf8Length(value.substr(i)); n > 0) {
      out += value.substr(i, n);
      i += n;
    } else {
      out += "\\ufffd";
      ++i;
    }
  }
  out += '"';
}

void SetLogOutput(int fd, LogFormat format, Level least) {
  State& state = GetState();
  const std::lock_guard lock(state.sink_mutex);
  state.own.Reset();
  state.fd = fd;
  state.format = format;
  state.least = least;
  state.dropped = 0;
  state.cut = false;
}

Result<> OwnLogOutput() {
  State& state = GetState();
  const std::lock_guard lock(state.sink_mutex);
  struct stat st{};
  if (fstat(state.fd, &st) != 0) return ErrnoError("fstat", std::to_string(state.fd));
  // There is no second description of a socket, and none is needed of a file.
  if (!S_ISFIFO(st.st_mode) && !S_ISCHR(st.st_mode)) return {};
  GCS_ASSIGN(state.own,
             OpenFile("/proc/self/fd/" + std::to_string(state.fd), O_WRONLY | O_NONBLOCK | O_NOCTTY));
  state.fd = state.own.get();
  return {};
}

void Log(Level level, std::string_view message, std::initializer_list<Field> fields) {
  State& state = GetState();
  if (level < state.least.load(std::memory_order_relaxed)) return;
  const int64_t now = RealtimeNs();
  std::string json = JsonLine(now, level, message, fields);
  WriteLine(state, now, level, message, fields, json);

  const std::lock_guard lock(state.mutex);
  state.ring_bytes += json.size();
  state.ring.push_back(LogLine{state.next_sequence++, now, level, std::move(json)});
  while (state.ring_bytes > kRingBytes && state.ring.size() > 1) {
    state.ring_bytes -= state.ring.front().text.size();
    state.ring.pop_front();
  }
  for (auto& [id, wake] : state.watches) wake();
}

void LogError(std::string_view message, const Error& error, std::initializer_list<Field> fields) {
  std::string text(message);
  for (const Field& field : fields) {
    text += ' ';
    text += field.key;
    text += '=';
    text += field.value;
  }
  Log(Level::kError, text,
      {{"step", error.step},
       {"errno", ErrnoName(error.err)},
       {"object", error.object},
       {"detail", error.message}});
}

std::vector<LogLine> ReadLog(uint64_t after, size_t limit) {
  State& state = GetState();
  const std::lock_guard lock(state.mutex);
  std::vector<LogLine> lines;
  for (const LogLine& line : state.ring) {
    if (line.sequence <= after) continue;
    if (lines.size() == limit) break;
    lines.push_back(line);
  }
  return lines;
}

uint64_t AddLogWatch(std::function<void()> wake) {
  State& state = GetState();
  const std::lock_guard lock(state.mutex);
  const uint64_t id = state.next_watch++;
  state.watches.emplace(id, std::move(wake));
  return id;
}

void RemoveLogWatch(uint64_t id) {
  State& state = GetState();
  const std::lock_guard lock(state.mutex);
  state.watches.erase(id);
}

}  // namespace gcs::base
