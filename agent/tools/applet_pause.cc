// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "tools/applets.h"

namespace gcs::tools {

// The first process of a pid namespace that several containers share: does nothing, and reaps whatever they
// leave, until SIGTERM or SIGINT.
int Pause(Arguments arguments) {
  if (!arguments.empty()) {
    Complain("pause", "no arguments");
    return 2;
  }
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT}) sigaddset(&signals, signal);
  if (sigprocmask(SIG_BLOCK, &signals, nullptr) != 0) return 1;
  for (;;) {
    // Those that have ended before the signals were blocked, too.
    while (waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    const int signal = sigwaitinfo(&signals, nullptr);
    if (signal == SIGTERM || signal == SIGINT) return 0;
    if (signal < 0 && errno != EINTR) return 1;
  }
}

}  // namespace gcs::tools
