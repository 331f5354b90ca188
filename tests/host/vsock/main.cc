// SPDX-License-Identifier: Apache-2.0
// vsock-device: the device as a program, for a VMM that somebody else starts.
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>

#include "base/log.h"
#include "host/vsock/device.h"

int main(int argc, char** argv) {
  using namespace gcs;
  host::vsock::DeviceOptions options;
  bool verbose = false;
  CLI::App app("vhost-user vsock device with unix sockets for host programs");
  app.add_option("--socket", options.vhost_socket, "vhost-user socket that the VMM connects to")->required();
  app.add_option("--uds", options.uds_path, "host programs connect here; the guest dials PATH_<port>")
      ->required();
  app.add_option("--cid", options.guest_cid, "the guest's CID")
      ->check(CLI::Range(uint32_t{3}, uint32_t{0xFFFFFFFE}));
  app.add_flag("--verbose", verbose, "log connections of the VMM, too");
  CLI11_PARSE(app, argc, argv);
  base::SetLogOutput(2, base::LogFormat::kText, verbose ? base::Level::kDebug : base::Level::kInfo);

  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  const base::Fd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));

  auto loop = base::Loop::Create();
  if (!loop) {
    base::LogError("cannot start", loop.error());
    return 1;
  }
  const auto added = (*loop)->Add(signal_fd.get(), EPOLLIN, [&](uint32_t) { (*loop)->Stop(); });
  if (!added) {
    base::LogError("cannot start", added.error());
    return 1;
  }
  const auto device = host::vsock::Device::Create(loop->get(), options);
  if (!device) {
    base::LogError("cannot start", device.error());
    return 1;
  }
  (*loop)->Run();
  return 0;
}
