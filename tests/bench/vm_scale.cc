// SPDX-License-Identifier: Apache-2.0
// Memory of the agent with and without containers, and how creation slows down with their number.
#include <sstream>

#include "base/json.h"
#include "bench/report.h"
#include "bench/vm.h"

namespace gcs::bench {

using base::MakeError;
using base::Result;

namespace {

struct Memory {
  double total = 0;  // KiB of PSS
  std::string parts;
};

// PSS of our processes, as a privileged container without a pid namespace of its own sees them.
Result<Memory> AgentMemory(BenchVm& vm, const std::string& id) {
  host::ContainerSettings settings =
      vm.Settings({"/bin/sh", "-c",
                   "for d in /proc/[0-9]*; do read c <$d/comm; grep ^Pss: $d/smaps_rollup 2>/dev/null | "
                   "while read k v u; do echo $c $v; done; done"});
  settings.privileged = true;
  GCS_ASSIGN(const std::string text, vm.Config(settings));
  base::Json config = base::Json::parse(text);
  auto& namespaces = config["linux"]["namespaces"];
  for (size_t i = 0; i < namespaces.size(); ++i) {
    if (namespaces[i]["type"] == "pid") namespaces.erase(i--);
  }
  GCS_ASSIGN(const std::string output, vm.Output(id, config.dump()));
  Memory memory;
  std::istringstream lines(output);
  std::string name;
  double kib = 0;
  while (lines >> name >> kib) {
    if (name != "init" && !name.starts_with("gcs")) continue;
    memory.total += kib;
    memory.parts += (memory.parts.empty() ? "" : ", ") + name + " " + Number(kib, "", 0);
  }
  if (memory.total == 0) return MakeError(EIO, "read memory", "smaps_rollup", output.substr(0, 200));
  return memory;
}

}  // namespace

Result<> BenchScale(const VmBenchOptions& options) {
  constexpr uint32_t kMemoryMib = 2048;
  GCS_ASSIGN(const auto vm, BenchVm::Boot(kMemoryMib));
  Head("scale (one VM of 2 GB, TCG)");
  GCS_ASSIGN(const Memory idle, AgentMemory(*vm, "memory0"));
  Row("PSS of the agent, idle", Number(idle.total / 1024, "MiB"), idle.parts, "<= 8 MB");
  Key("agent_pss_idle_kb", idle.total);
  GCS_ASSIGN(const std::string config, vm->Config(vm->Settings({"/pause"})));
  std::vector<double> create;
  for (int i = 0; i < options.many; ++i) {
    const std::string id = "idle" + std::to_string(i);
    const int64_t begin = base::MonotonicNs();
    GCS_TRY(vm->Create(id, config));
    create.push_back(MsSince(begin));
    GCS_TRY(vm->Start(id));
    if (i + 1 != options.idle) continue;
    GCS_ASSIGN(const Memory busy, AgentMemory(*vm, "memory1"));
    Row(("with " + std::to_string(options.idle) + " idle containers").c_str(),
        Number(busy.total / 1024, "MiB"), busy.parts);
    Row("  each container", Number((busy.total - idle.total) / options.idle, "KiB", 1), "", "<= 150 kB");
    Key("agent_pss_100_kb", busy.total);
  }
  const double ratio = Percentile(create, 99) / Percentile(create, 50);
  Row((std::to_string(options.many) + " containers: create").c_str(), Number(Percentile(create, 50), "ms"),
      "p99 " + Number(Percentile(create, 99), "ms"));
  Row("p99 / p50", Number(ratio, ""), "", "<= 3");
  Key("scale_p99_over_p50", ratio);
  return {};
}

}  // namespace gcs::bench
