// SPDX-License-Identifier: Apache-2.0
#include "host/gcsctl/run.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/clock.h"
#include "base/paths.h"
#include "host/cache.h"
#include "host/client/container.h"
#include "host/gcsctl/console.h"
#include "host/gcsctl/progress.h"
#include "host/gcsctl/share.h"
#include "host/image/image.h"

namespace gcs::gcsctl {

namespace {

constexpr char kLayersLabel[] = "gcsctl.layers";
constexpr char kImageLabel[] = "gcsctl.image";

// Durations by step, in order.
class Stopwatch {
 public:
  void Add(const char* step, int64_t ns) { steps_.emplace_back(step, ns); }
  // Since the last call or the beginning.
  void Lap(const char* step) {
    const int64_t now = base::MonotonicNs();
    Add(step, now - last_);
    last_ = now;
  }
  void Skip() { last_ = base::MonotonicNs(); }
  void Print(const std::string& where) const {
    if (steps_.empty()) return;
    const int64_t total = base::MonotonicNs() - begin_;
    if (where == "-") {
      fprintf(stderr, "\n  %-22s %10s\n", "where the time went", "ms");
      for (const auto& [step, ns] : steps_) {
        fprintf(stderr, "  %-22s %10.1f\n", step, static_cast<double>(ns) / 1e6);
      }
      fprintf(stderr, "  %-22s %10.1f\n", "all", static_cast<double>(total) / 1e6);
      return;
    }
    nlohmann::ordered_json json;
    for (const auto& [step, ns] : steps_) json[step] = static_cast<double>(ns) / 1e6;
    json["all"] = static_cast<double>(total) / 1e6;
    const auto written = base::ReplaceFile(where, json.dump(2) + "\n", 0644);
    if (!written) Report(written.error());
  }

 private:
  const int64_t begin_ = base::MonotonicNs();
  int64_t last_ = begin_;
  std::vector<std::pair<const char*, int64_t>> steps_;
};

struct Volume {
  std::string host, container;
  bool read_only = false;
};

base::Result<Volume> ParseVolume(const std::string& text) {
  Volume volume;
  std::string rest = text;
  if (rest.ends_with(":ro") || rest.ends_with(":rw")) {
    volume.read_only = rest.ends_with(":ro");
    rest.resize(rest.size() - 3);
  }
  // The container's path begins behind the last ":/".
  const size_t colon = rest.rfind(":/");
  if (colon == std::string::npos || colon == 0) {
    return base::MakeError(EINVAL, "parse volume", text, "HOST-DIRECTORY:/CONTAINER-PATH[:ro]");
  }
  volume.host = rest.substr(0, colon);
  volume.container = rest.substr(colon + 1);
  return volume;
}

// What one run has made in the guest before the container owns it.
class Undo {
 public:
  Undo(host::Client& client, host::GuestStorage& storage) : client_(client), storage_(storage) {}
  ~Undo() {
    if (!armed_) return;
    for (auto id = mounts_.rbegin(); id != mounts_.rend(); ++id) {
      v1::UnmountRequest request;
      request.set_mount_id(*id);
      if (const auto undone = client_.Call(request); !undone) Report(undone.error());
    }
    for (const Share& share : shares_) EndShare(share);
    if (const auto swept = storage_.Sweep(); !swept) Report(swept.error());
  }
  Undo(const Undo&) = delete;
  Undo& operator=(const Undo&) = delete;
  void Add(const std::string& id) { mounts_.push_back(id); }
  void Add(Share share) { shares_.push_back(std::move(share)); }
  void Disarm() {
    armed_ = false;
    shares_.clear();
  }

 private:
  host::Client& client_;
  host::GuestStorage& storage_;
  std::vector<std::string> mounts_;
  std::vector<Share> shares_;
  bool armed_ = true;
};

host::CallResult<host::BindMount> MountVolume(host::Client& client, const Machine& machine,
                                              const std::string& container_id, const std::string& text,
                                              const std::string& mount_id, Undo& undo) {
  const auto volume = ParseVolume(text);
  if (!volume) return std::unexpected(host::CallError{volume.error(), 0, false});
  auto share = StartShare(machine, container_id, volume->host, volume->read_only);
  if (!share) return std::unexpected(host::CallError{share.error(), 0, false});
  v1::MountShareRequest request;
  request.set_mount_id(mount_id);
  request.set_port(share->port);
  request.set_share_name(share->name);
  request.set_read_only(volume->read_only);
  undo.Add(std::move(*share));
  GCS_ASSIGN(const v1::MountShareResponse response, client.Call(request));
  undo.Add(mount_id);
  return host::BindMount{response.path(), volume->container, volume->read_only};
}

v1::StdioSpec MakeStdio(bool interactive, bool detach, bool terminal) {
  v1::StdioSpec spec;
  spec.mutable_stdin()->set_mode(interactive ? v1::StreamSpec::MODE_STREAM : v1::StreamSpec::MODE_NULL);
  spec.mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  if (!terminal) spec.mutable_stderr()->set_mode(v1::StreamSpec::MODE_STREAM);
  // Nobody may ever read a detached container's output: it must not stop at a full ring.
  if (detach) spec.set_overflow(v1::StdioSpec::OVERFLOW_DROP_OLDEST);
  return spec;
}

// One run in a VM that is up.
class Runner {
 public:
  Runner(RunOptions& options, const Machine& machine, const std::vector<std::string>& layers,
         const host::Image& image, Stopwatch& watch)
      : options_(options),
        machine_(machine),
        layers_(layers),
        image_(image),
        watch_(watch),
        control_(machine.control()),
        client_(machine.connector()),
        storage_(client_, control_, machine.dir) {}

  int Run() {
    id_ = options_.name.empty() ? host::NewUuid().substr(0, 8) + host::NewUuid().substr(0, 4) : options_.name;
    Undo undo(client_, storage_);
    if (const int code = Prepare(undo); code != 0) return code;
    if (const int code = Create(undo); code != 0) return code;
    return options_.detach ? StartOnly() : StartAndWait();
  }

 private:
  int Prepare(Undo& undo) {
    host::ContainerSettings& settings = options_.settings;
    const auto user = host::FindUser(options_.has_user ? options_.user : image_.config.user, layers_);
    if (!user) return Report(user.error());
    settings.user = *user;
    const auto root = storage_.MountRoot(id_, layers_, options_.scratch_bytes);
    if (!root) {
      undo.Disarm();
      // The scratch's file may be there; nothing else is.
      if (const auto swept = storage_.Sweep(); !swept) Report(swept.error());
      return Report(root.error());
    }
    settings.root_path = root->path;
    owned_ = root->mount_ids;
    for (const std::string& mount : owned_) undo.Add(mount);
    watch_.Skip();
    watch_.Add("layers plugged in", root->attach_ns);
    watch_.Add("layers mounted", root->mount_ns);
    watch_.Add("scratch", root->scratch_ns);
    watch_.Add("overlay", root->overlay_ns);
    for (size_t i = 0; i < options_.volumes.size(); ++i) {
      owned_.push_back("share-" + id_ + "-" + std::to_string(i));
      auto mount = MountVolume(client_, machine_, id_, options_.volumes[i], owned_.back(), undo);
      if (!mount) return Report(mount.error());
      settings.mounts.push_back(std::move(*mount));
    }
    if (!options_.volumes.empty()) watch_.Lap("shares");
    return 0;
  }

  int Create(Undo& undo) {
    host::ContainerSettings& settings = options_.settings;
    // A pod has a host name of its own.
    if (settings.hostname.empty() && options_.pod.empty()) settings.hostname = id_.substr(0, 63);
    const WindowSize size = TerminalSize();
    settings.width = size.width;
    settings.height = size.height;
    const auto config = host::MakeOciConfig(image_.config, settings);
    if (!config) return Report(config.error());
    v1::CreateContainerRequest request;
    request.set_container_id(id_);
    request.set_config_json(*config);
    request.set_pod_id(options_.pod);
    *request.mutable_stdio() = MakeStdio(options_.interactive, options_.detach, settings.terminal);
    for (const std::string& mount : owned_) request.add_owned_mounts(mount);
    (*request.mutable_labels())[kImageLabel] = options_.image;
    std::string joined;
    for (const std::string& layer : layers_) joined += (joined.empty() ? "" : ":") + layer;
    (*request.mutable_labels())[kLayersLabel] = joined;
    const auto created = client_.Call(request);
    if (!created) return ReportStart(created.error());
    undo.Disarm();
    watch_.Lap("create");
    return 0;
  }

  host::CallResult<> Start() {
    v1::StartContainerRequest request;
    request.set_container_id(id_);
    GCS_TRY(client_.Call(request));
    watch_.Lap("start");
    return {};
  }

  void Delete() {
    v1::DeleteContainerRequest request;
    request.set_container_id(id_);
    request.set_force(true);
    if (const auto deleted = client_.Call(request); !deleted) {
      Report(deleted.error());
      // Nobody answers: nothing can be swept either.
      if (!deleted.error().from_agent) return;
    }
    if (const auto swept = storage_.Sweep(); !swept) Report(swept.error());
    if (!options_.volumes.empty()) EndUnusedShares(client_, machine_);
    watch_.Lap("delete");
  }

  int StartOnly() {
    if (const auto started = Start(); !started) {
      Delete();
      return ReportStart(started.error());
    }
    printf("%s\n", id_.c_str());
    return 0;
  }

  int StartAndWait() {
    auto console = Console::Attach(client_, {.container_id = id_,
                                             .process_id = {},
                                             .in = options_.interactive,
                                             .err = !options_.settings.terminal,
                                             .terminal = options_.settings.terminal});
    if (!console) {
      Delete();
      return Report(console.error());
    }
    if (const auto started = Start(); !started) {
      console->reset();
      Delete();
      return ReportStart(started.error());
    }
    const auto exit = (*console)->Run();
    watch_.Lap("run");
    console->reset();
    if (!exit) Report(exit.error());
    // A failure of ours leaves no container, if its VM still runs.
    if (exit ? options_.remove : FindMachine(machine_.name).value_or(std::nullopt).has_value()) Delete();
    if (!exit) return kFailure;
    if (exit->oom_killed()) fprintf(stderr, "gcsctl: the container ran out of memory\n");
    return exit->exit_code();
  }

  RunOptions& options_;
  const Machine& machine_;
  const std::vector<std::string>& layers_;
  const host::Image& image_;
  Stopwatch& watch_;
  const host::VmControl control_;
  host::Client client_;
  host::GuestStorage storage_;
  std::string id_;
  std::vector<std::string> owned_;
};

// Ends a VM that was started for one container.
void StopOwn(const Machine& machine) {
  host::Client client(machine.connector());
  v1::ShutdownRequest request;
  request.set_grace_ms(1);
  if (machine.machine == "microvm") request.set_mode(v1::ShutdownRequest::MODE_REBOOT);
  if (const auto ended = client.Call(request); !ended) {
    Report(ended.error());
    if (const auto quit = machine.control().Quit(); !quit) Report(quit.error());
  }
  if (const auto gone = WaitGone(machine, 20'000); !gone) {
    Report(gone.error());
    if (const auto quit = machine.control().Quit(); !quit) Report(quit.error());
  }
}

}  // namespace

int Report(const base::Error& error) {
  fprintf(stderr, "gcsctl: %s\n", error.ToString().c_str());
  return kFailure;
}

int ReportStart(const base::Error& error) {
  Report(error);
  if (error.step != "find program" && error.step != "execve") return kFailure;
  return error.err == ENOENT || error.err == ENOTDIR ? kNotFound : kNotExecutable;
}

int Run(RunOptions options) {
  Stopwatch watch;
  auto machine = FindMachine(options.vm);
  if (!machine) return Report(machine.error());
  const bool own = !*machine;
  std::optional<Starting> starting;
  if (own) {
    if (options.detach)
      return Report(
          {"find vm", ENOENT, options.vm, "a detached container needs a running VM: gcsctl vm start"});
    // It goes with the VM.
    options.remove = true;
    options.start.name = "run-" + std::to_string(getpid());
    options.start.one_shot = true;
    auto begun = Starting::Begin(options.start);
    if (!begun) return Report(begun.error());
    starting = std::move(*begun);
  }
  // The VM boots meanwhile. No thread may start before BlockSignals.
  int code = kFailure;
  std::optional<Machine> vm = own ? std::nullopt : std::move(*machine);
  const auto run = [&]() -> int {
    const auto image = host::OpenImage(options.image);
    if (!image) return Report(image.error());
    const auto cache = host::CacheRoot();
    if (!cache) return Report(cache.error());
    Progress progress;
    const auto disks =
        host::ConvertLayers(*image, *cache, [&](const host::LayerProgress& state) { progress.Layer(state); });
    progress.Clear();
    if (!disks) return Report(disks.error());
    std::vector<std::string> layers;
    for (const host::LayerDisk& disk : *disks) layers.push_back(disk.path);
    watch.Lap("image to disks");
    host::ImageConfig config = image->config;
    if (options.has_entrypoint) {
      config.entrypoint =
          options.entrypoint.empty() ? std::vector<std::string>() : std::vector{options.entrypoint};
      config.cmd.clear();
    }
    options.settings.args = host::CommandLine(config, options.args);
    if (own) {
      auto started = starting->Finish();
      if (!started) return Report(started.error());
      vm = std::move(*started);
      watch.Add("boot (beside it)", vm->boot_ns);
      watch.Lap("wait for boot");
    }
    // Until here a signal ends us, and so the VM that is ours. What Runner makes in a guest must be undone.
    BlockSignals();
    return Runner(options, *vm, layers, *image, watch).Run();
  };
  code = run();
  watch.Skip();
  if (own && vm) {
    StopOwn(*vm);
    watch.Lap("VM stopped");
  }
  if (own && vm) RemoveMachineDir(*vm);
  if (own && !vm) starting->Abandon();
  if (!options.timings.empty()) watch.Print(options.timings);
  return code;
}

int Exec(const Machine& machine, const ExecOptions& options) {
  BlockSignals();
  host::Client client(machine.connector());
  host::ContainerSettings settings = options.settings;
  if (!options.user.empty()) {
    v1::ContainerStateRequest request;
    request.set_container_id(options.container_id);
    const auto state = client.Call(request);
    if (!state) return Report(state.error());
    std::vector<std::string> layers;
    const auto label = state->container().labels().find(kLayersLabel);
    if (label != state->container().labels().end()) {
      for (size_t at = 0; at <= label->second.size();) {
        const size_t end = std::min(label->second.find(':', at), label->second.size());
        layers.push_back(label->second.substr(at, end - at));
        at = end + 1;
      }
    }
    const auto user = host::FindUser(options.user, layers);
    if (!user) return Report(user.error());
    settings.user = *user;
  }
  const WindowSize size = TerminalSize();
  settings.width = size.width;
  settings.height = size.height;
  const auto process = host::MakeOciProcess(settings, !options.user.empty());
  if (!process) return Report(process.error());
  v1::ExecRequest request;
  request.set_container_id(options.container_id);
  request.set_process_id("exec-" + host::NewUuid().substr(0, 8));
  request.set_process_json(*process);
  *request.mutable_stdio() = MakeStdio(options.interactive, options.detach, settings.terminal);
  const auto started = client.Call(request);
  if (!started) return ReportStart(started.error());
  if (options.detach) {
    printf("%s\n", request.process_id().c_str());
    return 0;
  }
  auto console = Console::Attach(client, {.container_id = options.container_id,
                                          .process_id = request.process_id(),
                                          .in = options.interactive,
                                          .err = !settings.terminal,
                                          .terminal = settings.terminal});
  if (!console) return Report(console.error());
  const auto exit = (*console)->Run();
  if (!exit) return Report(exit.error());
  v1::DeleteProcessRequest forget;
  forget.set_container_id(options.container_id);
  forget.set_process_id(request.process_id());
  if (const auto deleted = client.Call(forget); !deleted) Report(deleted.error());
  return exit->exit_code();
}

int AttachTo(const Machine& machine, const std::string& container_id) {
  BlockSignals();
  host::Client client(machine.connector());
  ConsoleOptions options = {
      .container_id = container_id, .process_id = {}, .in = false, .err = true, .terminal = false};
  auto console = Console::Attach(client, options);
  if (!console && console.error().from_agent && console.error().err == EINVAL) {
    // It has a terminal, which the container's state does not tell.
    options.err = false;
    console = Console::Attach(client, options);
  }
  if (!console) return Report(console.error());
  const auto exit = (*console)->Run();
  if (!exit) return Report(exit.error());
  return exit->exit_code();
}

}  // namespace gcs::gcsctl
