// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/sched.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <set>
#include <sstream>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

const std::set<std::string> kV1Controllers = {"cpuset",     "cpu",      "cpuacct", "blkio",
                                              "memory",     "devices",  "freezer", "net_cls",
                                              "perf_event", "net_prio", "hugetlb", "pids"};
const std::set<std::string> kV2Controllers = {"cpuset", "cpu", "io", "memory", "hugetlb", "pids"};

std::string Join(const std::set<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

Result<> SameSet(const std::set<std::string>& actual, const std::set<std::string>& expected,
                 const char* object) {
  if (actual == expected) return {};
  return MakeError(ENOENT, "compare controllers", object, "the kernel has: " + Join(actual));
}

Result<> AllControllersListed() {
  GCS_ASSIGN(const std::string text, ReadFile("/proc/cgroups"));
  std::set<std::string> names;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with('#')) names.insert(line.substr(0, line.find('\t')));
  }
  return SameSet(names, kV1Controllers, "/proc/cgroups");
}

// Each controller as a hierarchy of its own. They go back to v2 when it is unmounted, a little later.
Result<> V1HierarchiesMount() {
  GCS_TRY(FreshTmp());
  for (const std::string& name : kV1Controllers) {
    const std::string dir = "/tmp/" + name;
    if (mkdir(dir.c_str(), 0755) != 0) return ErrnoError("mkdir", dir);
    if (mount("cgroup", dir.c_str(), "cgroup", 0, name.c_str()) != 0)
      return ErrnoError("mount cgroup v1", name);
    GCS_TRY(ReadFile(dir + "/cgroup.procs"));
    if (umount(dir.c_str()) != 0) return ErrnoError("umount", dir);
  }
  return {};
}

constexpr char kRoot[] = "/tmp";

Result<std::set<std::string>> Controllers(const std::string& file) {
  GCS_ASSIGN(const std::string text, ReadFile(file));
  std::istringstream in(text);
  std::set<std::string> names;
  for (std::string name; in >> name;) names.insert(name);
  return names;
}

// Mounts cgroup v2 on /tmp with all controllers passed down.
Result<> MountV2() {
  if (mount("cgroup2", kRoot, "cgroup2", 0, nullptr) != 0) return ErrnoError("mount", "cgroup2");
  GCS_TRY(Eventually([]() -> Result<> {
    GCS_ASSIGN(const std::set<std::string> names, Controllers("/tmp/cgroup.controllers"));
    return SameSet(names, kV2Controllers, "cgroup.controllers");
  }));
  for (const std::string& name : kV2Controllers) {
    GCS_TRY(WriteFile("/tmp/cgroup.subtree_control", "+" + name));
  }
  return {};
}

// A cgroup below the root that goes with the object.
class Cgroup {
 public:
  static Result<Cgroup> Make(const std::string& name) {
    GCS_TRY(MountV2());
    std::string path = std::string(kRoot) + "/" + name;
    if (mkdir(path.c_str(), 0755) != 0) return ErrnoError("mkdir", path);
    return Cgroup(std::move(path));
  }
  Cgroup(Cgroup&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  Cgroup& operator=(Cgroup&&) = delete;
  ~Cgroup() {
    if (path_.empty()) return;
    const Result<> killed = WriteFile(path_ + "/cgroup.kill", "1");
    const Result<> removed = Eventually([this]() -> Result<> {
      if (rmdir(path_.c_str()) != 0) return ErrnoError("rmdir", path_);
      return {};
    });
    // Later items would meet it; the console tells why they fail then.
    for (const Result<>& result : {killed, removed}) {
      if (!result) std::fprintf(stderr, "clean up: %s\n", result.error().ToString().c_str());
    }
  }

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  explicit Cgroup(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// Writes value to a limit file and expects to read it back.
Result<> Keeps(const Cgroup& group, const std::string& file, const std::string& value) {
  GCS_TRY(WriteFile(group.File(file), value));
  GCS_ASSIGN(const std::string back, ReadFile(group.File(file)));
  if (back != value + "\n") return MakeError(EINVAL, "read back", file, "wrote " + value + ", read " + back);
  return {};
}

Result<> LimitsAreKept() {
  GCS_ASSIGN(const Cgroup group, Cgroup::Make("limits"));
  GCS_TRY(Keeps(group, "memory.max", "104857600"));
  GCS_TRY(Keeps(group, "memory.swap.max", "0"));
  GCS_TRY(Keeps(group, "cpu.max", "50000 100000"));
  GCS_TRY(Keeps(group, "cpu.weight", "500"));
  GCS_TRY(Keeps(group, "cpuset.cpus", "0"));
  GCS_TRY(Keeps(group, "cpuset.mems", "0"));
  GCS_TRY(Keeps(group, "pids.max", "100"));
  GCS_TRY(Keeps(group, "hugetlb.2MB.max", "2097152"));
  GCS_TRY(ReadFile(group.File("io.max")));
  GCS_TRY(ReadFile(group.File("io.stat")));
  return {};
}

Result<> PidsLimitRefusesFork() {
  GCS_ASSIGN(const Cgroup group, Cgroup::Make("pids"));
  return InChild([&group]() -> Result<> {
    GCS_TRY(WriteFile(group.File("cgroup.procs"), "0"));
    GCS_TRY(WriteFile(group.File("pids.max"), "1"));
    const pid_t pid = fork();
    if (pid == 0) _exit(0);
    return MustFail(pid, EAGAIN, "fork", "in a cgroup with pids.max 1");
  });
}

Result<> MemoryLimitKills() {
  GCS_ASSIGN(const Cgroup group, Cgroup::Make("memory"));
  GCS_TRY(WriteFile(group.File("memory.max"), "8388608"));
  const Result<> result = InChild([&group]() -> Result<> {
    GCS_TRY(WriteFile(group.File("cgroup.procs"), "0"));
    std::string block(size_t{64} << 20, 'x');
    return MakeError(ENOTSUP, "touch 64 MiB", group.path(),
                     "memory.max 8 MiB did not stop it " + block.substr(0, 1));
  });
  GCS_ASSIGN(const std::string events, ReadFile(group.File("memory.events")));
  if (events.find("oom_kill 1") == std::string::npos) {
    return MakeError(ENOENT, "read", "memory.events",
                     "no oom_kill: " + (result ? events : result.error().ToString()));
  }
  return {};
}

// clone3 straight into a cgroup, freeze, kill: what the engine does to every container.
Result<> CloneFreezeKill() {
  GCS_ASSIGN(const Cgroup group, Cgroup::Make("clone"));
  const Fd dir(open(group.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir) return ErrnoError("open", group.path());
  int pidfd = -1;
  clone_args args = {};
  args.flags = CLONE_PIDFD | CLONE_INTO_CGROUP;
  args.pidfd = reinterpret_cast<uintptr_t>(&pidfd);
  args.exit_signal = SIGCHLD;
  args.cgroup = static_cast<uint64_t>(dir.get());
  const long pid = syscall(SYS_clone3, &args, sizeof args);
  if (pid < 0) return ErrnoError("clone3", "CLONE_INTO_CGROUP");
  if (pid == 0) {
    for (;;) pause();
  }
  const Fd process(pidfd);
  GCS_ASSIGN(const std::string members, ReadFile(group.File("cgroup.procs")));
  if (!HasWord(members, std::to_string(pid)))
    return MakeError(ESRCH, "read", "cgroup.procs", "child is not in it");
  GCS_TRY(WriteFile(group.File("cgroup.freeze"), "1"));
  GCS_TRY(Eventually([&group]() -> Result<> {
    GCS_ASSIGN(const std::string events, ReadFile(group.File("cgroup.events")));
    if (events.find("frozen 1") == std::string::npos)
      return MakeError(EAGAIN, "freeze", "cgroup.events", events);
    return {};
  }));
  GCS_TRY(WriteFile(group.File("cgroup.kill"), "1"));
  pollfd waiter{.fd = process.get(), .events = POLLIN, .revents = 0};
  if (poll(&waiter, 1, 5000) != 1) return MakeError(ETIMEDOUT, "cgroup.kill", group.path());
  if (waitpid(static_cast<pid_t>(pid), nullptr, 0) < 0) return ErrnoError("waitpid");
  return {};
}

// A device program that refuses everything: /dev/null must not open in its cgroup, and must outside.
Result<> DeviceProgramRefuses() {
  GCS_ASSIGN(const Cgroup group, Cgroup::Make("devices"));
  const bpf_insn program[] = {
      {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .src_reg = 0, .off = 0, .imm = 0},
      {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
  };
  bpf_attr load = {};
  load.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
  load.insns = reinterpret_cast<uintptr_t>(program);
  load.insn_cnt = 2;
  load.license = reinterpret_cast<uintptr_t>("Apache-2.0");
  const Fd loaded(static_cast<int>(syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load)));
  if (!loaded) return ErrnoError("bpf", "BPF_PROG_LOAD");
  const Fd dir(open(group.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir) return ErrnoError("open", group.path());
  bpf_attr attach = {};
  attach.target_fd = static_cast<uint32_t>(dir.get());
  attach.attach_bpf_fd = static_cast<uint32_t>(loaded.get());
  attach.attach_type = BPF_CGROUP_DEVICE;
  if (syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach) != 0)
    return ErrnoError("bpf", "BPF_PROG_ATTACH");
  const Fd allowed(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!allowed) return ErrnoError("open outside the cgroup", "/dev/null");
  return InChild([&group]() -> Result<> {
    GCS_TRY(WriteFile(group.File("cgroup.procs"), "0"));
    return MustFail(open("/dev/null", O_RDWR | O_CLOEXEC), EPERM, "open in the cgroup", "/dev/null");
  });
}

Result<> PressureIsReported() {
  GCS_ASSIGN(const std::string text, ReadFile("/proc/pressure/memory"));
  if (!text.starts_with("some avg10=")) return MakeError(EPROTO, "read", "/proc/pressure/memory", text);
  GCS_ASSIGN(const Cgroup group, Cgroup::Make("pressure"));
  GCS_TRY(ReadFile(group.File("cpu.pressure")));
  return {};
}

// The hierarchies of v1 come first: a controller with cgroups in v2 cannot be mounted elsewhere.
const Item kItems[] = {
    {"cgroup-controllers", AllControllersListed},
    {"cgroup-v1-hierarchies", V1HierarchiesMount},
    {"cgroup-v2-limits", LimitsAreKept},
    {"cgroup-v2-pids-max", PidsLimitRefusesFork},
    {"cgroup-v2-memory-max", MemoryLimitKills},
    {"cgroup-v2-clone-freeze-kill", CloneFreezeKill},
    {"cgroup-v2-device-program", DeviceProgramRefuses},
    {"pressure-stall", PressureIsReported},
};

}  // namespace

std::span<const Item> CgroupItems() { return kItems; }

}  // namespace gcs::selfcheck
