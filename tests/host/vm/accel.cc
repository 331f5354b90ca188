// SPDX-License-Identifier: Apache-2.0
#include "host/vm/accel.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "base/clock.h"
#include "base/log.h"
#include "base/paths.h"
#include "host/cache.h"
#include "host/vm/command.h"
#include "host/vm/process.h"
#include "host/vm/wait.h"

namespace gcs::host {

namespace {

constexpr int64_t kProbeNs = 3 * base::kNsPerSec;

base::Result<std::string> TemporaryDir() {
  std::array<char, 32> path = {"/tmp/gcs-kvm-probe.XXXXXX"};
  if (mkdtemp(path.data()) == nullptr) return base::ErrnoError("mkdtemp", path.data());
  return std::string(path.data());
}

// Why KVM does not do; empty if it does.
base::Result<std::string> Probe(const std::string& qemu, const std::string& kernel) {
  GCS_ASSIGN(const std::string dir, TemporaryDir());
  const std::string console = dir + "/console";
  const std::string log = dir + "/log";
  std::vector<std::string> command = {qemu,       "-nodefaults", "-no-user-config",
                                      "-display", "none",        "-no-reboot"};
  for (std::string& word : MachineArguments(Machine::kMicrovm, Accel::kKvm, ""))
    command.push_back(std::move(word));
  const std::vector<std::string> rest = {"-m",      "256M",           "-kernel",
                                         kernel,    "-append",        "console=ttyS0 reboot=t panic=-1",
                                         "-serial", "file:" + console};
  command.insert(command.end(), rest.begin(), rest.end());
  auto process = Spawn(command, log);
  std::string why;
  if (process) {
    const auto ended = WaitFd(process->pidfd.get(), POLLIN, base::MonotonicNs() + kProbeNs, "kvm probe");
    if (!ended) kill(process->pid, SIGKILL);
    int status = 0;
    waitpid(process->pid, &status, 0);
    const std::string said = base::ReadFile(log).value_or("");
    const std::string shown = base::ReadFile(console).value_or("");
    if (!ended) {
      why = "did not boot within 3 s";
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || !shown.contains("Kernel panic")) {
      why = "QEMU ended early: " + said.substr(0, 400);
    }
  }
  unlink(console.c_str());
  unlink(log.c_str());
  rmdir(dir.c_str());
  if (!process) return std::unexpected(process.error());
  return why;
}

// Answers of earlier boots of the machine are of no use.
void ForgetOtherBoots(const std::string& root, const std::string& file) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(root, error)) {
    if (!entry.path().filename().string().starts_with("kvm-") || entry.path() == file) continue;
    unlink(entry.path().c_str());
  }
}

}  // namespace

base::Result<Accel> ResolveAccel(Accel wanted, const std::string& qemu, const std::string& kernel,
                                 const std::string& device) {
  if (wanted != Accel::kAuto) return wanted;
  if (access(device.c_str(), R_OK | W_OK) != 0) return Accel::kTcg;
  GCS_ASSIGN(std::string boot_id, base::ReadFile("/proc/sys/kernel/random/boot_id"));
  while (boot_id.ends_with('\n')) boot_id.pop_back();
  GCS_ASSIGN(const std::string root, CacheRoot());
  const std::string file = root + "/kvm-" + boot_id;
  if (const auto known = base::ReadFile(file)) return known->starts_with("works") ? Accel::kKvm : Accel::kTcg;

  GCS_ASSIGN(std::string why, Probe(qemu, kernel));
  std::ranges::replace(why, '\n', ' ');
  base::Log(base::Level::kInfo, why.empty() ? "KVM works here" : "KVM does not work here, using TCG",
            {{"why", why}});
  // Only saves time: without the file the next start asks again.
  auto kept = base::MakeDirs(root, 0755);
  if (kept) kept = base::ReplaceFile(file, why.empty() ? "works\n" : "fails: " + why + "\n", 0644);
  if (!kept) base::LogError("cannot keep the result of the KVM probe", kept.error());
  ForgetOtherBoots(root, file);
  return why.empty() ? Accel::kKvm : Accel::kTcg;
}

}  // namespace gcs::host
