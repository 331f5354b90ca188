// SPDX-License-Identifier: Apache-2.0
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "init/init.h"

// Under the names poweroff and reboot this program asks PID 1; the kernel itself calls /sbin/poweroff when
// Hyper-V's shutdown service tells the guest to stop (orderly_poweroff).
int main(int argc, char** argv) {
  const char* slash = argc > 0 ? strrchr(argv[0], '/') : nullptr;
  const std::string name = argc > 0 ? (slash != nullptr ? slash + 1 : argv[0]) : "init";
  if (getpid() == 1)
    gcs::init::RunInit(gcs::init::kUtilityVm, std::vector<std::string>(argv + (argc > 0), argv + argc));
  if (name == "poweroff" || name == "reboot") {
    if (kill(1, name == "reboot" ? SIGINT : SIGTERM) == 0) return 0;
    perror(name.c_str());
    return 1;
  }
  fprintf(stderr, "init: this is PID 1 of the utility VM; nothing to do as process %d\n", getpid());
  return 1;
}
