// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "gcs/v1/guest.grpc.pb.h"
#include "guest/info.h"
#include "guest/machine.h"
#include "rpc/convert.h"
#include "rpc/copy.h"
#include "rpc/feed.h"
#include "rpc/services.h"
#include "rpc/unary.h"

namespace gcs::rpc {

namespace {

constexpr uint32_t kDefaultGraceMs = 2000;
constexpr uint32_t kMaxGraceMs = 60'000;
constexpr size_t kLogBatch = 32;

class GuestService final : public gcs::v1::GuestService::CallbackService {
 public:
  GuestService(Core* core, GuestBackend backend)
      : core_(*core), backend_(std::move(backend)), copies_(core, backend_.copy_containers) {}

  grpc::ServerUnaryReactor* Info(grpc::CallbackServerContext* context, const gcs::v1::InfoRequest* request,
                                 gcs::v1::InfoResponse* response) override {
    return Serve(core_, "GuestService.Info", Access::kRead, context, request, response,
                 On<gcs::v1::InfoRequest, gcs::v1::InfoResponse>(
                     core_.quick, [this](const Call& call, const auto&) { return GetInfo(call); }));
  }

  grpc::ServerUnaryReactor* SetTime(grpc::CallbackServerContext* context,
                                    const gcs::v1::SetTimeRequest* request,
                                    gcs::v1::SetTimeResponse* response) override {
    return Serve(core_, "GuestService.SetTime", Access::kWrite, context, request, response,
                 On<gcs::v1::SetTimeRequest, gcs::v1::SetTimeResponse>(
                     core_.quick, [this](const Call&, const auto& r) { return SetClock(r.time_ns()); }));
  }

  grpc::ServerUnaryReactor* AddEntropy(grpc::CallbackServerContext* context,
                                       const gcs::v1::AddEntropyRequest* request,
                                       gcs::v1::AddEntropyResponse* response) override {
    return Serve(
        core_, "GuestService.AddEntropy", Access::kWrite, context, request, response,
        On<gcs::v1::AddEntropyRequest, gcs::v1::AddEntropyResponse>(
            core_.quick, [](const Call&, const auto& r) -> base::Result<gcs::v1::AddEntropyResponse> {
              GCS_TRY(guest::AddEntropy(r.data()));
              return gcs::v1::AddEntropyResponse();
            }));
  }

  grpc::ServerUnaryReactor* Shutdown(grpc::CallbackServerContext* context,
                                     const gcs::v1::ShutdownRequest* request,
                                     gcs::v1::ShutdownResponse* response) override {
    return Serve(core_, "GuestService.Shutdown", Access::kWrite, context, request, response,
                 On<gcs::v1::ShutdownRequest, gcs::v1::ShutdownResponse>(
                     core_.quick, [this](const Call&, const auto& r) { return EndMachine(r); }));
  }

  grpc::ServerUnaryReactor* Sysctl(grpc::CallbackServerContext* context,
                                   const gcs::v1::SysctlRequest* request,
                                   gcs::v1::SysctlResponse* response) override {
    return Serve(core_, "GuestService.Sysctl", Access::kWrite, context, request, response,
                 On<gcs::v1::SysctlRequest, gcs::v1::SysctlResponse>(
                     core_.work, [this](const Call&, const auto& r) { return ApplySysctls(r); }));
  }

  grpc::ServerWriteReactor<gcs::v1::LogRecord>* Logs(grpc::CallbackServerContext* context,
                                                     const gcs::v1::LogsRequest* request) override;

  grpc::ServerReadReactor<gcs::v1::CopyInRequest>* CopyIn(grpc::CallbackServerContext* context,
                                                          gcs::v1::CopyInResponse* response) override {
    return copies_.In(context, response);
  }

  grpc::ServerWriteReactor<gcs::v1::CopyOutResponse>* CopyOut(
      grpc::CallbackServerContext* context, const gcs::v1::CopyOutRequest* request) override {
    return copies_.Out(context, request);
  }

 private:
  base::Result<gcs::v1::InfoResponse> GetInfo(const Call& call) const;
  base::Result<gcs::v1::SetTimeResponse> SetClock(int64_t time_ns) const;
  base::Result<gcs::v1::SysctlResponse> ApplySysctls(const gcs::v1::SysctlRequest& request) const;
  base::Result<gcs::v1::ShutdownResponse> EndMachine(const gcs::v1::ShutdownRequest& request) const;

  Core& core_;
  const GuestBackend backend_;
  Copies copies_;
};

base::Result<gcs::v1::InfoResponse> GuestService::GetInfo(const Call& call) const {
  GCS_ASSIGN(guest::MachineInfo machine, guest::ReadMachineInfo());
  GCS_ASSIGN(const std::vector<guest::BootPhase> phases, guest::ReadBootPhases(backend_.boot_file));
  gcs::v1::InfoResponse info;
  info.set_version(backend_.version);
  info.set_commit(backend_.commit);
  info.set_input_hash(backend_.input_hash);
  info.set_kernel_release(std::move(machine.kernel_release));
  info.set_kernel_version(std::move(machine.kernel_version));
  info.set_api_version("v1");
  for (const std::string& feature : *backend_.features) info.add_features(feature);
  info.set_uptime_ns(machine.uptime_ns);
  info.set_time_ns(machine.time_ns);
  for (const guest::BootPhase& phase : phases) {
    gcs::v1::BootPhase* out = info.add_boot_phases();
    out->set_name(phase.name);
    out->set_boottime_ns(phase.boottime_ns);
  }
  info.set_cpus(machine.cpus);
  info.set_memory_total_bytes(machine.memory_total_bytes);
  info.set_memory_available_bytes(machine.memory_available_bytes);
  info.set_agent_restarts(backend_.restarts);
  info.set_refused_connections(backend_.refused_connections());
  info.set_transport(backend_.transport_of(call.peer()));
  info.set_containers(backend_.containers());
  return info;
}

base::Result<gcs::v1::SetTimeResponse> GuestService::SetClock(int64_t time_ns) const {
  GCS_ASSIGN(const int64_t step_ns, guest::SetWallClock(time_ns));
  backend_.journal->Append({}, {}, guest::ClockStepped{step_ns});
  gcs::v1::SetTimeResponse response;
  response.set_step_ns(step_ns);
  return response;
}

base::Result<gcs::v1::SysctlResponse> GuestService::ApplySysctls(
    const gcs::v1::SysctlRequest& request) const {
  GCS_ASSIGN(auto values, backend_.sysctls->Apply({request.set().begin(), request.set().end()},
                                                  {request.get().begin(), request.get().end()}));
  gcs::v1::SysctlResponse response;
  for (auto& [name, value] : values) (*response.mutable_values())[name] = ToUtf8(std::move(value));
  return response;
}

base::Result<gcs::v1::ShutdownResponse> GuestService::EndMachine(
    const gcs::v1::ShutdownRequest& request) const {
  const uint32_t grace_ms = request.grace_ms() == 0 ? kDefaultGraceMs : request.grace_ms();
  if (grace_ms > kMaxGraceMs) return base::MakeError(EINVAL, "shut down", "grace_ms", "more than 60000");
  switch (request.mode()) {
    case gcs::v1::ShutdownRequest::MODE_POWER_OFF:
      GCS_TRY(backend_.init->PowerOff(grace_ms));
      return gcs::v1::ShutdownResponse();
    case gcs::v1::ShutdownRequest::MODE_REBOOT:
      GCS_TRY(backend_.init->Reboot(grace_ms));
      return gcs::v1::ShutdownResponse();
    default:
      return base::MakeError(EINVAL, "shut down", "mode", std::to_string(request.mode()));
  }
}

grpc::ServerWriteReactor<gcs::v1::LogRecord>* GuestService::Logs(grpc::CallbackServerContext* context,
                                                                 const gcs::v1::LogsRequest* request) {
  using Record = gcs::v1::LogRecord;
  auto cursor = std::make_shared<uint64_t>(request->after_sequence());
  Feed<Record>::Source source;
  source.follow = request->follow();
  source.read = [cursor]() -> base::Result<std::vector<Record>> {
    std::vector<Record> records;
    for (base::LogLine& line : base::ReadLog(*cursor, kLogBatch)) {
      Record record;
      record.set_sequence(line.sequence);
      record.set_time_ns(line.time_ns);
      record.set_level(std::string(base::LevelName(line.level)));
      record.set_json(std::move(line.text));
      records.push_back(std::move(record));
      *cursor = line.sequence;
    }
    // The newest line is always kept: a cursor without even its own line is of an earlier agent.
    if (records.empty() && *cursor != 0 && base::ReadLog(*cursor - 1, 1).empty()) {
      return base::MakeError(ERANGE, "read log", std::to_string(*cursor), "beyond the newest line");
    }
    return records;
  };
  source.add_watch = base::AddLogWatch;
  source.remove_watch = base::RemoveLogWatch;
  return Feed<Record>::Start(
      core_.quick, std::make_shared<Call>("GuestService.Logs", Access::kRead, *context), std::move(source));
}

}  // namespace

BuiltService MakeGuestService(Core* core, GuestBackend backend) {
  return {std::make_unique<GuestService>(core, std::move(backend)),
          {"GuestService.Info", "GuestService.SetTime", "GuestService.AddEntropy", "GuestService.Shutdown",
           "GuestService.Sysctl", "GuestService.Logs", "GuestService.CopyIn", "GuestService.CopyOut"}};
}

}  // namespace gcs::rpc
