// SPDX-License-Identifier: Apache-2.0
// gcs-oci: the engine behind runc's command line. Messages and exit codes; nothing else.
#include <fcntl.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <iostream>

#include "base/clock.h"
#include "base/log.h"
#include "base/paths.h"
#include "engine/cli/cli.h"
#include "engine/cli/options.h"
#include "engine/cli/sealed.h"
#include "engine/zygote.h"

namespace gcs::oci {
namespace {

using base::Json;
using base::MakeError;
using base::Result;

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
  // Beside a log the bare message, as runc has it.
  const std::string& shown = !global.log.empty() ? text : global.log_format == "json" ? json : plain;
  dprintf(2, "%s\n", shown.c_str());
}

int64_t Nanoseconds(double seconds) {
  return static_cast<int64_t>(seconds * static_cast<double>(base::kNsPerSec));
}

struct Command {
  std::string_view name;
  // `zygote`: for those that have processes of ours in a container.
  Result<int> (*run)(const CommandLine& line, std::unique_ptr<engine::Zygote> zygote);
};
constexpr Command kCommands[] = {
    {"create", [](const CommandLine& line,
                  auto zygote) { return Create(line.global, line.create, std::move(zygote)); }},
    {"run",
     [](const CommandLine& line, auto zygote) { return Run(line.global, line.create, std::move(zygote)); }},
    {"start", [](const CommandLine& line, auto) { return Start(line.global, line.id); }},
    {"kill", [](const CommandLine& line, auto) { return Kill(line.global, line.id, line.signal, line.all); }},
    {"delete", [](const CommandLine& line, auto) { return Delete(line.global, line.id, line.force); }},
    {"exec",
     [](const CommandLine& line, auto zygote) { return Exec(line.global, line.exec, std::move(zygote)); }},
    {"state", [](const CommandLine& line, auto) { return State(line.global, line.id); }},
    {"list", [](const CommandLine& line, auto) { return List(line.global, line.format, line.quiet); }},
    {"ps",
     [](const CommandLine& line, auto) { return Ps(line.global, line.id, line.format, line.ps_options); }},
    {"pause", [](const CommandLine& line, auto) { return Pause(line.global, line.id, true); }},
    {"resume", [](const CommandLine& line, auto) { return Pause(line.global, line.id, false); }},
    {"update", [](const CommandLine& line, auto) { return Update(line.global, line.update); }},
    {"events", [](const CommandLine& line,
                  auto) { return Events(line.global, line.id, line.stats, Nanoseconds(line.interval_s)); }},
    {"spec", [](const CommandLine& line, auto) { return WriteSpec(line.bundle); }},
    {"features", [](const CommandLine&, auto) { return Features(); }},
};

Result<int> Execute(const CommandLine& line, std::unique_ptr<engine::Zygote> zygote) {
  for (const Command& command : kCommands) {
    if (command.name == line.command) return command.run(line, std::move(zygote));
  }
  return MakeError(EOPNOTSUPP, line.command, {}, "is not supported");
}

// As early as can be, since it gets ready while we read what to do: before the command line is parsed. One
// that is started in vain ends with us.
Result<std::unique_ptr<engine::Zygote>> StartZygote(int argc, char** argv) {
  constexpr std::string_view kWithProcesses[] = {"create", "run", "exec"};
  for (int i = 1; i < argc; ++i) {
    if (std::ranges::find(kWithProcesses, argv[i]) != std::end(kWithProcesses))
      return engine::Zygote::Start(BecomeSealedZygote);
  }
  return nullptr;
}

int Main(int argc, char** argv) {
  constexpr int kFailed = 1;
  constexpr int kExecFailed = 255;
  // Neither we nor what we are in the middle of making can be looked into (CVE-2016-9962).
  prctl(PR_SET_DUMPABLE, 0);
  CommandLine line;
  const Global& global = line.global;
  auto zygote = StartZygote(argc, argv);
  if (const auto parsed = ParseCommandLine({argv + 1, argv + std::max(argc, 1)}, line); !parsed) {
    Report(global, parsed.error());
    return kFailed;
  }
  if (line.command.empty()) {
    std::cout << line.text << std::flush;
    return std::cout ? 0 : kFailed;
  }
  const int sink = global.log.empty() ? 2 : -1;
  if (sink >= 0)
    base::SetLogOutput(sink, base::LogFormat::kText, global.debug ? base::Level::kDebug : base::Level::kWarn);
  if (!zygote) {
    Report(global, zygote.error());
    return kFailed;
  }
  const Result<int> code = Execute(line, std::move(*zygote));
  if (code) return *code;
  Report(global, code.error());
  // runc's of an exec that failed for itself; 1 could be the program's.
  return line.command == "exec" ? kExecFailed : kFailed;
}

}  // namespace
}  // namespace gcs::oci

int main(int argc, char** argv) {
  constexpr int kZygoteSocket = 3;
  if (argc == 1 && strcmp(argv[0], gcs::oci::kZygoteName) == 0) gcs::engine::RunZygoteProgram(kZygoteSocket);
  return gcs::oci::Main(argc, argv);
}
