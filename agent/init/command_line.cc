// SPDX-License-Identifier: Apache-2.0
#include "init/command_line.h"

#include <charconv>
#include <cstddef>

namespace gcs::init {

namespace {

constexpr std::string_view kPrefix = "gcs.";
constexpr size_t kMaxHostname = 64;  // __NEW_UTS_LEN

bool IsFlagName(std::string_view name) {
  if (name.empty() || name.front() == '-') return false;
  for (const char c : name) {
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) return false;
  }
  return true;
}

bool IsHostname(std::string_view name) {
  if (name.empty() || name.size() > kMaxHostname || name.front() == '-' || name.front() == '.') return false;
  for (const char c : name) {
    if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.'))
      return false;
  }
  return true;
}

// Takes a word of init's own. False when its value is none.
bool TakeOwn(std::string_view name, std::string_view value, BootConfig& config, bool& own) {
  own = true;
  if (name == "hostname") {
    if (!IsHostname(value)) return false;
    config.hostname = value;
  } else if (name == "poweroff") {
    if (value != "reboot" && value != "off") return false;
    config.power_off = value == "reboot" ? EndAction::kReboot : EndAction::kPowerOff;
  } else if (name == "console") {
    if (!value.starts_with('/')) return false;
    config.console = value;
  } else {
    own = false;
  }
  return true;
}

void TakeWord(const std::string& word, BootConfig& config) {
  const std::string_view rest = std::string_view(word).substr(kPrefix.size());
  const size_t equals = rest.find('=');
  const std::string_view name = rest.substr(0, equals);
  const std::string_view value =
      equals == std::string_view::npos ? std::string_view() : rest.substr(equals + 1);
  bool own = false;
  if (!IsFlagName(name) || !TakeOwn(name, value, config, own)) {
    config.ignored.push_back(word);
    return;
  }
  if (!own) config.agent.push_back(std::string("--").append(rest));
}

bool ParsePort(std::string_view text, uint32_t& port) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port != 0 && port != UINT32_MAX;
}

// Takes init's options off the front of its arguments; returns the index of the first word of the command.
size_t TakeOptions(const std::vector<std::string>& args, BootConfig& config) {
  size_t at = 0;
  for (; at < args.size(); ++at) {
    const std::string& word = args[at];
    const bool has_value = at + 1 < args.size();
    if (word == "-e" && has_value) {
      if (!ParsePort(args[++at], config.entropy_port)) {
        config.entropy_port = 0;
        config.ignored.push_back("-e " + args[at]);
      }
    } else if (word == "-d" && has_value) {
      config.console = args[++at];
    } else if (word.starts_with('/') || word == "sh") {
      break;
    } else {
      // "-w" of the Windows shim (writable /etc and /var) comes here too: the root stays read-only.
      config.ignored.push_back(word);
    }
  }
  return at;
}

}  // namespace

std::vector<std::string> SplitCommandLine(std::string_view cmdline) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false;
  bool any = false;
  for (const char c : cmdline) {
    if (c == '"') {
      quoted = !quoted;
      any = true;
    } else if (!quoted && (c == ' ' || c == '\t' || c == '\n')) {
      if (word == "--") return words;
      if (any) words.push_back(std::move(word));
      word.clear();
      any = false;
    } else {
      word += c;
      any = true;
    }
  }
  if (any && word != "--") words.push_back(std::move(word));
  return words;
}

BootConfig ParseBootConfig(std::string_view cmdline, const std::vector<std::string>& args,
                           std::string_view default_agent) {
  BootConfig config;
  config.agent.emplace_back(default_agent);
  for (const std::string& word : SplitCommandLine(cmdline)) {
    if (word.starts_with(kPrefix)) TakeWord(word, config);
  }
  const size_t command = TakeOptions(args, config);
  if (command < args.size()) config.agent.assign(args.begin() + static_cast<ptrdiff_t>(command), args.end());
  return config;
}

}  // namespace gcs::init
