// SPDX-License-Identifier: Apache-2.0
#include "init/shutdown.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/loop.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <functional>
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
constexpr int64_t kStuckNs = 3 * base::kNsPerSec;

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

std::atomic<size_t>* SharedNumber() {
  static std::atomic<size_t> own;  // tells nothing, and so lets a slow unmount look stuck
  void* memory = mmap(nullptr, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? &own : static_cast<std::atomic<size_t>*>(memory);
}

// The teardown's work is done in processes of its own, as sync and umount may wait for a device that never
// answers. One that is stuck is left behind, so that it keeps nobody else's data from its disk.
class Teardown {
 public:
  Teardown(const Table& table, const ShutdownPlan& plan)
      : table_(table),
        plan_(plan),
        deadline_ns_(base::MonotonicNs() + table.teardown_ns),
        at_(SharedNumber()) {}

  void Run() {
    Start([] { sync(); });  // waits for all disks at once, beside the unmounts
    // What a loop device or a mapping holds becomes free between rounds.
    for (int round = 0; round < kUnmountRounds && !Late(); ++round) {
      const bool clean = Unmount(round == kUnmountRounds - 1);
      if (table_.detach_devices) {
        Await(Start([] {
                DetachLoops();
                RemoveMappings();
              }),
              kStuckNs);
      }
      if (clean) break;
    }
    // A root of its own (a disk) may have been made writable by the host's words; the initramfs is read-only
    // by now.
    Start([] {
      mount(nullptr, "/", nullptr, MS_REMOUNT | MS_RDONLY, nullptr);
      sync();
    });
    for (const pid_t pid : children_) {
      if (Await(pid, deadline_ns_ - base::MonotonicNs())) continue;
      Log(Priority::kError, "sync and unmount do not end, going on without");
      return;
    }
  }

 private:
  [[nodiscard]] bool Late() const { return base::MonotonicNs() >= deadline_ns_; }

  // Without another process there is only this one, and no time limit.
  pid_t Start(const std::function<void()>& work) {
    const pid_t pid = fork();
    if (pid == 0) {
      work();
      _exit(0);
    }
    if (pid < 0) {
      LogError("teardown without a time limit", base::ErrnoError("fork").error());
      work();
      return 0;
    }
    children_.push_back(pid);
    return pid;
  }

  // False if it has not ended in time. Whoever reaps it meanwhile.
  bool Await(pid_t pid, int64_t limit_ns) const {
    const int64_t deadline = std::min(deadline_ns_, base::MonotonicNs() + limit_ns);
    while (pid > 0 && waitpid(pid, nullptr, WNOHANG) == 0) {
      if (base::MonotonicNs() >= deadline) return false;
      if (plan_.meanwhile) plan_.meanwhile();
      Sleep(kPollNs / 10);
    }
    return true;
  }

  // True when nothing is left.
  bool Unmount(bool lazily) {
    const auto mountinfo = base::ReadFile("/proc/self/mountinfo", 16 << 20);
    if (!mountinfo) {
      LogError("unmount", mountinfo.error());
      return true;
    }
    const std::vector<std::string> targets = UnmountOrder(base::ParseMountInfo(*mountinfo));
    if (targets.empty()) return true;
    for (size_t begin = 0; begin < targets.size() && !Late();) begin = UnmountFrom(targets, begin, lazily);
    const auto after = base::ReadFile("/proc/self/mountinfo", 16 << 20);
    return after && UnmountOrder(base::ParseMountInfo(*after)).empty();
  }

  // One process for all targets from `begin` on, until one of them holds it up: returns where to go on.
  size_t UnmountFrom(const std::vector<std::string>& targets, size_t begin, bool lazily) {
    *at_ = begin;
    const pid_t pid = Start([&] {
      for (size_t i = begin; i < targets.size(); ++i) {
        *at_ = i;
        if (umount2(targets[i].c_str(), UMOUNT_NOFOLLOW | (lazily ? MNT_DETACH : 0)) == 0 || !lazily)
          continue;
        LogError("unmount", base::ErrnoError("umount", targets[i]).error());
      }
    });
    for (size_t seen = begin; !Await(pid, kStuckNs);) {
      const size_t at = *at_;
      if (at == seen || Late()) {
        Log(Priority::kError, "unmount of " + targets[at] + " does not end, going on with the next");
        return at + 1;
      }
      seen = at;
    }
    return targets.size();
  }

  const Table& table_;
  const ShutdownPlan& plan_;
  const int64_t deadline_ns_;
  std::atomic<size_t>* const at_;  // in memory shared with the children: what is being unmounted
  std::vector<pid_t> children_;
};

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
  if (plan.release) plan.release();
  Teardown(table, plan).Run();
  Log(Priority::kNotice,
      "down after " + std::to_string((base::MonotonicNs() - begin) / base::kNsPerMs) + " ms");
  EndMachine(plan.action);
}

}  // namespace gcs::init
