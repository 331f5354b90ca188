// SPDX-License-Identifier: Apache-2.0
// The engine on this machine against the floor program and Debian's crun and runc; see README.md.
#include <sched.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <sstream>

#include "bench/engine_load.h"
#include "bench/engine_parts.h"

namespace gcs::bench {
namespace {

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
Result<double> CountOwn(const Bundle& bundle, const std::string& cgroups, const std::string& mode) {
  constexpr int kFew = 5;
  constexpr int kMany = 25;
  const auto command = [&](int count) {
    return std::vector<std::string>{"/proc/self/exe", "--cgroups",          cgroups, "--only", mode,
                                    "--count",        std::to_string(count)};
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

Result<> Containers(const Options& options, const Bundle& bundle, NamespaceBarrier& barrier, Candidate& ours,
                    Candidate& poolless) {
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
  const bool v2 = options.cgroups == "v2";
  const char* limit = v2 ? "<= 1.5" : "<= 1.6";
  Row("x floor", Number(ratio, ""), "floor without device filter", limit);
  Row("x floor, to the last namespace",
      Number(MedianRatio(engine.rounds_all_gone, plain.rounds_all_gone), ""), "floor without device filter",
      limit);
  Row("x floor with device filter", Number(MedianRatio(engine.rounds, filtered.rounds), ""));
  Row("x floor without pool", Number(MedianRatio(without_pool.rounds, plain.rounds), ""));
  Row("times faster than crun", Number(crun_ratio, ""), "crun run", v2 ? ">= 4" : ">= 3");
  Row("times faster than runc", Number(runc_ratio, ""), "runc run", ">= 9");
  Row("CPU per container", Number(cpu_ms, "ms"), "all our processes and the container");
  const double worse = std::max(ratio, MedianRatio(engine.rounds_all_gone, plain.rounds_all_gone));
  Key(v2 ? "engine_floor_ratio_v2" : "engine_floor_ratio_v1", worse);
  Key(v2 ? "engine_vs_crun" : "engine_vs_crun_v1", crun_ratio);
  if (!v2) return {};
  Key("engine_floor_ratio_v2_nopool", MedianRatio(without_pool.rounds, plain.rounds));
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

Result<> Calls(const Options& options, const Bundle& bundle) {
  const bool v2 = options.cgroups == "v2";
  GCS_ASSIGN(const double engine, CountOwn(bundle, options.cgroups, "engine"));
  GCS_ASSIGN(const double exec, CountOwn(bundle, options.cgroups, "exec"));
  GCS_ASSIGN(const double floor, CountOwn(bundle, options.cgroups, "floor"));
  GCS_ASSIGN(const double crun,
             CountCalls(bundle, bundle.Peer("crun", {"run", "--bundle", bundle.dir(), "traced"})));
  GCS_ASSIGN(const double runc,
             CountCalls(bundle, bundle.Peer("runc", {"run", "--bundle", bundle.dir(), "traced"})));
  Row("system calls per container", Number(engine, "", 0),
      "floor " + Number(floor, "", 0) + ", crun " + Number(crun, "", 0) + ", runc " + Number(runc, "", 0),
      v2 ? "<= 180" : "<= 260");
  Row("system calls per exec", Number(exec, "", 0));
  Key(v2 ? "engine_syscalls_v2" : "engine_syscalls_v1", engine);
  constexpr double kFloorLimit = 140;
  if (v2 && floor > kFloorLimit)
    return MakeError(EINVAL, "check floor", "system calls", "more than the 140 it may make");
  return {};
}

Result<> Run(const Options& options) {
  // Before all else on the machine, candidates and peers alike, so that its load is not what is measured.
  const sched_param priority{.sched_priority = 1};
  if (options.only.empty() && sched_setscheduler(0, SCHED_FIFO, &priority) != 0)
    return ErrnoError("sched_setscheduler", "SCHED_FIFO");
  std::vector<std::string> mounts{"/sys/fs/cgroup"};
  if (options.cgroups == "v2") {
    GCS_TRY(EnterCgroup2View());
  } else {
    GCS_ASSIGN(mounts, EnterCgroup1View());
  }
  if (options.only.empty()) {
    GCS_TRY(PassMemlockLimit());
  }
  GCS_ASSIGN(auto bundle, Bundle::Make(std::move(mounts)));
  if (!options.only.empty()) return RunOnly(options, *bundle);
  Head(("engine (on this machine, cgroup " + options.cgroups + ")").c_str());
  {
    GCS_ASSIGN(auto barrier, NamespaceBarrier::Start());
    GCS_ASSIGN(Candidate ours, Candidate::Make(*bundle, kSpareNetworks));
    GCS_ASSIGN(Candidate poolless, Candidate::Make(*bundle, 0));
    GCS_TRY(Containers(options, *bundle, *barrier, ours, poolless));
    GCS_TRY(Execs(options, *bundle, ours));
    if (options.cgroups == "v2") {
      GCS_TRY(Seccomp(options, *bundle, ours));
      GCS_TRY(Cold(options, *bundle, ours));
      GCS_TRY(CommandLine(options, *bundle));
      GCS_TRY(Burst(*bundle, ours));
    }
  }
  return Calls(options, *bundle);
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
  app.add_option("--cgroups", options.cgroups, "which cgroups all of them see")
      ->check(CLI::IsMember({"v1", "v2"}));
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
