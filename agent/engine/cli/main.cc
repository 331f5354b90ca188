// SPDX-License-Identifier: Apache-2.0
// gcs-oci: the engine behind runc's command line. Flags, messages, exit codes; nothing else.
#include <fcntl.h>
#include <sys/prctl.h>

#include <CLI/CLI.hpp>
#include <array>
#include <charconv>
#include <ctime>
#include <functional>
#include <iostream>

#include "base/clock.h"
#include "base/log.h"
#include "base/paths.h"
#include "engine/cli/cli.h"
#include "engine/cli/sealed.h"

namespace gcs::oci {
namespace {

using base::Json;
using base::MakeError;
using base::Result;

using Action = std::function<Result<int>()>;

// As logrus writes them, which is what callers of runc parse.
void Report(const Global& global, const base::Error& error) {
  const std::string text = error.ToString();
  const time_t now = time(nullptr);
  tm utc{};
  gmtime_r(&now, &utc);
  char stamp[32];
  strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
  const Json line{{"level", "error"}, {"msg", text}, {"time", stamp}};
  const std::string json = line.dump(-1, ' ', false, Json::error_handler_t::replace);
  const std::string plain = "time=\"" + std::string(stamp) + "\" level=error msg=" +
                            Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
  if (!global.log.empty()) {
    const auto file = base::OpenFile(global.log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    const std::string& message = global.log_format == "json" ? json : plain;
    if (file) dprintf(file->get(), "%s\n", message.c_str());
  }
  dprintf(2, "%s\n", (global.log_format == "json" && global.log.empty() ? json : plain).c_str());
}

void AddGlobal(CLI::App& app, Global& global) {
  app.add_option("--root", global.root, "directory for the state of containers")->capture_default_str();
  app.add_option("--log", global.log, "file for messages (default: standard error)");
  app.add_option("--log-format", global.log_format, "text or json")->check(CLI::IsMember({"text", "json"}));
  app.add_flag("--debug", global.debug, "tell more");
  app.add_option("--cgroup-manager", "only cgroupfs")->check(CLI::IsMember({"cgroupfs"}));
  app.add_flag_callback(
      "--systemd-cgroup",
      [] { throw CLI::ValidationError("--systemd-cgroup", "systemd cgroups are not supported"); },
      "refused: cgroups are made by this program itself");
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

void AddUpdate(CLI::App& app, const Global& global, Action& action) {
  auto* command = app.add_subcommand("update", "change limits of a container");
  auto update = std::make_shared<UpdateCommand>();
  AddId(*command, update->id);
  command->add_option("-r,--resources", update->file, "file with a resources object; -: standard input");
  using Texts = std::array<std::optional<std::string>, std::size(kUpdateFlags)>;
  auto texts = std::make_shared<Texts>();
  for (size_t i = 0; i < texts->size(); ++i) {
    command->add_option(kUpdateFlags[i].flag, (*texts)[i], kUpdateFlags[i].text);
  }
  command->callback([&action, &global, update, texts] {
    for (size_t i = 0; i < texts->size(); ++i) {
      const UpdateFlag& flag = kUpdateFlags[i];
      if ((*texts)[i]) update->resources[flag.group][flag.key] = ParseValue(flag.value, *(*texts)[i]);
    }
    action = [&global, update] { return Update(global, *update); };
  });
}

void AddExec(CLI::App& app, const Global& global, Action& action) {
  auto* command = app.add_subcommand("exec", "run a process in a running container");
  auto exec = std::make_shared<ExecCommand>();
  // What follows the id belongs to the process, whatever it looks like.
  command->prefix_command();
  AddId(*command, exec->id);
  AddProcess(*command, exec->options, true);
  command->add_option("-p,--process", exec->process_file, "file with a process object");
  command->add_flag("-t,--tty", exec->tty, "give it a terminal");
  command->add_option("-u,--user", exec->user, "UID[:GID]");
  command->add_option("--cwd", exec->cwd, "working directory");
  command->add_option("-e,--env", exec->env, "NAME=value, any number of times")->allow_extra_args(false);
  command->add_option("-c,--cap", exec->capabilities, "one more capability, any number of times")
      ->allow_extra_args(false);
  command->add_option("-g,--additional-gids", exec->additional_gids, "one more group, any number of times")
      ->allow_extra_args(false);
  command->add_option("--apparmor", exec->apparmor, "AppArmor profile");
  command->add_flag("--no-new-privs", exec->no_new_privileges, "execve gives no more rights");
  command->add_flag("--ignore-paused", exec->ignore_paused, "in a paused container too");
  command->callback([&action, &global, exec, command] {
    exec->args = command->remaining();
    action = [&global, exec] { return Exec(global, *exec); };
  });
}

void AddCreate(CLI::App& app, const Global& global, bool run, Action& action) {
  auto* command =
      app.add_subcommand(run ? "run" : "create", run ? "create, start and wait for a container"
                                                     : "create a container that waits for its start");
  auto create = std::make_shared<CreateCommand>();
  AddId(*command, create->id);
  command->add_option("-b,--bundle", create->bundle, "directory with config.json")->capture_default_str();
  AddProcess(*command, create->process, run);
  command->add_flag("--no-new-keyring", create->no_new_keyring, "keep the caller's session keyring");
  command->add_flag_callback(
      "--no-pivot", [] {},
      "accepted: the root is entered by pivot_root from one of our own, also from an initramfs");
  if (run) command->add_flag("--keep", create->keep, "do not delete the container at its end");
  command->callback([&action, &global, create, run] {
    action = [&global, create, run] { return run ? Run(global, *create) : Create(global, *create); };
  });
}

// A command that takes a container's id and nothing else.
CLI::App* AddSimple(CLI::App& app, const char* name, const char* text, Action& action,
                    std::function<Result<int>(const std::string&)> run) {
  auto* command = app.add_subcommand(name, text);
  auto id = std::make_shared<std::string>();
  AddId(*command, *id);
  command->callback([&action, id, run = std::move(run)] { action = [id, run] { return run(*id); }; });
  return command;
}

void AddOthers(CLI::App& app, const Global& global, Action& action) {
  AddSimple(app, "start", "start a created container", action,
            [&](const std::string& id) { return Start(global, id); });
  AddSimple(app, "state", "print the state", action,
            [&](const std::string& id) { return State(global, id); });
  AddSimple(app, "pause", "freeze all processes", action,
            [&](const std::string& id) { return Pause(global, id, true); });
  AddSimple(app, "resume", "thaw all processes", action,
            [&](const std::string& id) { return Pause(global, id, false); });

  auto force = std::make_shared<bool>(false);
  AddSimple(app, "delete", "remove a stopped container", action, [&global, force](const std::string& id) {
    return Delete(global, id, *force);
  })->add_flag("-f,--force", *force, "kill it first; one that is not there is no error");

  auto all = std::make_shared<bool>(false);
  auto signal = std::make_shared<std::string>("TERM");
  auto* kill = AddSimple(app, "kill", "send a signal", action, [&global, all, signal](const std::string& id) {
    return Kill(global, id, *signal, *all);
  });
  kill->add_option("signal", *signal, "name or number")->capture_default_str();
  kill->add_flag("-a,--all", *all, "to all processes");

  auto stats = std::make_shared<bool>(false);
  auto interval = std::make_shared<double>(5);
  auto* events =
      AddSimple(app, "events", "print counters as JSON lines", action,
                [&global, stats, interval](const std::string& id) {
                  return Events(global, id, *stats,
                                static_cast<int64_t>(*interval * static_cast<double>(base::kNsPerSec)));
                });
  events->add_flag("--stats", *stats, "once");
  events->add_option("--interval", *interval, "seconds between two lines")
      ->transform(CLI::AsNumberWithUnit(std::map<std::string, double>{{"ms", 0.001}, {"s", 1}, {"m", 60}},
                                        CLI::AsNumberWithUnit::CASE_SENSITIVE))
      ->check(CLI::Range(0.01, 86400.0));

  auto format = std::make_shared<std::string>("table");
  AddSimple(app, "ps", "list the processes", action, [&global, format](const std::string& id) {
    return Ps(global, id, *format);
  })->add_option("-f,--format", *format, "table or json");
  auto quiet = std::make_shared<bool>(false);
  auto list_format = std::make_shared<std::string>("table");
  auto* list = app.add_subcommand("list", "list the containers");
  list->add_option("-f,--format", *list_format, "table or json");
  list->add_flag("-q,--quiet", *quiet, "ids only");
  list->callback([&, list_format, quiet] {
    action = [&global, list_format, quiet] { return List(global, *list_format, *quiet); };
  });

  auto bundle = std::make_shared<std::string>(".");
  auto* spec = app.add_subcommand("spec", "write a config.json to begin with");
  spec->add_option("-b,--bundle", *bundle, "directory")->capture_default_str();
  spec->callback([&action, bundle] { action = [bundle] { return WriteSpec(*bundle); }; });
  app.add_subcommand("features", "print what this runtime can do")->callback([&action] {
    action = [] { return Features(); };
  });
  for (const char* name : {"checkpoint", "restore"}) {
    app.add_subcommand(name, "not supported")->prefix_command()->callback([&action, name] {
      action = [name]() -> Result<int> { return MakeError(EOPNOTSUPP, name, {}, "is not supported"); };
    });
  }
}

int Main(int argc, char** argv) {
  constexpr int kFailed = 1;
  constexpr int kExecFailed = 255;
  // Neither we nor what we are in the middle of making can be looked into (CVE-2016-9962).
  prctl(PR_SET_DUMPABLE, 0);
  Global global;
  Action action;
  CLI::App app{"Runs containers from OCI bundles, with runc's command line.", "gcs-oci"};
  app.set_version_flag("-v,--version", std::string("gcs-oci version ") + kVersion +
                                           "\nspec: " + std::string(engine::kOciVersion));
  AddGlobal(app, global);
  app.require_subcommand(1);
  AddCreate(app, global, false, action);
  AddCreate(app, global, true, action);
  AddExec(app, global, action);
  AddUpdate(app, global, action);
  AddOthers(app, global, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    Report(global, {"parse command line", EINVAL, error.get_name(), error.what()});
    return kFailed;
  }
  const int sink = global.log.empty() ? 2 : -1;
  if (sink >= 0)
    base::SetLogOutput(sink, base::LogFormat::kText, global.debug ? base::Level::kDebug : base::Level::kWarn);
  // Those that have processes of ours in a container.
  if (app.got_subcommand("create") || app.got_subcommand("run") || app.got_subcommand("exec")) {
    if (const auto sealed = RunFromSealedCopy(argv); !sealed) {
      Report(global, sealed.error());
      return kFailed;
    }
  }
  const Result<int> code = action();
  if (code) return *code;
  Report(global, code.error());
  // runc's of an exec that failed for itself; 1 could be the program's.
  return app.got_subcommand("exec") ? kExecFailed : kFailed;
}

}  // namespace
}  // namespace gcs::oci

int main(int argc, char** argv) { return gcs::oci::Main(argc, argv); }
