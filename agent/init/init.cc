// SPDX-License-Identifier: Apache-2.0
#include "init/init.h"

#include <signal.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fcntl.h>

#include <cstring>

#include "base/clock.h"
#include "base/paths.h"
#include "init/cgroups.h"
#include "init/command_line.h"
#include "init/entropy.h"
#include "init/klog.h"
#include "init/modules.h"
#include "init/setup.h"
#include "init/shutdown.h"
#include "init/supervisor.h"

namespace gcs::init {

namespace {

// When each part of the boot was done, for the log and for the agent's Info.
class BootRecord {
 public:
  void Mark(const char* phase) {
    const int64_t now = base::BoottimeNs();
    Log(Priority::kInfo, std::string(phase) + " " + std::to_string(now / base::kNsPerMs));
    lines_ += phase;
    lines_ += ' ';
    lines_ += std::to_string(now);
    lines_ += '\n';
  }

  base::Result<> Save(const char* path) const { return base::ReplaceFile(path, lines_, 0644); }

 private:
  std::string lines_;
};

// How a defect of init itself ends the machine; set once the command line is known.
volatile EndAction defect_action = EndAction::kPowerOff;

// The kernel panics when PID 1 dies; this ends the machine in the ordinary way and says why.
void OnDefect(int sig) {
  if (getpid() != 1) _exit(128 + sig);  // a copy of init that has not executed its program yet
  char text[] = "<3>init: defect, signal 00; ending the machine\n";
  char* digits = strstr(text, "00");
  digits[0] = static_cast<char>('0' + sig / 10);
  digits[1] = static_cast<char>('0' + sig % 10);
  const int log = KernelLogFd();
  [[maybe_unused]] const ssize_t n =
      log >= 0 ? write(log, text, sizeof text - 1) : write(2, text + 3, sizeof text - 4);
  reboot(defect_action == EndAction::kPowerOff ? RB_POWER_OFF : RB_AUTOBOOT);
  reboot(RB_AUTOBOOT);
  _exit(128 + sig);
}

void CatchDefects() {
  static char stack[16 * 1024];
  const stack_t alternate{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
  sigaltstack(&alternate, nullptr);
  struct sigaction action{};
  action.sa_handler = OnDefect;
  action.sa_flags = SA_ONSTACK | SA_RESETHAND;
  for (const int sig : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGTRAP})
    sigaction(sig, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

// Takes the result of a stage without which there is no machine worth running.
template <typename T>
T Need(const char* stage, base::Result<T> result) {
  if (!result) {
    LogError(std::string("set-up failed in stage ") + stage, result.error());
    EndMachine(defect_action);
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

template <typename T>
void Want(const base::Result<T>& result) {
  if (!result) LogError("set-up goes on", result.error());
}

// Descriptors 0 to 2 are open, whatever the kernel could give: nothing opened later may become one of them.
void FillStandardDescriptors() {
  int fd = open("/dev/null", O_RDWR);
  if (fd < 0) fd = open("/", O_PATH);
  while (fd >= 0 && fd <= 2) fd = dup(fd);
  if (fd > 2) close(fd);
}

void Seed(const BootConfig& config) {
  Want(SeedFromHardware());
  if (config.entropy_port == 0) return;
  const auto bytes = SeedFromHost(config.entropy_port);
  Want(bytes);
  if (bytes) Log(Priority::kInfo, std::to_string(*bytes) + " random bytes from the host");
}

}  // namespace

void RunInit(const Table& table, const std::vector<std::string>& args) {
  umask(022);
  FillStandardDescriptors();
  CatchDefects();
  BootRecord record;

  Need("root", LeaveInitramfsRoot());
  Need("proc", ApplyMounts(table.mounts.first(1)));
  const auto cmdline = base::ReadFile("/proc/cmdline");
  const BootConfig config = ParseBootConfig(cmdline ? *cmdline : "", args, table.agent);
  defect_action = config.power_off;
  Need("mounts", ApplyMounts(table.mounts.subspan(1)));
  Want(OpenKernelLog(table.kernel_log));
  Want(cmdline);
  for (const std::string& word : config.ignored)
    Log(Priority::kWarning, "ignoring the word \"" + word + "\"");
  Need("directories", ApplyDirectories(table.directories));
  Need("links", ApplyLinks(table.links));
  record.Mark("mounts");

  ApplyLimits(table.limits);
  ProtectFromOom();
  Need("settings", ApplySettings(table.settings));
  Want(SetHostname(config.hostname));
  Want(BringUpLoopback());
  record.Mark("settings");

  if (table.modules != nullptr) Want(LoadModules(table.modules));
  record.Mark("modules");
  Seed(config);

  Cgroups cgroups;
  if (table.cgroup_root != nullptr)
    cgroups = Need("cgroups", SetUpCgroups(table.cgroup_root, table.agent_memory_min));
  Need("seal root", SealRoot());
  record.Mark("agent");
  Want(record.Save(table.boot_record));

  Supervisor supervisor(table, config, cgroups);
  Need("supervisor", supervisor.Open());
  supervisor.Run();
}

}  // namespace gcs::init
