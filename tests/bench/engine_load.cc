// SPDX-License-Identifier: Apache-2.0
#include "bench/engine_load.h"

#include <seccomp.h>

#include <algorithm>
#include <mutex>
#include <thread>

namespace gcs::bench {

namespace {

// kB of proportional memory of a process.
Result<double> PssKb(pid_t pid) {
  GCS_ASSIGN(const std::string text, base::ReadFile("/proc/" + std::to_string(pid) + "/smaps_rollup"));
  const size_t at = text.find("\nPss:");
  if (at == std::string::npos) return MakeError(EPROTO, "read", "smaps_rollup", "no Pss");
  return strtod(text.c_str() + at + 5, nullptr);
}

// Lets the first 270 names of this machine's table pass, for the architectures that runc's profile has.
std::string WithSeccomp(const std::string& config) {
  constexpr size_t kNames = 270;
  base::Json names = base::Json::array();
  for (int number = 0; names.size() < kNames; ++number) {
    char* name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_X86_64, number);
    if (name == nullptr) continue;
    names.push_back(name);
    free(name);  // NOLINT(cppcoreguidelines-no-malloc): libseccomp's
  }
  base::Json with = base::Json::parse(config);
  with["linux"]["seccomp"] = {{"defaultAction", "SCMP_ACT_ERRNO"},
                              {"architectures", {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"}},
                              {"syscalls", {{{"names", names}, {"action", "SCMP_ACT_ALLOW"}}}}};
  return with.dump();
}

}  // namespace

Result<> Seccomp(const Options& options, const Bundle& bundle, Candidate& ours) {
  const std::string with = WithSeccomp(bundle.config());
  const int64_t begin = MonotonicNs();
  GCS_TRY(ours.RunContainer(with));
  const double first = Ms(MonotonicNs() - begin);
  std::vector<double> extra;
  std::vector<double> all;
  for (int round = 0; round < options.rounds; ++round) {
    std::vector<double> a;
    std::vector<double> b;
    GCS_TRY(Times(options.block, a, [&] { return ours.RunContainer(with); }));
    GCS_TRY(Times(options.block, b, [&] { return ours.RunContainer(bundle.config()); }));
    extra.push_back(Median(a) - Median(b));
    all.insert(all.end(), a.begin(), a.end());
  }
  Row("with 270 names of seccomp, more", Number(Median(extra), "ms"),
      "the first one took " + Number(first, "ms"), "<= 0.4");
  Key("engine_seccomp_ms", Median(extra));
  return {};
}

Result<> Cold(const Options& options, const Bundle& bundle, Candidate& ours) {
  constexpr useconds_t kIdleUs = 150'000;
  std::vector<double> cold;
  std::vector<double> hot;
  for (int round = 0; round < options.rounds * 2; ++round) {
    usleep(kIdleUs);
    GCS_TRY(Times(1, cold, [&] { return ours.RunContainer(bundle.config()); }));
    std::vector<double> next;
    GCS_TRY(Times(5, next, [&] { return ours.RunContainer(bundle.config()); }));
    hot.push_back(Median(next));
  }
  const double ratio = MedianRatio(cold, hot);
  Row("first after 150 ms idle", Number(Median(cold), "ms"), "hot " + Number(Median(hot), "ms"));
  Row("x hot", Number(ratio, ""), "", "<= 2");
  Key("engine_cold_ratio", ratio);
  return {};
}

Result<> CommandLine(const Options& options, const Bundle& bundle) {
  std::vector<double> ours;
  std::vector<double> crun;
  const auto run = [&](const char* name) {
    return Expect0(bundle.Peer(name, {"run", "--bundle", bundle.dir(), std::string(name) + "-bench"}));
  };
  for (int round = 0; round < options.rounds * 2; ++round) {
    GCS_TRY(Times(1, ours, [&] { return run("gcs-oci"); }));
    GCS_TRY(Times(1, crun, [&] { return run("crun"); }));
  }
  const double ratio = MedianRatio(crun, ours);
  Row("gcs-oci run", Number(Median(ours), "ms"), "crun run " + Number(Median(crun), "ms"));
  Row("times faster than crun run", Number(ratio, ""), "both as programs", ">= 2");
  Key("engine_cli_vs_crun", ratio);
  return {};
}

Result<> Burst(const Bundle& bundle, Candidate& ours) {
  constexpr int kContainers = 500;
  constexpr int kClients = 8;
  base::Json config = base::Json::parse(bundle.config());
  config["process"]["args"] = {"/pause"};
  const std::string text = config.dump();
  GCS_ASSIGN(const double self_before, PssKb(getpid()));
  GCS_ASSIGN(const double zygote_before, PssKb(ours.zygote_pid()));

  std::mutex mutex;
  std::vector<engine::EngineContainer> alive;
  std::vector<double> each;
  Result<> failed;
  std::atomic<int> left = kContainers;
  const int64_t begin = MonotonicNs();
  {
    std::vector<std::jthread> clients;
    for (int client = 0; client < kClients; ++client) {
      clients.emplace_back([&] {
        while (left-- > 0) {
          const int64_t from = MonotonicNs();
          auto container = ours.Create(text);
          auto started = container ? container->init.Start(Deadline()) : std::unexpected(container.error());
          const double took = Ms(MonotonicNs() - from);
          const std::lock_guard lock(mutex);
          each.push_back(took);
          if (!started && failed) failed = std::move(started);
          if (container) alive.push_back(std::move(*container));
        }
      });
    }
  }
  const double seconds = Ms(MonotonicNs() - begin) / 1000;
  GCS_ASSIGN(const double self_after, PssKb(getpid()));
  GCS_ASSIGN(const double zygote_after, PssKb(ours.zygote_pid()));
  for (engine::EngineContainer& container : alive) {
    auto stopped = ours.Stop(container);
    if (!stopped && failed) failed = std::move(stopped);
  }
  GCS_TRY(std::move(failed));
  const double ratio = Percentile(each, 99) / Percentile(each, 50);
  const double memory = (self_after + zygote_after - self_before - zygote_before) / kContainers;
  Row("500 containers, 8 clients", Number(kContainers / seconds, "/s", 0),
      "p50 " + Number(Percentile(each, 50), "") + ", p99 " + Number(Percentile(each, 99), "ms"));
  Row("p99 over p50", Number(ratio, ""), "", "<= 3");
  Row("memory per living container", Number(memory, "kB", 1), "of this process and the zygote", "<= 150");
  Key("engine_burst_p99_over_p50", ratio);
  return {};
}

}  // namespace gcs::bench
