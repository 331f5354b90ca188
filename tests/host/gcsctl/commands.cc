// SPDX-License-Identifier: Apache-2.0
#include "host/gcsctl/commands.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "host/client/container.h"
#include "host/client/oci_config.h"
#include "host/gcsctl/output.h"
#include "host/gcsctl/run.h"
#include "host/gcsctl/share.h"

namespace gcs::gcsctl {

namespace {

constexpr int64_t kStopMs = 90'000;

const char* StatusName(v1::ContainerStatus status) {
  switch (status) {
    case v1::CONTAINER_STATUS_CREATING:
      return "creating";
    case v1::CONTAINER_STATUS_CREATED:
      return "created";
    case v1::CONTAINER_STATUS_RUNNING:
      return "running";
    case v1::CONTAINER_STATUS_PAUSED:
      return "paused";
    case v1::CONTAINER_STATUS_STOPPED:
      return "stopped";
    default:
      return "unknown";
  }
}

std::string ExitText(const v1::ExitStatus& exit) {
  std::string text = std::to_string(exit.exit_code());
  if (exit.signal() != 0) text += " (signal " + std::to_string(exit.signal()) + ")";
  if (exit.oom_killed()) text += " (out of memory)";
  return text;
}

// Does `act` for each id; the worst exit code.
template <typename Act>
int ForEach(const std::vector<std::string>& ids, const Act& act) {
  int code = 0;
  for (const std::string& id : ids) {
    if (const int one = act(id); one != 0) code = one;
  }
  return code;
}

void PrintMachine(const Machine& machine, bool running, bool json) {
  if (json) {
    const nlohmann::json out = {{"name", machine.name},
                                {"running", running},
                                {"machine", machine.machine},
                                {"accel", machine.accel},
                                {"memory_mib", machine.memory_mib},
                                {"qemu_pid", machine.qemu},
                                {"supervisor_pid", machine.supervisor},
                                {"run_dir", machine.run_dir},
                                {"image_dir", machine.image_dir},
                                {"boot_ms", static_cast<double>(machine.boot_ns) / 1e6},
                                {"started_at_ns", machine.started_at_ns}};
    printf("%s\n", out.dump().c_str());
    return;
  }
  if (!running) {
    printf("VM %s does not run\n", machine.name.c_str());
    return;
  }
  printf("VM %s runs: %s, %s, %u MiB, QEMU %d, booted in %s, up since %s\n  sockets %s\n",
         machine.name.c_str(), machine.machine.c_str(), machine.accel.c_str(), machine.memory_mib,
         machine.qemu, FormatDuration(machine.boot_ns).c_str(), FormatTime(machine.started_at_ns).c_str(),
         machine.run_dir.c_str());
}

std::string EventText(const v1::Event& event) {
  switch (event.event_case()) {
    case v1::Event::kCreated:
      return "created, pid " + std::to_string(event.created().pid());
    case v1::Event::kStarted:
      return "started";
    case v1::Event::kExited:
      return "exited, code " + ExitText(event.exited().exit());
    case v1::Event::kOom:
      return "out of memory, " + std::to_string(event.oom().kills()) + " killed";
    case v1::Event::kPaused:
      return "paused";
    case v1::Event::kResumed:
      return "resumed";
    case v1::Event::kUpdated:
      return "updated";
    case v1::Event::kDeleted:
      return "deleted";
    case v1::Event::kProcessStarted:
      return "process started, pid " + std::to_string(event.process_started().pid());
    case v1::Event::kDevice:
      return std::string(event.device().added() ? "device added " : "device removed ") +
             event.device().device();
    case v1::Event::kClock:
      return "clock stepped by " + std::to_string(event.clock().step_ns()) + " ns";
    case v1::Event::kAgentStarted:
      return "agent started, restarts " + std::to_string(event.agent_started().restarts());
    case v1::Event::kGap:
      return std::to_string(event.gap().lost()) + " events lost";
    case v1::Event::EVENT_NOT_SET:
      break;
  }
  return "an event that this gcsctl does not know";
}

}  // namespace

int VmStart(const StartOptions& options, bool json) {
  auto starting = Starting::Begin(options);
  if (!starting) return Report(starting.error());
  if (isatty(STDERR_FILENO) == 1) fprintf(stderr, "booting ...\r");
  const auto machine = starting->Finish();
  if (isatty(STDERR_FILENO) == 1) fputs("\033[K", stderr);
  if (!machine) return Report(machine.error());
  PrintMachine(*machine, true, json);
  return 0;
}

int VmStop(const std::string& name, bool force, uint32_t grace_ms) {
  const auto machine = RequireMachine(name);
  if (!machine) return Report(machine.error());
  if (!force) {
    host::Client client(machine->connector(), {.reconnect_timeout_ms = 2000});
    v1::ShutdownRequest request;
    request.set_grace_ms(grace_ms);
    if (machine->machine == "microvm") request.set_mode(v1::ShutdownRequest::MODE_REBOOT);
    if (const auto asked = client.Call(request); !asked) {
      Report(asked.error());
      force = true;
    }
  }
  if (force) {
    if (const auto quit = machine->control().Quit(); !quit) return Report(quit.error());
  }
  const auto gone = WaitGone(*machine, kStopMs);
  return gone ? 0 : Report(gone.error());
}

int VmStatus(const std::string& name, bool json) {
  const auto machine = FindMachine(name);
  if (!machine) return Report(machine.error());
  Machine none;
  none.name = name;
  PrintMachine(*machine ? **machine : none, machine->has_value(), json);
  return *machine ? 0 : 1;
}

int Info(const Machine& machine, bool json) {
  host::Client client(machine.connector());
  const auto info = client.Call(v1::InfoRequest());
  if (!info) return Report(info.error());
  if (json) {
    PrintJson(*info);
    return 0;
  }
  Table table({"agent", info->version() + ", commit " + info->commit().substr(0, 12) + ", inputs " +
                            info->input_hash()});
  table.Add({"kernel", Printable(info->kernel_release() + " " + info->kernel_version())});
  table.Add({"API", info->api_version() + ", " + std::to_string(info->features_size()) + " methods, over " +
                        info->transport()});
  table.Add({"up", FormatDuration(info->uptime_ns())});
  table.Add({"processors", std::to_string(info->cpus())});
  table.Add({"memory", FormatBytes(info->memory_available_bytes()) + " of " +
                           FormatBytes(info->memory_total_bytes()) + " available"});
  table.Add({"containers", std::to_string(info->containers())});
  table.Add({"agent restarts", std::to_string(info->agent_restarts())});
  table.Add({"refused connections", std::to_string(info->refused_connections())});
  int64_t last = 0;
  for (const v1::BootPhase& phase : info->boot_phases()) {
    table.Add({"boot: " + Printable(phase.name()), FormatDuration(phase.boottime_ns()) + "  (+" +
                                                       FormatDuration(phase.boottime_ns() - last) + ")"});
    last = phase.boottime_ns();
  }
  table.Print();
  return 0;
}

int ListContainers(const Machine& machine, bool json) {
  host::Client client(machine.connector());
  const auto list = client.Call(v1::ListContainersRequest());
  if (!list) return Report(list.error());
  if (json) {
    PrintJson(*list);
    return 0;
  }
  Table table({"CONTAINER", "STATUS", "PID", "CREATED", "EXIT", "COMMAND"});
  for (const v1::Container& container : list->containers()) {
    std::string command;
    for (const std::string& arg : container.args()) command += (command.empty() ? "" : " ") + arg;
    table.Add({container.container_id(), StatusName(container.status()),
               container.pid() == 0 ? "" : std::to_string(container.pid()),
               FormatAge(container.created_at_ns()), container.has_exit() ? ExitText(container.exit()) : "",
               Printable(command.substr(0, 60))});
  }
  table.Print();
  return 0;
}

int ListProcesses(const Machine& machine, const std::string& container_id, bool json) {
  host::Client client(machine.connector());
  v1::ListProcessesRequest request;
  request.set_container_id(container_id);
  const auto list = client.Call(request);
  if (!list) return Report(list.error());
  if (json) {
    PrintJson(*list);
    return 0;
  }
  Table table({"PID", "PROCESS", "UID", "RSS", "CPU", "EXIT", "COMMAND"});
  for (const v1::Process& process : list->processes()) {
    table.Add({std::to_string(process.pid()),
               process.process_id().empty() ? (process.managed() ? "(first)" : "") : process.process_id(),
               std::to_string(process.uid()), FormatBytes(process.rss_bytes()),
               FormatDuration(process.cpu_time_ns()), process.has_exit() ? ExitText(process.exit()) : "",
               Printable(process.command().substr(0, 60))});
  }
  table.Print();
  return 0;
}

int Kill(const Machine& machine, const std::vector<std::string>& ids, const std::string& signal, bool all) {
  const auto number = host::ParseSignal(signal);
  if (!number) return Report(number.error());
  host::Client client(machine.connector());
  return ForEach(ids, [&](const std::string& id) {
    v1::SignalContainerRequest request;
    request.set_container_id(id);
    request.set_signal(*number);
    request.set_all(all);
    const auto sent = client.Call(request);
    return sent ? 0 : Report(sent.error());
  });
}

int Wait(const Machine& machine, const std::vector<std::string>& ids, bool json) {
  host::Client client(machine.connector());
  return ForEach(ids, [&](const std::string& id) {
    v1::WaitContainerRequest request;
    request.set_container_id(id);
    const auto ended = client.Call(request, {.timeout_ms = 0});
    if (!ended) return Report(ended.error());
    if (json) {
      PrintJson(ended->exit());
    } else {
      printf("%d\n", ended->exit().exit_code());
    }
    return 0;
  });
}

int Remove(const Machine& machine, const std::vector<std::string>& ids, bool force) {
  host::Client client(machine.connector());
  int code = ForEach(ids, [&](const std::string& id) {
    v1::DeleteContainerRequest request;
    request.set_container_id(id);
    request.set_force(force);
    const auto deleted = client.Call(request);
    return deleted ? 0 : Report(deleted.error());
  });
  const host::VmControl control = machine.control();
  host::GuestStorage storage(client, control, machine.dir);
  if (const auto swept = storage.Sweep(); !swept) code = Report(swept.error());
  EndUnusedShares(client, machine);
  return code;
}

int Pause(const Machine& machine, const std::vector<std::string>& ids, bool resume) {
  host::Client client(machine.connector());
  return ForEach(ids, [&](const std::string& id) {
    if (resume) {
      v1::ResumeContainerRequest request;
      request.set_container_id(id);
      const auto done = client.Call(request);
      return done ? 0 : Report(done.error());
    }
    v1::PauseContainerRequest request;
    request.set_container_id(id);
    const auto done = client.Call(request);
    return done ? 0 : Report(done.error());
  });
}

int Stats(const Machine& machine, const std::vector<std::string>& ids, bool json) {
  host::Client client(machine.connector());
  v1::ContainerStatsRequest request;
  for (const std::string& id : ids) request.add_container_ids(id);
  const auto stats = client.Call(request);
  if (!stats) return Report(stats.error());
  if (json) {
    PrintJson(*stats);
    return 0;
  }
  Table table({"CONTAINER", "CPU", "THROTTLED", "MEMORY", "LIMIT", "PEAK", "PIDS", "OOM", "READ", "WRITTEN"});
  for (const v1::ContainerStats& one : stats->stats()) {
    uint64_t read = 0;
    uint64_t written = 0;
    for (const v1::IoStats& io : one.io()) {
      read += io.read_bytes();
      written += io.write_bytes();
    }
    const v1::MemoryStats& memory = one.memory();
    const uint64_t used = memory.usage_bytes() - std::min(memory.usage_bytes(), memory.inactive_file_bytes());
    table.Add({one.container_id(), FormatDuration(static_cast<int64_t>(one.cpu().usage_us()) * 1000),
               FormatDuration(static_cast<int64_t>(one.cpu().throttled_us()) * 1000), FormatBytes(used),
               memory.limit_bytes() == 0 ? "none" : FormatBytes(memory.limit_bytes()),
               FormatBytes(memory.peak_bytes()), std::to_string(one.pids().current()),
               std::to_string(memory.oom_kills()), FormatBytes(read), FormatBytes(written)});
  }
  table.Print();
  return 0;
}

int Events(const Machine& machine, uint64_t after, bool follow, bool json) {
  host::Client client(machine.connector());
  const auto watched = client.WatchEvents(after, follow, [json](const v1::Event& event) {
    if (json) {
      PrintJson(event);
    } else {
      std::string subject = event.container_id();
      if (!event.process_id().empty()) subject += "/" + event.process_id();
      printf("%llu %s %s %s\n", static_cast<unsigned long long>(event.sequence()),
             FormatTime(event.time_ns()).c_str(), subject.empty() ? "-" : Printable(subject).c_str(),
             Printable(EventText(event)).c_str());
      fflush(stdout);
    }
    return ferror(stdout) == 0;
  });
  return watched ? 0 : Report(watched.error());
}

int Logs(const Machine& machine, uint64_t after, bool follow, bool json) {
  host::Client client(machine.connector());
  const auto read = client.ReadLogs(after, follow, [json](const v1::LogRecord& record) {
    if (json) {
      PrintJson(record);
    } else {
      printf("%s %-7s %s\n", FormatTime(record.time_ns()).c_str(), record.level().c_str(),
             Printable(record.json()).c_str());
      fflush(stdout);
    }
    return ferror(stdout) == 0;
  });
  return read ? 0 : Report(read.error());
}

int Copy(const Machine& machine, const std::string& from, const std::string& to) {
  const bool in = from == "-";
  const std::string& place = in ? to : from;
  const size_t colon = place.find(':');
  if (in == (to == "-") || colon == std::string::npos) {
    return Report({"cp", EINVAL, from + " " + to, "one must be CONTAINER:PATH, the other - (a tar stream)"});
  }
  const std::string container = place.substr(0, colon);
  const std::string path = place.substr(colon + 1);
  host::Client client(machine.connector());
  if (in) {
    const auto copied = client.CopyIn(container, path, []() -> base::Result<std::string> {
      std::string piece(1 << 20, '\0');
      const ssize_t n = read(STDIN_FILENO, piece.data(), piece.size());
      if (n < 0) return base::ErrnoError("read", "stdin");
      piece.resize(n);
      return piece;
    });
    return copied ? 0 : Report(copied.error());
  }
  const auto copied = client.CopyOut(container, path, [](const std::string& piece) -> base::Result<> {
    for (size_t at = 0; at < piece.size();) {
      const ssize_t n = write(STDOUT_FILENO, piece.data() + at, piece.size() - at);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return base::ErrnoError("write", "stdout");
      at += n;
    }
    return {};
  });
  return copied ? 0 : Report(copied.error());
}

}  // namespace gcs::gcsctl
