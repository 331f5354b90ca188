// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/paths.h"
#include "engine/engine.h"
#include "support/temp.h"

namespace gcs::test {

// Which cgroups a program's engine sees; each program that is made of these tests has one of its own.
enum class CgroupView { kV2, kV1, kHybrid };
extern const CgroupView kCgroupView;

inline int64_t In(int64_t seconds) { return base::MonotonicNs() + seconds * base::kNsPerSec; }

// The engine on this machine: a private mount namespace in which /sys/fs/cgroup is what kCgroupView says, a
// cgroup of the test's own as parent, and a root file system with busybox. One for all cases, since the
// zygote wants a process with one thread.
class EngineMachine {
 public:
  static constexpr size_t kSpareNetworks = 2;
  // Before the first Get: no thread beside the caller's.
  static inline bool single_threaded = false;
  static EngineMachine& Get() {
    static EngineMachine machine;
    return machine;
  }

  engine::Engine& engine() { return *engine_; }
  [[nodiscard]] std::string root() const { return dir_ / "root"; }
  [[nodiscard]] std::string dir() const { return dir_.path(); }
  [[nodiscard]] const std::string& cgroup_parent() const { return parent_; }

  // A new root file system with busybox and its links.
  [[nodiscard]] std::string MakeRoot(const std::string& name) const {
    const std::string path = dir_ / name;
    namespace fs = std::filesystem;
    for (const char* sub : {"bin", "etc", "proc", "sys", "dev", "tmp"})
      fs::create_directories(path + "/" + sub);
    fs::copy_file("/bin/busybox", path + "/bin/busybox");
    for (const char* applet : {"sh",       "cat",  "echo", "true",  "false",    "ls",   "sleep", "id",
                               "hostname", "stat", "grep", "mount", "mknod",    "head", "dd",    "touch",
                               "tty",      "stty", "kill", "wc",    "readlink", "env",  "pwd",   "dmesg"}) {
      fs::create_symlink("busybox", path + "/bin/" + applet);
    }
    REQUIRE(base::ReplaceFile(path + "/etc/passwd",
                              "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", 0644));
    return path;
  }

 private:
  EngineMachine() {
    REQUIRE(unshare(CLONE_NEWNS) == 0);
    REQUIRE(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
    MountCgroups();
    parent_ = "/gcs-test-" + std::to_string(getpid());
    auto zygote = engine::Zygote::Start();
    REQUIRE_MESSAGE(zygote, zygote.error().ToString());
    engine::Engine::Options options;
    options.cgroup_parent = parent_;
    options.spare_networks = single_threaded ? 0 : kSpareNetworks;
    options.resctrl = dir_ / "resctrl";  // made by the tests that are about it
    auto engine = engine::Engine::Create(options, std::move(*zygote));
    REQUIRE_MESSAGE(engine, engine.error().ToString());
    engine_ = std::move(*engine);
    CHECK(MakeRoot("root") == root());
  }

  static void MountCgroups() {
    while (umount2("/sys/fs/cgroup", MNT_DETACH) == 0) {
    }
    if (kCgroupView == CgroupView::kV2) {
      REQUIRE(mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, nullptr) == 0);
      return;
    }
    REQUIRE(mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, nullptr) == 0);
    const auto attach = [](const std::string& name, const char* type, const char* options) {
      const std::string path = "/sys/fs/cgroup/" + name;
      REQUIRE(mkdir(path.c_str(), 0755) == 0);
      return mount(type, path.c_str(), type, 0, options) == 0;
    };
    // As this machine has them mounted elsewhere, or together with another one.
    for (const char* name : {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"}) {
      if (attach(name, "cgroup", name)) continue;
      REQUIRE(rmdir(("/sys/fs/cgroup/" + std::string(name)).c_str()) == 0);
    }
    if (kCgroupView == CgroupView::kHybrid) REQUIRE(attach("unified", "cgroup2", nullptr));
  }

  TempDir dir_;
  std::string parent_;
  std::unique_ptr<engine::Engine> engine_;
};

// What `runc spec` writes, with terminal off and the given program; tests change what they are about.
inline base::Json DefaultConfig(const std::string& root, const std::vector<std::string>& args) {
  base::Json config = base::Json::parse(R"({
    "ociVersion": "1.0.2",
    "process": {
      "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
      "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
      "capabilities": {
        "bounding": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]},
      "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
      "noNewPrivileges": true},
    "root": {"readonly": true},
    "hostname": "test",
    "mounts": [
      {"destination": "/proc", "type": "proc", "source": "proc"},
      {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
      {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
       "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
      {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
      {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
      {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
      {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}],
    "linux": {
      "resources": {"devices": [{"allow": false, "access": "rwm"}]},
      "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
      "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                      "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
      "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]}})");
  config["root"]["path"] = root;
  config["process"]["args"] = args;
  return config;
}

// How a process ended, and what it wrote.
struct Outcome {
  int status = -1;  // exit code, or 128 + signal
  std::string out;
  std::string err;
};

struct Pipe {
  base::Fd read_end, write_end;
  Pipe() {
    int fds[2];
    REQUIRE(pipe2(fds, O_CLOEXEC) == 0);
    read_end.Reset(fds[0]);
    write_end.Reset(fds[1]);
  }
};

inline int Reap(int pidfd) {
  siginfo_t info{};
  while (waitid(static_cast<idtype_t>(P_PIDFD), pidfd, &info, WEXITED) != 0) REQUIRE(errno == EINTR);
  return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

inline std::string ReadAll(base::Fd& fd) {
  auto text = base::ReadFd(fd.get(), "pipe", 16 << 20);
  REQUIRE(text);
  return *text;
}

// Creates a container; stdio are pipes of the fixture.
struct RunningContainer {
  Pipe out, err;
  base::Fd null{open("/dev/null", O_RDWR | O_CLOEXEC)};
  std::optional<engine::EngineContainer> container;

  base::Result<> Create(const base::Json& config, const std::string& id, bool allow_vsock = false) {
    GCS_ASSIGN(engine::Spec spec, engine::ParseSpec(config.dump()));
    auto made = EngineMachine::Get().engine().CreateContainer(
        id, std::move(spec),
        {.stdio = {null.get(), out.write_end.get(), err.write_end.get()},
         .allow_vsock = allow_vsock,
         .bundle = EngineMachine::Get().dir(),
         .deadline_ns = In(20)});
    out.write_end.Reset();
    err.write_end.Reset();
    if (!made) return std::unexpected(made.error());
    container.emplace(std::move(*made));
    return {};
  }
  base::Result<> Start() { return EngineMachine::Get().engine().Start(*container, container->init, In(10)); }
  // Reads everything, waits for the end, removes the container.
  Outcome Finish() {
    Outcome outcome;
    outcome.out = ReadAll(out.read_end);
    outcome.err = ReadAll(err.read_end);
    outcome.status = Reap(container->init.pidfd());
    const auto gone = EngineMachine::Get().engine().Destroy(*container, In(10));
    CHECK_MESSAGE(gone, gone.error().ToString());
    container.reset();
    return outcome;
  }
  ~RunningContainer() {
    if (!container) return;
    [[maybe_unused]] const auto killed = container->init.Signal(SIGKILL);
    Reap(container->init.pidfd());
    [[maybe_unused]] const auto gone = EngineMachine::Get().engine().Destroy(*container, In(10));
  }
};

// Open ones of this process, but for spare network namespaces and what the thread that makes them has open
// for a moment: the least of some looks.
inline size_t Descriptors() {
  size_t least = SIZE_MAX;
  for (int look = 0; look < 10; ++look) {
    if (look > 0) usleep(5000);
    size_t count = 0;
    for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code closed;
      if (!std::filesystem::read_symlink(fd.path(), closed).string().starts_with("net:")) ++count;
    }
    least = std::min(least, count);
  }
  return least;
}

inline std::string NextId() {
  static int number = 0;
  return "c" + std::to_string(++number);
}

inline Outcome Run(const base::Json& config, bool allow_vsock = false) {
  RunningContainer running;
  const auto created = running.Create(config, NextId(), allow_vsock);
  REQUIRE_MESSAGE(created, created.error().ToString());
  const auto started = running.Start();
  REQUIRE_MESSAGE(started, started.error().ToString());
  return running.Finish();
}

inline Outcome RunShell(const std::string& script) {
  return Run(DefaultConfig(EngineMachine::Get().root(), {"/bin/sh", "-c", script}));
}

// The error of a create that must fail.
inline base::Error FailCreate(const base::Json& config) {
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  REQUIRE_FALSE(created);
  return created.error();
}

}  // namespace gcs::test
