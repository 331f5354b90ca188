// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gcs::init {

enum class EndAction { kPowerOff, kReboot };

// What the kernel's command line asks of the guest.
struct BootConfig {
  // init's own words.
  std::string hostname = "lcow";  // gcs.hostname=NAME
  EndAction power_off =
      EndAction::kPowerOff;   // gcs.poweroff=reboot: a machine (QEMU's microvm) that cannot be switched
                              // off by its guest ends by a reset instead; gcs.poweroff=off is the default
  std::string console;        // gcs.console=PROGRAM or -d PROGRAM: an interactive session on /dev/console
  uint32_t entropy_port = 0;  // -e PORT: vsock port of the host that gives random bytes; 0: none

  // The agent's command line: --NAME=VALUE and --NAME for all other gcs.* words, behind the default program;
  // or the command in init's own arguments, as it stands.
  std::vector<std::string> agent;

  // Words that were not understood, for the log.
  std::vector<std::string> ignored;
};

// `cmdline` is /proc/cmdline. `args` is init's argv without the name: what follows `--`, after any words that
// the kernel did not know (Documentation/admin-guide/kernel-parameters). The Windows shim starts an agent
// with
// `-e 1 /bin/vsockexec ... /bin/gcs ...`; a first word without a slash (`sh -c ...`, its debug form) is left
// to the search path.
BootConfig ParseBootConfig(std::string_view cmdline, const std::vector<std::string>& args,
                           std::string_view default_agent);

// The words of a command line up to the word `--`. As in the kernel's next_arg(), double quotes keep spaces
// together and are dropped.
std::vector<std::string> SplitCommandLine(std::string_view cmdline);

}  // namespace gcs::init
