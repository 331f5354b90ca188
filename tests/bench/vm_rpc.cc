// SPDX-License-Identifier: Apache-2.0
// Round trips between host and guest, and what containers cost through the API.
#include <array>

#include "base/json.h"
#include "bench/report.h"
#include "bench/vm.h"

namespace gcs::bench {

using base::MakeError;
using base::Result;

namespace {

std::string Both(const std::vector<double>& ms, const char* unit = "ms") {
  const double factor = std::string_view(unit) == "us" ? 1000 : 1;
  const int digits = factor == 1 ? 2 : 0;
  return "p50 " + Number(Percentile(ms, 50) * factor, "", digits) + ", p99 " +
         Number(Percentile(ms, 99) * factor, unit, digits);
}

template <typename F>
Result<> Timed(std::vector<double>& times, F run) {
  const int64_t begin = base::MonotonicNs();
  GCS_TRY(run());
  times.push_back(MsSince(begin));
  return {};
}

Result<> RoundTrips(const VmBenchOptions& options, BenchVm& vm) {
  GCS_TRY(vm.StartRawServer());
  GCS_ASSIGN(const base::Fd raw, vm.Connect(50007));
  std::array<char, 64> message = {};
  std::vector<double> echo;
  std::vector<double> health;
  std::vector<double> info;
  const auto check = [&]() -> Result<> {
    const auto healthy = vm.client().Healthy("");
    if (!healthy) return std::unexpected(base::Error(healthy.error()));
    if (!*healthy) return MakeError(EIO, "check health", "agent", "not serving");
    return {};
  };
  GCS_TRY(check());
  for (int i = 0; i < options.calls; ++i) {
    GCS_TRY(Timed(echo, [&]() -> Result<> {
      GCS_TRY(SendAll(raw.get(), message.data(), message.size()));
      return ReceiveAll(raw.get(), message.data(), message.size());
    }));
    GCS_TRY(Timed(health, check));
    GCS_TRY(Timed(info, [&]() -> Result<> {
      GCS_TRY(vm.Call(v1::InfoRequest()));
      return {};
    }));
  }
  Row("RPC (health check)", Number(Percentile(health, 50) * 1000, "us", 0), Both(health, "us"));
  Row("RPC (Info)", Number(Percentile(info, 50) * 1000, "us", 0), Both(info, "us"));
  Row("raw vsock echo, 64 bytes", Number(Percentile(echo, 50) * 1000, "us", 0), Both(echo, "us"));
  Key("rpc_p50_us", Percentile(health, 50) * 1000);
  Key("rpc_p99_us", Percentile(health, 99) * 1000);
  return {};
}

Result<> Containers(const VmBenchOptions& options, BenchVm& vm) {
  GCS_ASSIGN(const std::string config, vm.Config(vm.Settings({"/exit0"})));
  std::vector<double> create;
  std::vector<double> start;
  std::vector<double> exit;
  std::vector<double> remove;
  std::vector<double> all;
  for (int i = 0; i < options.containers; ++i) {
    const std::string id = "c" + std::to_string(i);
    GCS_TRY(Timed(all, [&]() -> Result<> {
      GCS_TRY(Timed(create, [&] { return vm.Create(id, config); }));
      GCS_TRY(Timed(start, [&] { return vm.Start(id); }));
      GCS_TRY(Timed(exit, [&]() -> Result<> {
        GCS_ASSIGN(const int code, vm.Wait(id));
        return code == 0 ? Result<>{}
                         : MakeError(EIO, "run container", id, "exit code " + std::to_string(code));
      }));
      return Timed(remove, [&] { return vm.Delete(id); });
    }));
  }
  Row("container through the API", Number(Percentile(all, 50), "ms"), Both(all));
  Row("  create", Number(Percentile(create, 50), "ms"), Both(create));
  Row("  start", Number(Percentile(start, 50), "ms"), Both(start));
  Row("  wait", Number(Percentile(exit, 50), "ms"), Both(exit));
  Row("  delete", Number(Percentile(remove, 50), "ms"), Both(remove));
  return {};
}

Result<> Execs(const VmBenchOptions& options, BenchVm& vm) {
  GCS_ASSIGN(const std::string config, vm.Config(vm.Settings({"/pause"})));
  GCS_TRY(vm.Create("exec", config));
  GCS_TRY(vm.Start("exec"));
  std::vector<double> exec;
  for (int i = 0; i < options.containers; ++i) {
    const std::string id = "p" + std::to_string(i);
    GCS_TRY(Timed(exec, [&]() -> Result<> {
      v1::ExecRequest request;
      request.set_container_id("exec");
      request.set_process_id(id);
      request.set_process_json(R"({"args": ["/exit0"]})");
      GCS_TRY(vm.Call(request));
      v1::WaitProcessRequest wait;
      wait.set_container_id("exec");
      wait.set_process_id(id);
      GCS_ASSIGN(const v1::WaitProcessResponse ended, vm.Call(wait));
      if (ended.exit().exit_code() != 0)
        return MakeError(EIO, "exec", id, "exit code " + std::to_string(ended.exit().exit_code()));
      return {};
    }));
    v1::DeleteProcessRequest remove;
    remove.set_container_id("exec");
    remove.set_process_id(id);
    GCS_TRY(vm.Call(remove));
  }
  GCS_TRY(vm.Delete("exec"));
  Row("exec through the API, to its end", Number(Percentile(exec, 50), "ms"), Both(exec));
  return {};
}

}  // namespace

Result<> BenchRpc(const VmBenchOptions& options) {
  constexpr uint32_t kMemoryMib = 512;
  GCS_ASSIGN(const auto vm, BenchVm::Boot(kMemoryMib));
  Head("rpc (host to guest over vsock, TCG)");
  GCS_TRY(RoundTrips(options, *vm));
  GCS_TRY(Containers(options, *vm));
  return Execs(options, *vm);
}

}  // namespace gcs::bench
