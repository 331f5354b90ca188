// SPDX-License-Identifier: Apache-2.0
#include "engine/cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <map>
#include <sstream>
#include <utility>

#include "engine/compile.h"

namespace gcs::oci {

using base::Json;
using base::MakeError;
using base::Result;

namespace {

// A flag of runc that is for what there is not here: refused in words, and not as unknown.
void AddRefused(CLI::App& app, const char* flag, const std::string& why, bool has_value) {
  const std::string text = "refused: " + why;
  auto* option = has_value ? app.add_option(flag, text) : app.add_flag(flag, text);
  option->check(CLI::Validator([why](std::string&) { return why; }, ""));
}

void AddGlobal(CLI::App& app, Global& global) {
  app.add_option("--root", global.root, "directory for the state of containers")->capture_default_str();
  app.add_option("--log", global.log, "file for messages (default: standard error)");
  app.add_option("--log-format", global.log_format, "text or json")->check(CLI::IsMember({"text", "json"}));
  app.add_flag("--debug", global.debug, "tell more");
  app.add_option("--cgroup-manager", "only cgroupfs")->check(CLI::IsMember({"cgroupfs"}));
  AddRefused(app, "--systemd-cgroup", "systemd cgroups are not supported", false);
  AddRefused(app, "--criu", "checkpoint and restore are not supported", true);
  app.add_option("--rootless", "only false and auto, for root")->check(CLI::IsMember({"false", "auto"}));
}

void AddProcess(CLI::App& command, ProcessOptions& options, bool detach) {
  command.add_option("--pid-file", options.pid_file, "file that gets the process id");
  command.add_option("--console-socket", options.console_socket,
                     "unix socket that gets the master of the terminal");
  command
      .add_option("--preserve-fds", options.preserve_fds, "number of descriptors from 3 on for the process")
      ->check(CLI::Range(0, 200));
  if (detach) command.add_flag("-d,--detach", options.detach, "do not wait for the process's end");
}

void AddId(CLI::App& command, std::string& id) {
  command.add_option("container-id", id, "name of the container")->required();
}

int64_t ParseNumber(const std::string& text) {
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  if (parsed.ec != std::errc() || parsed.ptr != end) throw CLI::ValidationError(text, "is no number");
  return number;
}

// "1.5g" and the like are podman's business: here a number of bytes, or one with k, m or g.
int64_t ParseBytes(const std::string& text) {
  if (text == "-1") return -1;
  size_t used = 0;
  int64_t number = 0;
  try {
    number = std::stoll(text, &used);
  } catch (const std::exception&) {
    throw CLI::ValidationError(text, "is no number of bytes");
  }
  const std::string unit = text.substr(used);
  const int shift = unit.empty() || unit == "b" ? 0
                    : unit == "k"               ? 10
                    : unit == "m"               ? 20
                    : unit == "g"               ? 30
                                                : -1;
  if (shift < 0 || number < 0 || number > (INT64_MAX >> shift)) {
    throw CLI::ValidationError(text, "is no number of bytes");
  }
  return number << shift;
}

enum class Value : uint8_t { kNumber, kBytes, kText };

// A flag of update and where its value goes in the resources object.
struct UpdateFlag {
  const char* flag;
  const char* group;
  const char* key;
  Value value;
  const char* text;
};
constexpr UpdateFlag kUpdateFlags[] = {
    {"--blkio-weight", "blockIO", "weight", Value::kNumber, "share of the disks' time, 10 to 1000"},
    {"--cpu-period", "cpu", "period", Value::kNumber, "microseconds"},
    {"--cpu-quota", "cpu", "quota", Value::kNumber, "microseconds in each period"},
    {"--cpu-burst", "cpu", "burst", Value::kNumber, "microseconds"},
    {"--cpu-share", "cpu", "shares", Value::kNumber, "relative weight"},
    {"--cpu-rt-period", "cpu", "realtimePeriod", Value::kNumber, "microseconds"},
    {"--cpu-rt-runtime", "cpu", "realtimeRuntime", Value::kNumber, "microseconds"},
    {"--cpu-idle", "cpu", "idle", Value::kNumber, "0 or 1"},
    {"--cpuset-cpus", "cpu", "cpus", Value::kText, "list of processors"},
    {"--cpuset-mems", "cpu", "mems", Value::kText, "list of memory nodes"},
    {"--memory", "memory", "limit", Value::kBytes, "bytes"},
    {"--memory-reservation", "memory", "reservation", Value::kBytes, "bytes"},
    {"--memory-swap", "memory", "swap", Value::kBytes, "bytes of memory and swap; -1: no limit"},
    {"--pids-limit", "pids", "limit", Value::kNumber, "-1: no limit"},
};

Json ParseValue(Value value, const std::string& text) {
  if (value == Value::kText) return text;
  return value == Value::kBytes ? ParseBytes(text) : ParseNumber(text);
}

void AddUpdate(CLI::App& app, UpdateCommand& update) {
  auto* command = app.add_subcommand("update", "change limits of a container");
  AddId(*command, update.id);
  command->add_option("-r,--resources", update.file, "file with a resources object; -: standard input");
  for (const UpdateFlag& flag : kUpdateFlags) {
    const auto set = [&update, &flag](const std::string& text) {
      update.resources[flag.group][flag.key] = ParseValue(flag.value, text);
    };
    command->add_option_function<std::string>(flag.flag, set, flag.text);
  }
  for (const char* flag : {"--l3-cache-schema", "--mem-bw-schema"})
    AddRefused(*command, flag, "Intel RDT is not supported", true);
}

// The id and the program come behind the flags, see ParseCommandLine.
void AddExec(CLI::App& app, ExecCommand& exec) {
  auto* command = app.add_subcommand("exec", "run a process in a running container");
  command->footer("Behind the options: container-id program [argument...]");
  AddProcess(*command, exec.options, true);
  command->add_option("-p,--process", exec.process_file, "file with a process object");
  command->add_flag("-t,--tty", exec.tty, "give it a terminal");
  const auto set_user = [&exec](const std::string& text) {
    exec.user = text;
    exec.has_user = true;
  };
  command->add_option_function<std::string>("-u,--user", set_user, "UID[:GID]");
  command->add_option("--cwd", exec.cwd, "working directory");
  command->add_option("-e,--env", exec.env, "NAME=value, any number of times")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("-c,--cap", exec.capabilities, "one more capability, any number of times")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("-g,--additional-gids", exec.additional_gids, "one more group, any number of times")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--apparmor", exec.apparmor, "AppArmor profile");
  command->add_option("--process-label", exec.selinux, "SELinux label");
  command->add_option("--cgroup", exec.cgroup, "cgroup below the container's, which must be there");
  command->add_flag("--no-new-privs", exec.no_new_privileges, "execve gives no more rights");
  command->add_flag("--ignore-paused", exec.ignore_paused, "in a paused container too");
}

void AddCreate(CLI::App& app, CreateCommand& create, bool run) {
  auto* command =
      app.add_subcommand(run ? "run" : "create", run ? "create, start and wait for a container"
                                                     : "create a container that waits for its start");
  AddId(*command, create.id);
  command->add_option("-b,--bundle", create.bundle, "directory with config.json")->capture_default_str();
  AddProcess(*command, create.process, run);
  command->add_flag("--no-new-keyring", create.no_new_keyring, "keep the caller's session keyring");
  command->add_flag_callback(
      "--no-pivot", [] {},
      "accepted: the root is entered by pivot_root from one of our own, also from an initramfs");
  if (!run) return;
  command->add_flag("--keep", create.keep, "do not delete the container at its end");
  command->add_flag_callback("--no-subreaper", [] {}, "accepted: this program never becomes a subreaper");
}

// A command that takes a container's id, and what is added to it.
CLI::App* AddSimple(CLI::App& app, CommandLine& line, const char* name, const char* text) {
  auto* command = app.add_subcommand(name, text);
  AddId(*command, line.id);
  return command;
}

void AddKill(CLI::App& app, CommandLine& line) {
  auto* kill = AddSimple(app, line, "kill", "send a signal");
  kill->add_option("signal", line.signal, "name or number")->capture_default_str();
  kill->add_flag("-a,--all", line.all, "to all processes");
}

void AddEvents(CLI::App& app, CommandLine& line) {
  auto* events = AddSimple(app, line, "events", "print counters as JSON lines");
  events->add_flag("--stats", line.stats, "once");
  events->add_option("--interval", line.interval_s, "seconds between two lines")
      ->transform(CLI::AsNumberWithUnit(std::map<std::string, double>{{"ms", 0.001}, {"s", 1}, {"m", 60}},
                                        CLI::AsNumberWithUnit::CASE_SENSITIVE))
      ->check(CLI::Range(0.01, 86400.0));
}

void AddPs(CLI::App& app, CommandLine& line) {
  auto* ps = app.add_subcommand("ps", "list the processes");
  ps->footer("Behind the options: container-id [option of ps(1)...]");
  ps->add_option("-f,--format", line.format, "table or json");
}

void AddList(CLI::App& app, CommandLine& line) {
  auto* list = app.add_subcommand("list", "list the containers");
  list->add_option("-f,--format", line.format, "table or json");
  list->add_flag("-q,--quiet", line.quiet, "ids only");
}

void AddSpec(CLI::App& app, CommandLine& line) {
  auto* spec = app.add_subcommand("spec", "write a config.json to begin with");
  spec->add_option("-b,--bundle", line.bundle, "directory")->capture_default_str();
  AddRefused(*spec, "--rootless", "containers without root are not supported", false);
}

struct Subcommand {
  std::string_view name;
  void (*add)(CLI::App& app, CommandLine& line);
};
constexpr Subcommand kSubcommands[] = {
    {"create", [](CLI::App& app, CommandLine& line) { AddCreate(app, line.create, false); }},
    {"run", [](CLI::App& app, CommandLine& line) { AddCreate(app, line.create, true); }},
    {"exec", [](CLI::App& app, CommandLine& line) { AddExec(app, line.exec); }},
    {"update", [](CLI::App& app, CommandLine& line) { AddUpdate(app, line.update); }},
    {"start",
     [](CLI::App& app, CommandLine& line) { AddSimple(app, line, "start", "start a created container"); }},
    {"state", [](CLI::App& app, CommandLine& line) { AddSimple(app, line, "state", "print the state"); }},
    {"pause",
     [](CLI::App& app, CommandLine& line) { AddSimple(app, line, "pause", "freeze all processes"); }},
    {"resume",
     [](CLI::App& app, CommandLine& line) { AddSimple(app, line, "resume", "thaw all processes"); }},
    {"delete",
     [](CLI::App& app, CommandLine& line) {
       AddSimple(app, line, "delete", "remove a stopped container")
           ->add_flag("-f,--force", line.force, "kill it first; one that is not there is no error");
     }},
    {"kill", AddKill},
    {"events", AddEvents},
    {"ps", AddPs},
    {"list", AddList},
    {"spec", AddSpec},
    {"features",
     [](CLI::App& app, CommandLine&) { app.add_subcommand("features", "print what this runtime can do"); }},
    {"checkpoint",
     [](CLI::App& app, CommandLine&) { app.add_subcommand("checkpoint", "not supported")->allow_extras(); }},
    {"restore",
     [](CLI::App& app, CommandLine&) { app.add_subcommand("restore", "not supported")->allow_extras(); }},
};

bool TakesValue(const CLI::Option* option) {
  return option != nullptr && option->get_items_expected_max() > 0;
}

// Whether a word like "-tu", flags of one letter, ends with one whose value is the next word.
bool EndsWithValue(const CLI::App& app, const std::string& word) {
  for (size_t i = 1; i < word.size(); ++i) {
    const CLI::Option* option = app.get_option_no_throw(std::string{'-', word[i]});
    if (option == nullptr) return false;
    if (TakesValue(option)) return i + 1 == word.size();
  }
  return false;
}

// The index of the first word from `begin` on that is no flag of `app`, nor the value of one. Flags written
// as Go's package flag takes them are made what our parser takes: "-name" becomes "--name",
// "name=value" two words.
size_t SkipFlags(const CLI::App& app, std::vector<std::string>& words, size_t begin) {
  size_t at = begin;
  while (at < words.size()) {
    const std::string word = words[at];
    if (word.size() < 2 || word[0] != '-' || word == "--") break;
    const size_t equals = word.find('=');
    std::string name = word.substr(0, equals);
    const bool two_dashes = word[1] == '-';
    const CLI::Option* option = app.get_option_no_throw(name);
    if (option == nullptr && !two_dashes && name.size() > 2) {
      option = app.get_option_no_throw("-" + name);
      if (option != nullptr) {
        words[at] = "-" + word;
        name.insert(0, "-");
      }
    }
    ++at;
    if (option == nullptr) {  // unknown, or flags of one letter in one word
      if (!two_dashes && EndsWithValue(app, word)) ++at;
      continue;
    }
    if (!TakesValue(option)) continue;
    if (equals != std::string::npos) {
      words[at - 1] = name;
      words.insert(words.begin() + static_cast<ptrdiff_t>(at), word.substr(equals + 1));
    }
    ++at;
  }
  return std::min(at, words.size());
}

// Where messages are to go, known before the rest is: also a wrong command line is told there.
void SetLog(const CLI::App& app, Global& global) {
  const auto last = [&](const char* name, std::string& value) {
    const auto& texts = app.get_option(name)->results();
    if (!texts.empty()) value = texts.back();
  };
  last("--log", global.log);
  last("--log-format", global.log_format);
}

}  // namespace

Result<> ParseCommandLine(std::vector<std::string> words, CommandLine& line) {
  CLI::App app{"Runs containers from OCI bundles, with runc's command line.", "gcs-oci"};
  app.set_version_flag("-v,--version", std::string("gcs-oci version ") + kVersion +
                                           "\nspec: " + std::string(engine::kOciVersion));
  // Of a flag that is given twice the last one counts.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  AddGlobal(app, line.global);
  app.require_subcommand(1);
  const auto wrong = [](std::string_view what, const std::string& message) -> std::unexpected<base::Error> {
    return MakeError(EINVAL, "parse command line", what, message);
  };
  for (const std::string& word : words) {
    if (word.find('\0') != std::string::npos) return wrong("arguments", "with a byte 0");
  }
  // What belongs to a process, or to ps(1), is out of the parser's sight, whatever it looks like.
  std::vector<std::string> tail;
  const size_t name_at = SkipFlags(app, words, 0);
  // Telling the parser of all commands takes longer than parsing does, so it hears of the others only when
  // there is no such one.
  const std::string_view name =
      name_at < words.size() ? std::string_view(words[name_at]) : std::string_view();
  const bool known = std::ranges::find(kSubcommands, name, &Subcommand::name) != std::end(kSubcommands);
  for (const Subcommand& subcommand : kSubcommands) {
    if (!known || subcommand.name == name) subcommand.add(app, line);
  }
  bool has_tail = false;
  const auto named = [&](const CLI::App* sub) {
    return name_at < words.size() && sub->get_name() == words[name_at];
  };
  for (const CLI::App* command : app.get_subcommands(named)) {
    const size_t end = SkipFlags(*command, words, name_at + 1);
    has_tail = command->get_name() == "exec" || command->get_name() == "ps";
    if (has_tail) {
      const size_t begin = end < words.size() && words[end] == "--" ? end + 1 : end;
      tail.assign(words.begin() + static_cast<ptrdiff_t>(begin), words.end());
      words.resize(end);
    }
  }
  try {
    std::vector<std::string> reversed(words.rbegin(), words.rend());
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      std::ostringstream out;
      app.exit(error, out, out);
      line.text = out.str();
      return {};
    }
    SetLog(app, line.global);
    return wrong(error.get_name(), error.what());
  }
  line.command = app.get_subcommands().at(0)->get_name();
  if (!has_tail) return {};
  if (tail.empty()) return wrong("RequiredError", "container-id is required");
  (line.command == "exec" ? line.exec.id : line.id) = std::move(tail[0]);
  tail.erase(tail.begin());
  (line.command == "exec" ? line.exec.args : line.ps_options) = std::move(tail);
  return {};
}

}  // namespace gcs::oci
