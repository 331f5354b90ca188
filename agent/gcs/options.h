// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/log.h"

namespace gcs {

// The agent's command line.
struct Options {
  uint32_t port = 1024;     // vsock port of the API; 0: no vsock
  std::string listen_unix;  // unix socket of the API; empty: none
  std::string dial_unix;    // prefix of the unix sockets that stand for the host's ports; empty: dial vsock
  uint32_t ready_port = 0;  // port on the host that is told when the API is up; 0: none
  std::string state_dir = "/run/gcs";
  bool containers = true;  // false: only the guest's own services, which need neither root nor cgroup2
  base::Level log_level = base::Level::kInfo;
  base::LogFormat log_format = base::LogFormat::kText;
  // Of idle connections, for tests of the keepalive.
  int keepalive_time_ms = 120'000;
  int keepalive_timeout_ms = 20'000;
};

// Nothing: the process is to end with `exit_code`, after --help, --version or a bad command line, which has
// been printed.
std::optional<Options> ParseOptions(int argc, char** argv, int* exit_code);

}  // namespace gcs
