// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"

namespace gcs::base {
namespace {

std::string Quoted(std::string_view value) {
  std::string out;
  AppendJsonString(out, value);
  return out;
}

// Lets the log write to a pipe for as long as it lives.
class CapturedLog {
 public:
  CapturedLog(LogFormat format, Level least) {
    int ends[2];
    // The writing end blocks, as the agent's stderr does.
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    REQUIRE(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
    reader_.Reset(ends[0]);
    writer_.Reset(ends[1]);
    SetLogOutput(writer_.get(), format, least);
    REQUIRE(OwnLogOutput());
  }
  ~CapturedLog() { SetLogOutput(2, LogFormat::kText, Level::kInfo); }
  CapturedLog(const CapturedLog&) = delete;
  CapturedLog& operator=(const CapturedLog&) = delete;

  std::string Text() {
    std::string text;
    char buffer[4096];
    for (;;) {
      const ssize_t n = read(reader_.get(), buffer, sizeof buffer);
      if (n <= 0) return text;
      text.append(buffer, static_cast<size_t>(n));
    }
  }

 private:
  Fd reader_;
  Fd writer_;
};

uint64_t LastSequence() {
  const std::vector<LogLine> lines = ReadLog(0, SIZE_MAX);
  return lines.empty() ? 0 : lines.back().sequence;
}

TEST_CASE("JSON strings escape quotes, backslashes and control characters") {
  CHECK(Quoted("") == R"("")");
  CHECK(Quoted("plain") == R"("plain")");
  CHECK(Quoted(R"(a"b\c)") == R"("a\"b\\c")");
  CHECK(Quoted("a\nb\tc") == R"("a\u000ab\u0009c")");
  CHECK(Quoted(std::string_view("\0\x1b\x7f", 3)) == R"("\u0000\u001b\u007f")");
}

TEST_CASE("JSON strings keep well-formed UTF-8 of every length") {
  for (const std::string_view text : {"\xc2\x80", "\xc3\xa9", "\xe0\xa0\x80", "\xe2\x82\xac", "\xef\xbf\xbf",
                                      "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    CAPTURE(text.size());
    CHECK(Quoted(text) == '"' + std::string(text) + '"');
  }
}

TEST_CASE("JSON strings replace each byte that is no UTF-8") {
  CHECK(Quoted("\xff") == R"("\ufffd")");
  CHECK(Quoted("a\x80z") == R"("a\ufffdz")");
  CHECK(Quoted("\xc0\xaf") == R"("\ufffd\ufffd")");                      // overlong slash
  CHECK(Quoted("\xe0\x80\xaf") == R"("\ufffd\ufffd\ufffd")");            // overlong slash
  CHECK(Quoted("\xed\xa0\x80") == R"("\ufffd\ufffd\ufffd")");            // surrogate
  CHECK(Quoted("\xf0\x80\x80\x80") == R"("\ufffd\ufffd\ufffd\ufffd")");  // overlong NUL
  CHECK(Quoted("\xf4\x90\x80\x80") == R"("\ufffd\ufffd\ufffd\ufffd")");  // past U+10FFFF
  CHECK(Quoted("\xe2\x82") == R"("\ufffd\ufffd")");                      // cut off
  CHECK(Quoted("\xe2\x82z") == R"("\ufffd\ufffdz")");
}

TEST_CASE("what a JSON parser reads back is the text, whatever single byte it holds") {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text = std::string("x") + static_cast<char>(byte) + "y";
    const nlohmann::json parsed = nlohmann::json::parse(Quoted(text), nullptr, false);
    CAPTURE(byte);
    REQUIRE(parsed.is_string());
    CHECK(parsed.get<std::string>() == (byte < 0x80 ? text : "x\xef\xbf\xbdy"));
  }
}

TEST_CASE("a line is one JSON object with time, level, message and fields") {
  CapturedLog captured(LogFormat::kJson, Level::kInfo);
  const int64_t before = RealtimeNs();
  Log(Level::kWarn, "two\nlines", {{"id", "a b"}, {"n", "1"}});
  const std::string text = captured.Text();
  REQUIRE(text.ends_with("}\n"));
  CHECK(text.find('\n') == text.size() - 1);
  const nlohmann::json line = nlohmann::json::parse(text, nullptr, false);
  REQUIRE(line.is_object());
  CHECK(line["level"] == "warning");
  CHECK(line["msg"] == "two\nlines");
  CHECK(line["id"] == "a b");
  CHECK(line["n"] == "1");
  const auto time = line["time"].get<std::string>();
  CHECK(time.size() == std::string_view("2026-01-02T03:04:05.123456789Z").size());
  CHECK(time.back() == 'Z');
  const std::vector<LogLine> kept = ReadLog(LastSequence() - 1, 10);
  REQUIRE(kept.size() == 1);
  CHECK(kept[0].text + "\n" == text);
  CHECK(kept[0].time_ns >= before);
}

TEST_CASE("text lines quote values that would be ambiguous") {
  CapturedLog captured(LogFormat::kText, Level::kInfo);
  Log(Level::kInfo, "started", {{"id", "c1"}, {"args", "a b"}, {"empty", ""}, {"eq", "k=v"}, {"nl", "a\nb"}});
  CHECK(captured.Text() == "info started id=c1 args=\"a b\" empty=\"\" eq=\"k=v\" nl=\"a\\u000ab\"\n");
}

TEST_CASE("an error is logged with its parts as fields") {
  CapturedLog captured(LogFormat::kJson, Level::kInfo);
  LogError("cannot start", Error{"mount", ENODEV, "/x", "why"});
  const nlohmann::json line = nlohmann::json::parse(captured.Text(), nullptr, false);
  REQUIRE(line.is_object());
  CHECK(line["level"] == "error");
  CHECK(line["step"] == "mount");
  CHECK(line["errno"] == "ENODEV");
  CHECK(line["object"] == "/x");
  CHECK(line["detail"] == "why");
}

TEST_CASE("lines below the least level are neither written nor kept") {
  CapturedLog captured(LogFormat::kText, Level::kWarn);
  const uint64_t last = LastSequence();
  Log(Level::kInfo, "quiet");
  Log(Level::kDebug, "quieter");
  CHECK(captured.Text().empty());
  CHECK(LastSequence() == last);
  Log(Level::kError, "loud");
  CHECK(captured.Text() == "error loud\n");
  CHECK(LastSequence() == last + 1);
}

TEST_CASE("readers page through the ring by sequence") {
  CapturedLog captured(LogFormat::kText, Level::kInfo);
  Log(Level::kInfo, "start");
  const uint64_t start = LastSequence();
  for (int i = 0; i < 5; ++i) Log(Level::kInfo, "line " + std::to_string(i));
  const std::vector<LogLine> first = ReadLog(start, 2);
  REQUIRE(first.size() == 2);
  CHECK(first[0].sequence == start + 1);
  const std::vector<LogLine> rest = ReadLog(first.back().sequence, 100);
  REQUIRE(rest.size() == 3);
  CHECK(rest[0].sequence == start + 3);
  CHECK(ReadLog(rest.back().sequence, 100).empty());
}

TEST_CASE("the ring is bounded and drops its oldest lines") {
  const Fd null(open("/dev/null", O_WRONLY | O_CLOEXEC));
  SetLogOutput(null.get(), LogFormat::kText, Level::kInfo);
  const std::string text(1000, 'x');
  for (int i = 0; i < 1000; ++i) Log(Level::kInfo, text);
  SetLogOutput(2, LogFormat::kText, Level::kInfo);
  size_t bytes = 0;
  const std::vector<LogLine> lines = ReadLog(0, SIZE_MAX);
  for (const LogLine& line : lines) bytes += line.text.size();
  CHECK(bytes <= 256 * 1024);
  CHECK(bytes > 200 * 1024);
  CHECK(lines.size() < 1000);
  for (size_t i = 1; i < lines.size(); ++i) REQUIRE(lines[i].sequence == lines[i - 1].sequence + 1);
}

TEST_CASE("a watch is called for each new line until it is removed") {
  CapturedLog captured(LogFormat::kText, Level::kInfo);
  std::atomic<int> woken = 0;
  const uint64_t id = AddLogWatch([&woken] { ++woken; });
  Log(Level::kInfo, "one");
  Log(Level::kInfo, "two");
  RemoveLogWatch(id);
  Log(Level::kInfo, "three");
  CHECK(woken == 2);
}

TEST_CASE("a reader that does not read stops nobody and learns how many lines it missed") {
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    CapturedLog captured(format, Level::kInfo);  // a pipe holds 64 KiB and is not read here
    const uint64_t before = LastSequence();
    const std::string text(1000, 'x');
    for (int i = 0; i < 200; ++i) Log(Level::kInfo, text);
    CHECK(LastSequence() == before + 200);  // who reads the ring misses nothing
    const std::string first = captured.Text();
    CHECK(first.size() <= 65536);
    CHECK(first.ends_with('\n'));
    const auto written = std::ranges::count(first, '\n');
    Log(Level::kInfo, "again");
    const std::string note = std::to_string(200 - written);
    const std::string second = captured.Text();
    CAPTURE(second);
    if (format == LogFormat::kText) {
      CHECK(second == "warning log lines were dropped count=" + note + "\ninfo again\n");
    } else {
      CHECK(second.find(R"("msg":"log lines were dropped","count":")" + note + "\"}\n") != std::string::npos);
    }
    Log(Level::kInfo, "and again");
    CHECK(captured.Text().find("dropped") == std::string::npos);
  }
}

TEST_CASE("a line of which the pipe took a part does not run into the next one") {
  CapturedLog captured(LogFormat::kText, Level::kInfo);
  Log(Level::kInfo, std::string(100'000, 'x'));  // more than a pipe holds, and than it takes in one piece
  CHECK(captured.Text().size() == 65536);
  Log(Level::kInfo, "next");
  CHECK(captured.Text() == "\nwarning log lines were dropped count=1\ninfo next\n");
}

TEST_CASE("a reader that has gone stops nobody") {
  signal(SIGPIPE, SIG_IGN);
  int ends[2];
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  const Fd writer(ends[1]);
  SetLogOutput(writer.get(), LogFormat::kText, Level::kInfo);
  close(ends[0]);
  const uint64_t before = LastSequence();
  Log(Level::kInfo, "to nobody");
  CHECK(LastSequence() == before + 1);
  SetLogOutput(2, LogFormat::kText, Level::kInfo);
}

}  // namespace
}  // namespace gcs::base
