// SPDX-License-Identifier: Apache-2.0
// The engine on this machine against the floor program and Debian's crun and runc; see README.md.
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "base/clock.h"
#include "base/json.h"
#include "base/paths.h"
#include "bench/machine.h"
#include "bench/report.h"
#include "engine/engine.h"

namespace gcs::bench {
namespace {

using base::ErrnoError;
using base::MakeError;
using base::MonotonicNs;
using base::Result;

struct Options {
  int rounds = 15;
  int block = 20;      // containers of the engine and of the floor in a round
  int peer_block = 3;  // containers of crun and runc in a round
  std::string only;    // run this alone, for strace: engine, exec, floor
  int count = 0;
};

constexpr size_t kSpareNetworks = 4;  // as the agent has it

int64_t Deadline() { return MonotonicNs() + 30 * base::kNsPerSec; }

double Ms(int64_t ns) { return static_cast<double>(ns) / 1e6; }

Result<> Reap(int pidfd) {
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

// Configuration, root file system and cgroup that all candidates use.
class Bundle {
 public:
  static Result<std::unique_ptr<Bundle>> Make() {
    std::unique_ptr<Bundle> bundle(new Bundle);
    GCS_ASSIGN(bundle->dir_, TempDir::Make());
    namespace fs = std::filesystem;
    for (const char* dir : {"root", "root/proc", "root/sys", "root/dev", "pause", "crun", "runc"})
      fs::create_directory(bundle->dir_ / dir);
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
    if (mkdir(bundle->CgroupDir().c_str(), 0755) != 0) return ErrnoError("make cgroup", bundle->CgroupDir());
    return bundle;
  }
  ~Bundle() { rmdir(CgroupDir().c_str()); }

  [[nodiscard]] const std::string& config() const { return config_; }
  [[nodiscard]] const std::string& cgroup() const { return cgroup_; }
  [[nodiscard]] std::string CgroupDir() const { return "/sys/fs/cgroup" + cgroup_; }
  [[nodiscard]] std::string root() const { return dir_ / "root"; }
  [[nodiscard]] std::string dir() const { return dir_.path(); }
  // Command of a peer, up to its verb.
  [[nodiscard]] std::vector<std::string> Peer(const std::string& name, std::vector<std::string> args) const {
    std::vector<std::string> all{name, "--root", dir_ / name};
    if (name == "crun") all.push_back("--cgroup-manager=cgroupfs");
    all.insert(all.end(), args.begin(), args.end());
    return all;
  }

 private:
  Bundle() = default;
  TempDir dir_;
  std::string config_;
  std::string cgroup_;
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
  Result<engine::EngineContainer> Create(const std::string& config) {
    GCS_ASSIGN(engine::Spec spec, engine::ParseSpec(config));
    return engine_->CreateContainer("c" + std::to_string(++number_), std::move(spec),
                                    {.stdio = Stdio(), .deadline_ns = Deadline()});
  }
  Result<> RunExec(const engine::EngineContainer& container, const engine::Process& process) {
    GCS_ASSIGN(engine::ChildProcess child,
               engine_->Exec(container, process, {.stdio = Stdio(), .deadline_ns = Deadline()}));
    GCS_TRY(child.Start(Deadline()));
    return Reap(child.pidfd());
  }
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
  int number_ = 0;
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
    std::vector<std::string> args{BENCH_FLOOR, bundle.root(), bundle.CgroupDir(), "/exit0"};
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

Result<> Expect0(const std::vector<std::string>& args) {
  GCS_ASSIGN(const int code, RunProgram(args));
  if (code != 0)
    return MakeError(EIO, "run", args[0] + " " + args[args.size() - 2], "exit code " + std::to_string(code));
  return {};
}

// System calls that `strace -f -c` counts for a command, all processes together.
Result<double> CountCalls(const Bundle& bundle, const std::vector<std::string>& command) {
  const std::string output = bundle.dir() + "/strace";
  std::vector<std::string> args{"strace", "-f", "-c", "-o", output};
  args.insert(args.end(), command.begin(), command.end());
  GCS_TRY(Expect0(args));
  std::ifstream file(output);
  std::string line;
  while (std::getline(file, line)) {
    // "100.00  0.012345  12  829  91 total": the calls are the fourth column, the third is absent in some
    // versions.
    if (!line.ends_with(" total")) continue;
    std::istringstream in(line);
    double percent = 0;
    double seconds = 0;
    double usecs = 0;
    double calls = 0;
    if (in >> percent >> seconds >> usecs >> calls) return calls;
  }
  return MakeError(EPROTO, "count system calls", command[0], "no total in the output of strace");
}

// System calls of one more round of this program's mode, by two runs of different length.
Result<double> CountOwn(const Bundle& bundle, const std::string& mode) {
  constexpr int kFew = 5;
  constexpr int kMany = 25;
  const auto command = [&](int count) {
    return std::vector<std::string>{"/proc/self/exe", "--only", mode, "--count", std::to_string(count)};
  };
  auto few = command(kFew);
  auto many = command(kMany);
  few[0] = many[0] = std::filesystem::read_symlink("/proc/self/exe");
  GCS_ASSIGN(const double less, CountCalls(bundle, few));
  GCS_ASSIGN(const double more, CountCalls(bundle, many));
  return (more - less) / (kMany - kFew);
}

// --only: `count` times one thing, for strace and perf.
Result<> RunOnly(const Options& options, const Bundle& bundle) {
  if (options.only == "floor") {
    GCS_ASSIGN(auto floor, Floor::Start(bundle));
    return floor->Run(options.count, false, nullptr);
  }
  GCS_ASSIGN(Candidate ours, Candidate::Make(bundle, kSpareNetworks));
  if (options.only == "engine") {
    for (int i = 0; i < options.count; ++i) GCS_TRY(ours.RunContainer(bundle.config()));
    return {};
  }
  base::Json config = base::Json::parse(bundle.config());
  config["process"]["args"] = {"/pause"};
  GCS_ASSIGN(engine::EngineContainer container, ours.Create(config.dump()));
  GCS_TRY(container.init.Start(Deadline()));
  engine::Process process = *container.spec.process;
  process.args = {"/exit0"};
  for (int i = 0; i < options.count; ++i) GCS_TRY(ours.RunExec(container, process));
  return ours.Stop(container);
}

std::string Both(const std::vector<double>& each) {
  return "p50 " + Number(Percentile(each, 50), "") + ", p99 " + Number(Percentile(each, 99), "ms");
}

Result<> Containers(const Options& options, const Bundle& bundle, NamespaceBarrier& barrier,
                    Candidate& ours, Candidate& poolless) {
  GCS_ASSIGN(auto floor, Floor::Start(bundle));
  Series engine;
  Series without_pool;
  Series plain;
  Series filtered;
  std::vector<double> crun;
  std::vector<double> runc;
  std::vector<double> crun_rounds;
  std::vector<double> runc_rounds;
  int64_t cpu = 0;
  GCS_TRY(ours.RunContainer(bundle.config()));
  GCS_TRY(poolless.RunContainer(bundle.config()));
  for (int round = 0; round < options.rounds; ++round) {
    GCS_TRY(Block(barrier, options.block, engine, [&]() -> Result<> {
      GCS_ASSIGN(const int64_t before, ours.CpuNs());
      GCS_TRY(Times(options.block, engine.each, [&] { return ours.RunContainer(bundle.config()); }));
      GCS_TRY(ours.AwaitSpares());
      GCS_ASSIGN(const int64_t after, ours.CpuNs());
      cpu += after - before;
      return {};
    }));
    GCS_TRY(Block(barrier, options.block, without_pool, [&] {
      return Times(options.block, without_pool.each, [&] { return poolless.RunContainer(bundle.config()); });
    }));
    GCS_TRY(
        Block(barrier, options.block, plain, [&] { return floor->Run(options.block, false, &plain.each); }));
    GCS_TRY(Block(barrier, options.block, filtered,
                  [&] { return floor->Run(options.block, true, &filtered.each); }));
    GCS_TRY(barrier.Wait());
    for (const std::string name : {"crun", "runc"}) {
      std::vector<double> times;
      GCS_TRY(Times(options.peer_block, times, [&] {
        return Expect0(bundle.Peer(name, {"run", "--bundle", bundle.dir(), name + "-bench"}));
      }));
      double sum = 0;
      for (const double time : times) sum += time / options.peer_block;
      (name == "crun" ? crun_rounds : runc_rounds).push_back(sum);
      (name == "crun" ? crun : runc).insert((name == "crun" ? crun : runc).end(), times.begin(), times.end());
    }
  }
  const double ratio = MedianRatio(engine.rounds, plain.rounds);
  const double crun_ratio = MedianRatio(crun_rounds, engine.rounds);
  const double runc_ratio = MedianRatio(runc_rounds, engine.rounds);
  const double cpu_ms = Ms(cpu) / static_cast<double>(engine.each.size());
  Row("create, start, exit, delete", Number(Median(engine.rounds), "ms"), Both(engine.each));
  Row("", "", "ms: " + ours.Steps());
  Row("floor", Number(Median(plain.rounds), "ms"), Both(plain.each));
  Row("floor with device filter", Number(Median(filtered.rounds), "ms"), Both(filtered.each));
  Row("crun run", Number(Median(crun), "ms"), Both(crun));
  Row("runc run", Number(Median(runc), "ms"), Both(runc));
  Row("x floor, cgroup v2", Number(ratio, ""), "floor without device filter", "<= 1.5");
  Row("x floor, to the last namespace",
      Number(MedianRatio(engine.rounds_all_gone, plain.rounds_all_gone), ""), "floor without device filter",
      "<= 1.5");
  Row("x floor with device filter", Number(MedianRatio(engine.rounds, filtered.rounds), ""));
  Row("x floor without pool", Number(MedianRatio(without_pool.rounds, plain.rounds), ""));
  Key("engine_floor_ratio_v2_nopool", MedianRatio(without_pool.rounds, plain.rounds));
  Row("times faster than crun", Number(crun_ratio, ""), "crun run", ">= 4");
  Row("times faster than runc", Number(runc_ratio, ""), "runc run", ">= 9");
  Row("CPU per container", Number(cpu_ms, "ms"), "all our processes and the container");
  Key("engine_floor_ratio_v2", std::max(ratio, MedianRatio(engine.rounds_all_gone, plain.rounds_all_gone)));
  Key("engine_vs_crun", crun_ratio);
  Key("engine_vs_runc", runc_ratio);
  Key("engine_cpu_ms", cpu_ms);
  return {};
}

Result<> Execs(const Options& options, const Bundle& bundle, Candidate& ours) {
  base::Json config = base::Json::parse(bundle.config());
  config["process"]["args"] = {"/pause"};
  GCS_ASSIGN(engine::EngineContainer container, ours.Create(config.dump()));
  GCS_TRY(container.init.Start(Deadline()));
  engine::Process process = *container.spec.process;
  process.args = {"/exit0"};
  GCS_TRY(Expect0(bundle.Peer("crun", {"run", "--detach", "--bundle", bundle.dir() + "/pause", "pause"})));
  std::vector<double> each;
  std::vector<double> crun;
  std::vector<double> rounds;
  std::vector<double> crun_rounds;
  for (int round = 0; round < options.rounds; ++round) {
    std::vector<double> a;
    std::vector<double> b;
    GCS_TRY(Times(options.block, a, [&] { return ours.RunExec(container, process); }));
    GCS_TRY(Times(options.peer_block, b,
                  [&] { return Expect0(bundle.Peer("crun", {"exec", "pause", "/exit0"})); }));
    rounds.push_back(Median(a));
    crun_rounds.push_back(Median(b));
    each.insert(each.end(), a.begin(), a.end());
    crun.insert(crun.end(), b.begin(), b.end());
  }
  GCS_TRY(Expect0(bundle.Peer("crun", {"delete", "--force", "pause"})));
  GCS_TRY(ours.Stop(container));
  const double ratio = MedianRatio(crun_rounds, rounds);
  Row("exec", Number(Median(rounds), "ms"), Both(each));
  Row("crun exec", Number(Median(crun_rounds), "ms"), Both(crun));
  Row("times faster than crun exec", Number(ratio, ""), "crun exec", ">= 5");
  Key("exec_vs_crun", ratio);
  return {};
}

Result<> Calls(const Bundle& bundle) {
  GCS_ASSIGN(const double engine, CountOwn(bundle, "engine"));
  GCS_ASSIGN(const double exec, CountOwn(bundle, "exec"));
  GCS_ASSIGN(const double floor, CountOwn(bundle, "floor"));
  GCS_ASSIGN(const double crun,
             CountCalls(bundle, bundle.Peer("crun", {"run", "--bundle", bundle.dir(), "traced"})));
  GCS_ASSIGN(const double runc,
             CountCalls(bundle, bundle.Peer("runc", {"run", "--bundle", bundle.dir(), "traced"})));
  Row("system calls per container", Number(engine, "", 0),
      "floor " + Number(floor, "", 0) + ", crun " + Number(crun, "", 0) + ", runc " + Number(runc, "", 0),
      "<= 180");
  Row("system calls per exec", Number(exec, "", 0));
  Key("engine_syscalls_v2", engine);
  constexpr double kFloorLimit = 140;
  if (floor > kFloorLimit)
    return MakeError(EINVAL, "check floor", "system calls", "more than the 140 it may make");
  return {};
}

Result<> Run(const Options& options) {
  // Before all else on the machine, candidates and peers alike, so that its load is not what is measured.
  const sched_param priority{.sched_priority = 1};
  if (sched_setscheduler(0, SCHED_FIFO, &priority) != 0)
    return ErrnoError("sched_setscheduler", "SCHED_FIFO");
  GCS_TRY(EnterCgroup2View());
  if (options.only.empty()) {
    GCS_TRY(PassMemlockLimit());
  }
  GCS_ASSIGN(auto bundle, Bundle::Make());
  if (!options.only.empty()) return RunOnly(options, *bundle);
  Head("engine (on this machine, cgroup v2)");
  {
    GCS_ASSIGN(auto barrier, NamespaceBarrier::Start());
    GCS_ASSIGN(Candidate ours, Candidate::Make(*bundle, kSpareNetworks));
    GCS_ASSIGN(Candidate poolless, Candidate::Make(*bundle, 0));
    GCS_TRY(Containers(options, *bundle, *barrier, ours, poolless));
    GCS_TRY(Execs(options, *bundle, ours));
  }
  return Calls(*bundle);
}

}  // namespace
}  // namespace gcs::bench

int main(int argc, char** argv) {
  gcs::bench::Options options;
  CLI::App app("The engine against the floor, crun and runc");
  app.add_option("--rounds", options.rounds, "interleaved rounds")->check(CLI::PositiveNumber);
  app.add_option("--block", options.block, "containers of the engine and the floor in a round")
      ->check(CLI::PositiveNumber);
  app.add_option("--peer-block", options.peer_block, "containers of crun and runc in a round")
      ->check(CLI::PositiveNumber);
  app.add_option("--only", options.only, "nothing but this, for strace and perf")
      ->check(CLI::IsMember({"engine", "exec", "floor"}));
  app.add_option("--count", options.count, "how often, with --only")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  if (const auto done = gcs::bench::Run(options); !done) {
    fprintf(stderr, "bench_engine: %s\n", done.error().ToString().c_str());
    return 1;
  }
  return 0;
}
