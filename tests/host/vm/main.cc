// SPDX-License-Identifier: Apache-2.0
// vm-launch: a VM that lives as long as this program. Prints one JSON line when the guest is ready; others
// then reach the VM through the run directory (host/vm/control.h). Exit code: QEMU's; 128 + signal if it was
// killed; 2 if it did not start.
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/log.h"
#include "host/vm/vm.h"
#include "host/vm/wait.h"

namespace {

using namespace gcs;

// PATH[,ro|rw][,lun=N][,target=N][,serial=S]: options at the end, so that a path may hold commas.
host::Disk ParseDisk(std::string text) {
  host::Disk disk;
  disk.readonly = false;
  const auto number = [](const std::string& word, const std::string& value) {
    uint32_t out = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out);
    if (error != std::errc() || end != value.data() + value.size())
      throw CLI::ValidationError("--disk", "bad " + word);
    return out;
  };
  for (;;) {
    const size_t comma = text.rfind(',');
    if (comma == std::string::npos) break;
    const std::string word = text.substr(comma + 1);
    if (word == "ro" || word == "rw") {
      disk.readonly = word == "ro";
    } else if (word.starts_with("lun=")) {
      disk.lun = number(word, word.substr(4));
    } else if (word.starts_with("target=")) {
      disk.target = number(word, word.substr(7));
    } else if (word.starts_with("serial=")) {
      disk.serial = word.substr(7);
    } else {
      break;
    }
    text.resize(comma);
  }
  disk.path = text;
  return disk;
}

int Run(const host::VmOptions& options, int64_t grace_ms) {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  const base::Fd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));

  auto vm = host::Vm::Start(options);
  if (!vm) {
    base::LogError("VM did not start", vm.error());
    return 2;
  }
  const nlohmann::json ready = {
      {"run_dir", (*vm)->run_dir()},
      {"vsock", (*vm)->vsock_path()},
      {"console", (*vm)->console_path()},
      {"qemu_pid", (*vm)->pid()},
      {"accel", (*vm)->kvm() ? "kvm" : "tcg"},
      {"ready_ms", (*vm)->ready_ns() == 0 ? 0 : ((*vm)->ready_ns() - (*vm)->started_ns()) / base::kNsPerMs}};
  printf("%s\n", ready.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  fflush(stdout);

  const base::Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, (*vm)->pid(), 0)));
  std::array<pollfd, 2> fds = {pollfd{.fd = signal_fd.get(), .events = POLLIN, .revents = 0},
                               pollfd{.fd = pidfd.get(), .events = POLLIN, .revents = 0}};
  while (poll(fds.data(), fds.size(), -1) < 0 && errno == EINTR) {
  }
  const auto ended = (*vm)->Stop(fds[1].revents != 0 ? 1000 : grace_ms);
  if (!ended) {
    base::LogError("VM did not end", ended.error());
    return 2;
  }
  const std::string messages = (*vm)->QemuMessages();
  if (!messages.empty()) fprintf(stderr, "%s", messages.c_str());
  return ended->signal != 0 ? 128 + ended->signal : ended->code;
}

}  // namespace

int main(int argc, char** argv) {
  host::VmOptions options;
  std::vector<std::string> disks;
  int64_t grace_ms = 0;
  bool verbose_kernel = false;
  CLI::App app("Boots a virtual machine and keeps it until it ends or a signal comes");
  const std::map<std::string, host::Machine> machines = {{"microvm", host::Machine::kMicrovm},
                                                         {"q35", host::Machine::kQ35}};
  const std::map<std::string, host::Accel> accels = {
      {"tcg", host::Accel::kTcg}, {"kvm", host::Accel::kKvm}, {"auto", host::Accel::kAuto}};
  app.add_option("--kernel", options.kernel, "vmlinux or bzImage")->required();
  app.add_option("--initrd", options.initrd, "initial RAM file system");
  app.add_option("--memory", options.memory_mib, "MiB")->capture_default_str();
  app.add_option("--max-memory", options.max_memory_mib, "MiB that hot-plug may reach (q35)");
  app.add_option("--cpus", options.cpus, "virtual processors")->capture_default_str();
  app.add_option("--machine", options.machine, "microvm or q35")
      ->transform(CLI::CheckedTransformer(machines));
  app.add_option("--accel", options.accel, "tcg, kvm or auto")->transform(CLI::CheckedTransformer(accels));
  app.add_option("--append", options.command_line, "more words for the kernel");
  app.add_flag("--verbose-kernel", verbose_kernel, "kernel messages on the console");
  app.add_option("--disk", disks, "PATH[,ro|rw][,lun=N][,target=N][,serial=S], may be repeated");
  app.add_option("--nvdimm", options.nvdimms, "read-only image file (q35), may be repeated");
  app.add_option("--console", options.console_log, "file for the serial console");
  app.add_option("--run-dir", options.run_dir, "directory for the sockets (default: a new one below /tmp)");
  app.add_option("--cid", options.cid, "vsock CID of the guest")->capture_default_str();
  app.add_option("--ready-port", options.ready_port, "wait until the guest dials this host port");
  app.add_option("--start-timeout-ms", options.start_timeout_ms, "time for that")->capture_default_str();
  app.add_flag("--allow-reset", options.allow_reset, "a reboot of the guest boots again");
  app.add_option("--grace-ms", grace_ms, "time that a signal leaves the guest to end by itself")
      ->capture_default_str();
  app.add_option("--qemu", options.qemu, "QEMU program")->capture_default_str();
  app.add_option("--qemu-arg", options.extra_args, "one more word for QEMU, may be repeated");
  try {
    app.parse(argc, argv);
    for (const std::string& disk : disks) options.disks.push_back(ParseDisk(disk));
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  options.quiet = !verbose_kernel;
  base::SetLogOutput(2, base::LogFormat::kText, base::Level::kInfo);
  return Run(options, grace_ms);
}
