// SPDX-License-Identifier: Apache-2.0
#include "gcs/options.h"

#include <CLI/CLI.hpp>
#include <map>

#include "gcs/version.h"

namespace gcs {

std::optional<Options> ParseOptions(int argc, char** argv, int* exit_code) {
  Options options;
  CLI::App app{"Guest compute service: runs Linux containers in a utility VM for the host.", "gcs"};
  app.set_version_flag("--version",
                       std::string("gcs ") + kVersion + "\ncommit " + kCommit + "\ninputs " + kInputHash);
  app.add_option("--port", options.port, "vsock port to serve the API on; 0: none")->capture_default_str();
  app.add_option("--listen-unix", options.listen_unix, "unix socket to serve the API on");
  app.add_option("--dial-unix", options.dial_unix,
                 "reach the host's port N at the unix socket PREFIX_N, not by vsock")
      ->type_name("PREFIX");
  app.add_option("--ready-port", options.ready_port,
                 "port of the host that gets the line \"ready VERSION\" once; 0: none");
  app.add_option("--state-dir", options.state_dir, "directory for the agent's run-time state")
      ->capture_default_str();
  app.add_flag("!--no-containers", options.containers, "serve the guest and event services only");
  const std::map<std::string, base::Level> levels = {{"debug", base::Level::kDebug},
                                                     {"info", base::Level::kInfo},
                                                     {"warning", base::Level::kWarn},
                                                     {"error", base::Level::kError}};
  app.add_option("--log-level", options.log_level, "least level to log: debug, info, warning, error")
      ->transform(CLI::CheckedTransformer(levels))
      ->type_name("LEVEL");
  const std::map<std::string, base::LogFormat> formats = {{"text", base::LogFormat::kText},
                                                          {"json", base::LogFormat::kJson}};
  app.add_option("--log-format", options.log_format, "form of log lines: text, json")
      ->transform(CLI::CheckedTransformer(formats))
      ->type_name("FORMAT");
  app.add_option("--keepalive-time-ms", options.keepalive_time_ms,
                 "silence after which a connection is probed")
      ->check(CLI::Range(100, 3'600'000))
      ->capture_default_str();
  app.add_option("--keepalive-timeout-ms", options.keepalive_timeout_ms, "time for the answer to a probe")
      ->check(CLI::Range(100, 3'600'000))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
    if (options.port == 0 && options.listen_unix.empty()) {
      throw CLI::ValidationError("--port=0", "without --listen-unix there is nothing to listen on");
    }
  } catch (const CLI::ParseError& error) {
    *exit_code = app.exit(error) == 0 ? 0 : 2;
    return std::nullopt;
  }
  return options;
}

}  // namespace gcs
