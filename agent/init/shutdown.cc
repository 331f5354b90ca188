// SPDX-License-Identifier: Apache-2.0
#include "init/shutdown.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/loop.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/paths.h"
#include "init/klog.h"
#include "init/mountinfo.h"

namespace gcs::init {

namespace {

constexpr int64_t kPollNs = 10 * base::kNsPerMs;
constexpr int64_t kAgentNs = 1 * base::kNsPerSec;
constexpr int64_t kKillNs = 3 * base::kNsPerSec;
constexpr int kUnmountRounds = 4;

void Sleep(int64_t ns) {
  const timespec time{.tv_sec = ns / base::kNsPerSec, .tv_nsec = ns % base::kNsPerSec};
  nanosleep(&time, nullptr);
}

bool InAgentCgroup(const std::string& process) {
  const auto cgroup = base::ReadFile(process + "/cgroup");
  if (!cgroup) return false;
  const size_t at = cgroup->find("0::/gcs");
  if (at == std::string::npos || (at > 0 && (*cgroup)[at - 1] != '\n')) return false;
  const size_t end = at + strlen("0::/gcs");
  return end >= cgroup->size() || (*cgroup)[end] == '\n' || (*cgroup)[end] == '/';
}

// All user processes but PID 1 and, if `spare` is not 0, that process and the agent's cgroup. Kernel threads
// and zombies have no executable.
std::vector<pid_t> Processes(pid_t spare) {
  std::vector<pid_t> pids;
  DIR* proc = opendir("/proc");
  if (proc == nullptr) return pids;
  while (const dirent* entry = readdir(proc)) {
    pid_t pid = 0;
    const char* end = entry->d_name + strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, pid).ptr != end || pid <= 1) continue;
    const std::string process = std::string("/proc/") + entry->d_name;
    char link[8];
    if (readlink((process + "/exe").c_str(), link, sizeof link) < 0) continue;
    if (spare != 0 && (pid == spare || InAgentCgroup(process))) continue;
    pids.push_back(pid);
  }
  closedir(proc);
  return pids;
}

// Waits until `over` says so; false at the end of the time.
bool WaitFor(const ShutdownPlan& plan, int64_t limit_ns, const std::function<bool()>& over) {
  const int64_t deadline = base::MonotonicNs() + limit_ns;
  for (;;) {
    if (plan.meanwhile) plan.meanwhile();
    if (over()) return true;
    if (base::MonotonicNs() >= deadline) return false;
    Sleep(kPollNs);
  }
}

void EndProcesses(const Table& table, const ShutdownPlan& plan) {
  if (plan.grace_ns > 0) {
    for (const pid_t pid : Processes(plan.agent)) kill(pid, SIGTERM);
    if (!WaitFor(plan, plan.grace_ns, [&] { return Processes(plan.agent).empty(); })) {
      Log(Priority::kNotice, "processes outlived their grace, killing them");
    }
    // The agent last: it reports the ends of the others, and the reply to who asked for this one.
    if (plan.agent != 0 && kill(plan.agent, SIGTERM) == 0 &&
        !WaitFor(plan, kAgentNs, [&] { return kill(plan.agent, 0) != 0; })) {
      Log(Priority::kWarning, "the agent did not end by itself");
    }
  }
  if (table.cgroup_root != nullptr) {
    const auto result = base::WriteFile(std::string(table.cgroup_root) + "/containers/cgroup.kill", "1");
    if (!result) LogError("kill containers", result.error());
  }
  kill(-1, SIGKILL);
  if (!WaitFor(plan, kKillNs, [] { return Processes(0).empty(); })) {
    Log(Priority::kError, std::to_string(Processes(0).size()) + " processes cannot be killed, going on");
  }
}

// True when nothing is left.
bool UnmountAll(bool lazily) {
  const auto mountinfo = base::ReadFile("/proc/self/mountinfo", 16 << 20);
  if (!mountinfo) {
    LogError("unmount", mountinfo.error());
    return true;
  }
  bool clean = true;
  for (const std::string& target : UnmountOrder(ParseMountInfo(*mountinfo))) {
    if (umount2(target.c_str(), UMOUNT_NOFOLLOW | (lazily ? MNT_DETACH : 0)) == 0) continue;
    clean = false;
    if (lazily) LogError("unmount", base::ErrnoError("umount", target).error());
  }
  return clean;
}

void DetachLoops() {
  DIR* blocks = opendir("/sys/block");
  if (blocks == nullptr) return;
  while (const dirent* entry = readdir(blocks)) {
    const std::string name = entry->d_name;
    if (!name.starts_with("loop") || access(("/sys/block/" + name + "/loop").c_str(), F_OK) != 0) continue;
    const base::Fd loop(open(("/dev/" + name).c_str(), O_RDONLY | O_CLOEXEC));
    if (loop) ioctl(loop.get(), LOOP_CLR_FD, 0);
  }
  closedir(blocks);
}

void RemoveMappings() {
  if (access("/sys/class/block/dm-0", F_OK) != 0) return;
  const base::Fd control(open("/dev/mapper/control", O_RDWR | O_CLOEXEC));
  if (!control) return;
  dm_ioctl request{};
  request.version[0] = DM_VERSION_MAJOR;
  request.data_size = sizeof request;
  if (ioctl(control.get(), DM_REMOVE_ALL, &request) != 0) {
    LogError("detach devices", base::ErrnoError("DM_REMOVE_ALL").error());
  }
}

void Teardown(const Table& table) {
  sync();
  // What a loop device or a mapping holds becomes free between rounds.
  for (int round = 0; round < kUnmountRounds; ++round) {
    const bool clean = UnmountAll(round == kUnmountRounds - 1);
    if (table.detach_devices) {
      DetachLoops();
      RemoveMappings();
    }
    if (clean) break;
  }
  // A root of its own (a disk) may have been made writable by the host's words; the initramfs is read-only by
  // now.
  mount(nullptr, "/", nullptr, MS_REMOUNT | MS_RDONLY, nullptr);
  sync();
}

// Teardown, in a process of its own: sync and umount may wait for a device that never answers.
void TeardownInTime(const Table& table, const ShutdownPlan& plan) {
  const pid_t child = fork();
  if (child < 0) {
    LogError("teardown without a time limit", base::ErrnoError("fork").error());
    Teardown(table);
    return;
  }
  if (child == 0) {
    Teardown(table);
    _exit(0);
  }
  const int64_t deadline = base::MonotonicNs() + table.teardown_ns;
  while (waitpid(child, nullptr, WNOHANG) == 0) {
    if (base::MonotonicNs() >= deadline) {
      Log(Priority::kError, "sync and unmount do not end, going on without");
      return;
    }
    if (plan.meanwhile) plan.meanwhile();
    Sleep(kPollNs / 10);
  }
}

}  // namespace

void EndMachine(EndAction action) {
  const int first = action == EndAction::kPowerOff ? RB_POWER_OFF : RB_AUTOBOOT;
  reboot(first);
  LogError("end of the machine, trying the other way", base::ErrnoError("reboot").error());
  reboot(first == RB_POWER_OFF ? RB_AUTOBOOT : RB_HALT_SYSTEM);
  LogError("end of the machine", base::ErrnoError("reboot").error());
  for (;;) pause();
}

void Shutdown(const Table& table, const ShutdownPlan& plan) {
  const int64_t begin = base::MonotonicNs();
  Log(Priority::kNotice, plan.action == EndAction::kPowerOff ? "powering off" : "restarting");
  EndProcesses(table, plan);
  TeardownInTime(table, plan);
  Log(Priority::kNotice,
      "down after " + std::to_string((base::MonotonicNs() - begin) / base::kNsPerMs) + " ms");
  EndMachine(plan.action);
}

}  // namespace gcs::init
