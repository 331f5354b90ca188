// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host/client/oci_config.h"
#include "host/gcsctl/machine.h"

namespace gcs::gcsctl {

inline constexpr int kFailure = 125;  // gcsctl's own, as docker has it
inline constexpr int kNotExecutable = 126;
inline constexpr int kNotFound = 127;

struct RunOptions {
  std::string vm = "default";
  StartOptions start;  // for a VM of its own when `vm` does not run
  std::string image;
  std::string name;
  std::string pod;  // empty: none
  std::vector<std::string> args;
  std::string entrypoint;
  bool has_entrypoint = false;
  std::string user;
  bool has_user = false;
  std::vector<std::string> volumes;  // host:container[:ro]
  bool interactive = false;
  bool detach = false;
  bool remove = false;
  uint64_t scratch_bytes = 0;  // 0: tmpfs
  std::string timings;         // "": none; "-": a table on stderr; else JSON into this file
  host::ContainerSettings settings;
};

int Run(RunOptions options);

struct ExecOptions {
  std::string container_id;
  std::string user;
  bool interactive = false;
  bool detach = false;
  host::ContainerSettings settings;
};
int Exec(const Machine& machine, const ExecOptions& options);
// Shows what a container prints, from the oldest byte kept, until it ends.
int AttachTo(const Machine& machine, const std::string& container_id);

// Prints the error; the exit code for it.
int Report(const base::Error& error);
// The same for the failure of a program's start.
int ReportStart(const base::Error& error);

}  // namespace gcs::gcsctl
