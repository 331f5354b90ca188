// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/paths.h"
#include "bench/machine.h"
#include "bench/report.h"
#include "engine/engine.h"

namespace gcs::bench {

// What the sections of bench_engine are made of.

using base::ErrnoError;
using base::MakeError;
using base::MonotonicNs;
using base::Result;

struct Options {
  int rounds = 15;
  int block = 20;      // containers of the engine and of the floor in a round
  int peer_block = 3;  // containers of crun and runc in a round
  std::string cgroups = "v2";
  std::string only;  // run this alone, for strace: engine, exec, floor
  int count = 0;
};

inline constexpr size_t kSpareNetworks = 4;  // as the agent has it

inline int64_t Deadline() { return MonotonicNs() + 30 * base::kNsPerSec; }

inline double Ms(int64_t ns) { return static_cast<double>(ns) / 1e6; }

inline Result<> Reap(int pidfd) {
  siginfo_t info{};
  while (waitid(static_cast<idtype_t>(P_PIDFD), pidfd, &info, WEXITED) != 0) {
    if (errno != EINTR) return ErrnoError("waitid", "container");
  }
  if (info.si_code != CLD_EXITED || info.si_status != 0) {
    return MakeError(ECHILD, "run container", std::to_string(info.si_pid),
                     "it ended with code " + std::to_string(info.si_status));
  }
  return {};
}

// Configuration, root file system and cgroup that all candidates use. `mounts`: where the hierarchies of
// cgroups are.
class Bundle {
 public:
  static Result<std::unique_ptr<Bundle>> Make(std::vector<std::string> mounts) {
    std::unique_ptr<Bundle> bundle(new Bundle);
    bundle->mounts_ = std::move(mounts);
    GCS_ASSIGN(bundle->dir_, TempDir::Make());
    namespace fs = std::filesystem;
    for (const char* dir : {"root", "root/proc", "root/sys", "root/dev", "pause", "state"})
      fs::create_directory(bundle->dir_ / dir);
    // As /run is: on ext4 the search for an inode that was not deleted just now takes longer than a
    // container.
    const std::string state = bundle->dir_ / "state";
    if (mount("tmpfs", state.c_str(), "tmpfs", 0, "mode=700") != 0) return ErrnoError("mount tmpfs", state);
    for (const char* name : {"crun", "runc", "gcs-oci"}) fs::create_directory(state + "/" + name);
    fs::copy_file(BENCH_EXIT0, bundle->dir_ / "root/exit0");
    fs::copy_file(BENCH_PAUSE, bundle->dir_ / "root/pause");
    // Debian's runc writes the configuration, as it would for a user.
    GCS_ASSIGN(const int code, RunProgram({"runc", "spec", "--bundle", bundle->dir_.path()}));
    if (code != 0) return MakeError(EIO, "run", "runc spec", "exit code " + std::to_string(code));
    GCS_ASSIGN(const std::string text, base::ReadFile(bundle->dir_ / "config.json"));
    base::Json config = base::Json::parse(text);
    bundle->cgroup_ = "/gcs-bench-" + std::to_string(getpid());
    config["process"]["terminal"] = false;
    config["process"]["args"] = {"/exit0"};
    config["root"]["path"] = bundle->dir_ / "root";
    bundle->config_ = config.dump();
    config["linux"]["cgroupsPath"] = bundle->cgroup_ + "/peer";
    GCS_TRY(base::ReplaceFile(bundle->dir_ / "config.json", config.dump(), 0644));
    config["linux"]["cgroupsPath"] = bundle->cgroup_ + "/peer-pause";
    config["process"]["args"] = {"/pause"};
    GCS_TRY(base::ReplaceFile(bundle->dir_ / "pause/config.json", config.dump(), 0644));
    for (const std::string& dir : bundle->CgroupDirs()) {
      if (mkdir(dir.c_str(), 0755) != 0) return ErrnoError("make cgroup", dir);
      for (const char* file : {"/cpuset.cpus", "/cpuset.mems"}) {
        // A new cpuset of v1 has none, and lets nobody in.
        if (bundle->mounts_.size() == 1 || !fs::exists(dir + file)) continue;
        GCS_ASSIGN(const std::string all, base::ReadFile("/sys/fs/cgroup/cpuset" + std::string(file)));
        GCS_TRY(base::WriteFile(dir + file, all));
        // As the engine has it with parents that it makes itself.
        GCS_TRY(base::WriteFile(dir + "/cgroup.clone_children", "1"));
      }
    }
    return bundle;
  }
  ~Bundle() {
    for (const std::string& dir : CgroupDirs()) rmdir(dir.c_str());
    umount2((dir_ / "state").c_str(), MNT_DETACH);
  }

  [[nodiscard]] const std::string& config() const { return config_; }
  [[nodiscard]] const std::string& cgroup() const { return cgroup_; }
  [[nodiscard]] std::vector<std::string> CgroupDirs() const {
    std::vector<std::string> dirs;
    for (const std::string& mount : mounts_) dirs.push_back(mount + cgroup_);
    return dirs;
  }
  [[nodiscard]] std::string root() const { return dir_ / "root"; }
  [[nodiscard]] std::string dir() const { return dir_.path(); }
  // Command of a peer, up to its verb.
  [[nodiscard]] std::vector<std::string> Peer(const std::string& name, std::vector<std::string> args) const {
    std::vector<std::string> all{name == "gcs-oci" ? GCS_OCI : name, "--root", (dir_ / "state/") + name};
    if (name == "crun") all.push_back("--cgroup-manager=cgroupfs");
    all.insert(all.end(), args.begin(), args.end());
    return all;
  }

 private:
  Bundle() = default;
  TempDir dir_;
  std::string config_;
  std::string cgroup_;
  std::vector<std::string> mounts_;
};

// The engine in this process, as the agent has it.
class Candidate {
 public:
  static Result<Candidate> Make(const Bundle& bundle, size_t spare_networks) {
    GCS_ASSIGN(auto zygote, engine::Zygote::Start());
    Candidate made;
    made.zygote_pid_ = zygote->pid();
    made.spare_networks_ = spare_networks;
    engine::Engine::Options options;
    options.cgroup_parent = bundle.cgroup();
    options.spare_networks = spare_networks;
    GCS_ASSIGN(made.engine_, engine::Engine::Create(options, std::move(zygote)));
    GCS_ASSIGN(made.null_, base::OpenFile("/dev/null", O_RDWR));
    return made;
  }

  // From the text of config.json to the last trace but namespaces.
  Result<> RunContainer(const std::string& config) {
    const int64_t begin = MonotonicNs();
    GCS_ASSIGN(engine::EngineContainer container, Create(config));
    const int64_t created = MonotonicNs();
    GCS_TRY(container.init.Start(Deadline()));
    const int64_t started = MonotonicNs();
    GCS_TRY(Reap(container.init.pidfd()));
    const int64_t ended = MonotonicNs();
    GCS_TRY(engine_->Destroy(container, Deadline()));
    int64_t parsed = created - begin;
    for (const engine::Timing& timing : container.timings) {
      steps_[timing.step].push_back(Ms(timing.duration_ns));
      parsed -= timing.duration_ns;
    }
    steps_["parse"].push_back(Ms(parsed));
    steps_["start"].push_back(Ms(started - created));
    steps_["exit"].push_back(Ms(ended - started));
    steps_["delete"].push_back(Ms(MonotonicNs() - ended));
    return {};
  }
  // Until the pool is filled again, up to where it is content: what was taken must be paid for.
  [[nodiscard]] Result<> AwaitSpares() const {
    const auto spares = [] {
      size_t count = 0;
      std::error_code ignored;
      for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
        if (std::filesystem::read_symlink(fd.path(), ignored).native().starts_with("net:")) ++count;
      }
      return count;
    };
    // One more is the filler's way back.
    const int64_t deadline = Deadline();
    while (spare_networks_ != 0 && spares() <= spare_networks_ / 4 + 1) {
      if (MonotonicNs() > deadline) return MakeError(ETIMEDOUT, "wait for", "spare network namespaces");
    }
    return {};
  }
  // Median ms of each step of the containers so far.
  [[nodiscard]] std::string Steps() const {
    std::string text;
    for (const char* step : {"parse", "plan", "cgroup", "sources", "launch", "start", "exit", "delete"}) {
      const auto found = steps_.find(step);
      if (found != steps_.end())
        text += (text.empty() ? "" : ", ") + std::string(step) + " " + Number(Median(found->second), "", 3);
    }
    return text;
  }
  // From any thread.
  Result<engine::EngineContainer> Create(const std::string& config) {
    GCS_ASSIGN(engine::Spec spec, engine::ParseSpec(config));
    return engine_->CreateContainer("c" + std::to_string(++*number_), std::move(spec),
                                    {.stdio = Stdio(), .deadline_ns = Deadline()});
  }
  Result<> RunExec(const engine::EngineContainer& container, const engine::Process& process) {
    GCS_ASSIGN(engine::ChildProcess child,
               engine_->Exec(container, process, {.stdio = Stdio(), .deadline_ns = Deadline()}));
    GCS_TRY(child.Start(Deadline()));
    return Reap(child.pidfd());
  }
  [[nodiscard]] pid_t zygote_pid() const { return zygote_pid_; }
  Result<> Stop(engine::EngineContainer& container) {
    GCS_TRY(container.init.Signal(SIGKILL));
    siginfo_t info{};
    while (waitid(static_cast<idtype_t>(P_PIDFD), container.init.pidfd(), &info, WEXITED) != 0 &&
           errno == EINTR) {
    }
    return engine_->Destroy(container, Deadline());
  }
  // CPU time of this process, of containers that it has reaped and of the zygote.
  [[nodiscard]] Result<int64_t> CpuNs() const {
    int64_t total = 0;
    for (const int who : {RUSAGE_SELF, RUSAGE_CHILDREN}) {
      rusage usage{};
      if (getrusage(static_cast<__rusage_who>(who), &usage) != 0) return ErrnoError("getrusage", "self");
      for (const timeval& time : {usage.ru_utime, usage.ru_stime})
        total += time.tv_sec * base::kNsPerSec + time.tv_usec * 1000;
    }
    GCS_ASSIGN(const std::string text, base::ReadFile("/proc/" + std::to_string(zygote_pid_) + "/schedstat"));
    return total + strtoll(text.c_str(), nullptr, 10);
  }

 private:
  [[nodiscard]] engine::ChildStdio Stdio() const { return {null_.get(), null_.get(), null_.get()}; }
  std::unique_ptr<engine::Engine> engine_;
  base::Fd null_;
  pid_t zygote_pid_ = 0;
  size_t spare_networks_ = 0;
  std::unique_ptr<std::atomic<int>> number_ = std::make_unique<std::atomic<int>>(0);
  std::map<std::string, std::vector<double>> steps_;
};

class Floor {
 public:
  static Result<std::unique_ptr<Floor>> Start(const Bundle& bundle) {
    std::unique_ptr<Floor> floor(new Floor);
    int to[2];
    int from[2];
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) return ErrnoError("pipe", "floor");
    floor->in_ = base::Fd(to[1]);
    floor->out_ = base::Fd(from[0]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], 0);
    posix_spawn_file_actions_adddup2(&actions, from[1], 1);
    std::vector<std::string> args{BENCH_FLOOR, bundle.root(), "/exit0"};
    for (std::string& dir : bundle.CgroupDirs()) args.push_back(std::move(dir));
    std::vector<char*> pointers;
    for (std::string& arg : args) pointers.push_back(arg.data());
    pointers.push_back(nullptr);
    const int err = posix_spawn(&floor->pid_, BENCH_FLOOR, &actions, nullptr, pointers.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(to[0]);
    close(from[1]);
    if (err != 0) return MakeError(err, "run", BENCH_FLOOR);
    GCS_TRY(floor->Run(3, false, nullptr));
    return floor;
  }
  ~Floor() {
    in_.Reset();
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
  }

  // Returns when the last cgroup is gone. Milliseconds of each container are appended to `each`.
  Result<> Run(int count, bool filter, std::vector<double>* each) {
    const std::string request = std::to_string(count) + (filter ? " filter\n" : "\n");
    if (write(in_.get(), request.data(), request.size()) < 0) return ErrnoError("write", "floor");
    std::vector<uint64_t> times(count);
    auto* at = reinterpret_cast<char*>(times.data());
    for (size_t left = times.size() * sizeof(uint64_t); left > 0;) {
      const ssize_t n = read(out_.get(), at, left);
      if (n <= 0) return MakeError(n == 0 ? ECHILD : errno, "read", "floor", "see its message above");
      at += n;
      left -= n;
    }
    if (each != nullptr) {
      for (const uint64_t time : times) each->push_back(Ms(static_cast<int64_t>(time)));
    }
    return {};
  }

 private:
  Floor() = default;
  pid_t pid_ = -1;
  base::Fd in_, out_;
};

// Of one candidate: ms of each container, and per round ms per container until the cgroups are gone and until
// the namespaces are, too.
struct Series {
  std::vector<double> each;
  std::vector<double> rounds;
  std::vector<double> rounds_all_gone;
};

template <typename F>
Result<> Block(NamespaceBarrier& barrier, int count, Series& series, F run) {
  GCS_TRY(barrier.Wait());  // nobody pays for what ran before
  const int64_t begin = MonotonicNs();
  GCS_TRY(run());
  const int64_t cgroups_gone = MonotonicNs();
  GCS_TRY(barrier.Wait());
  series.rounds.push_back(Ms(cgroups_gone - begin) / count);
  series.rounds_all_gone.push_back(Ms(MonotonicNs() - begin) / count);
  return {};
}

template <typename F>
Result<> Times(int count, std::vector<double>& each, F run) {
  for (int i = 0; i < count; ++i) {
    const int64_t begin = MonotonicNs();
    GCS_TRY(run());
    each.push_back(Ms(MonotonicNs() - begin));
  }
  return {};
}

inline Result<> Expect0(const std::vector<std::string>& args) {
  GCS_ASSIGN(const int code, RunProgram(args));
  if (code != 0)
    return MakeError(EIO, "run", args[0] + " " + args[args.size() - 2], "exit code " + std::to_string(code));
  return {};
}

}  // namespace gcs::bench
