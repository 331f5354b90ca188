// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "engine/cli/cli.h"

namespace gcs::oci {

// What a command line asks for. Of the parts below only those of the command are set.
struct CommandLine {
  Global global;
  std::string command;   // its name; empty: `text` is all that is wanted
  std::string text;      // help, version
  CreateCommand create;  // create, run
  ExecCommand exec;
  UpdateCommand update;
  std::string id;  // of the other commands
  std::vector<std::string> ps_options;
  std::string signal = "TERM";
  std::string format = "table";
  std::string bundle = ".";
  double interval_s = 5;
  bool force = false;
  bool all = false;
  bool stats = false;
  bool quiet = false;
};

// Reads a command line (without the program's name) and runs nothing. "--" ends the flags;
// they may stand behind the id, too, but for exec and ps, whose rest belongs to a program. On an error
// `line.global` says as far as possible where to tell it.
base::Result<> ParseCommandLine(std::vector<std::string> words, CommandLine& line);

}  // namespace gcs::oci
