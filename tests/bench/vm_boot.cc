// SPDX-License-Identifier: Apache-2.0
// Power-on to the first answered RPC, against the same kernel with an init that prints a line.
#include <unistd.h>

#include <cstdlib>

#include "base/paths.h"
#include "bench/report.h"
#include "bench/vm.h"
#include "host/vm/cpio.h"

namespace gcs::bench {

using base::MakeError;
using base::Result;

namespace {

constexpr uint32_t kAgentPort = 1024;
constexpr uint32_t kReadyPort = 1025;

// ms from QEMU's start to the line of `line.c` on the console.
Result<double> BootLine(const std::string& image, const TempDir& dir) {
  host::VmOptions options;
  options.kernel = image + "/vmlinux";
  options.initrd = dir / "line.cpio";
  GCS_ASSIGN(const auto vm, host::Vm::Start(options));
  constexpr int64_t kLimitMs = 60'000;
  while (MsSince(vm->started_ns()) < kLimitMs) {
    if (vm->ConsoleTail().find("bench: up") != std::string::npos) return MsSince(vm->started_ns());
    usleep(500);
  }
  return MakeError(ETIMEDOUT, "boot", "kernel with a line", vm->ConsoleTail());
}

struct AgentBoot {
  double ready = 0;  // the agent says that its API is up
  double first_rpc = 0;
  std::string phases;  // ms of the guest's own clock, which begins with its kernel
};

Result<AgentBoot> BootAgent(const std::string& image) {
  host::VmOptions options;
  options.kernel = image + "/vmlinux";
  options.initrd = image + "/initrd.img";
  options.ready_port = kReadyPort;
  GCS_ASSIGN(const auto vm, host::Vm::Start(options));
  host::Client client([&vm] { return vm->Connect(kAgentPort); });
  const auto info = client.Call(v1::InfoRequest());
  if (!info) return std::unexpected(base::Error(info.error()));
  AgentBoot boot{.ready = static_cast<double>(vm->ready_ns() - vm->started_ns()) / 1e6,
                 .first_rpc = MsSince(vm->started_ns()),
                 .phases = {}};
  for (const v1::BootPhase& phase : info->boot_phases()) {
    boot.phases += (boot.phases.empty() ? "" : ", ") + phase.name() + " " +
                   Number(static_cast<double>(phase.boottime_ns()) / 1e6, "", 0);
  }
  return boot;
}

}  // namespace

Result<> BenchBoot(const VmBenchOptions& options) {
  const char* image = getenv("GCS_IMAGE_DIR");
  if (image == nullptr)
    return MakeError(EINVAL, "boot", "GCS_IMAGE_DIR", "is not set; scripts/bench sets it");
  GCS_ASSIGN(const TempDir dir, TempDir::Make());
  host::Cpio cpio;
  cpio.AddDirectory("dev");
  GCS_TRY(cpio.AddFileFrom("init", BENCH_LINE, 0755));
  GCS_TRY(cpio.WriteTo(dir / "line.cpio"));
  std::vector<double> line;
  std::vector<double> ready;
  std::vector<double> rpc;
  std::string phases;
  for (int i = 0; i < options.boots; ++i) {
    GCS_ASSIGN(const double took, BootLine(image, dir));
    GCS_ASSIGN(const AgentBoot boot, BootAgent(image));
    line.push_back(took);
    ready.push_back(boot.ready);
    rpc.push_back(boot.first_rpc);
    phases = boot.phases;
  }
  Head("boot (microvm, TCG, from QEMU's start, median)");
  const double ratio = MedianRatio(rpc, line);
  Row("first RPC answered", Number(Median(rpc), "ms", 0), "p10 " + Number(Percentile(rpc, 10), "ms", 0));
  Row("agent says it is up", Number(Median(ready), "ms", 0));
  Row("", "", "guest, ms: " + phases);
  Row("kernel with an init of one line", Number(Median(line), "ms", 0),
      "p10 " + Number(Percentile(line, 10), "ms", 0));
  Row("x kernel with one line", Number(ratio, ""), std::to_string(options.boots) + " boots each, interleaved",
      "<= 1.2");
  Key("boot_ratio", ratio);
  return {};
}

}  // namespace gcs::bench
