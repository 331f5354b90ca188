// SPDX-License-Identifier: Apache-2.0
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/paths.h"
#include "engine/engine.h"
#include "engine/zygote.h"
#include "gcs/options.h"
#include "gcs/version.h"
#include "guest/containers.h"
#include "guest/device_events.h"
#include "guest/info.h"
#include "guest/init_line.h"
#include "guest/journal.h"
#include "guest/keep.h"
#include "guest/leftovers.h"
#include "guest/pods.h"
#include "rpc/recover.h"
#include "rpc/server.h"
#include "rpc/services.h"
#include "storage/storage.h"
#include "transport/dialer.h"
#include "transport/listener.h"

namespace gcs {
namespace {

constexpr size_t kQuickThreads = 4;
constexpr size_t kWorkThreads = 16;
constexpr size_t kStorageThreads = 32;
constexpr int64_t kReadyTimeoutNs = 10 * base::kNsPerSec;
constexpr int64_t kLeftoversTimeoutNs = 5 * base::kNsPerSec;
// Well below what init gives the agent between SIGTERM and SIGKILL (agent/init/shutdown.cc: 1 s).
constexpr int64_t kShutdownGraceMs = 300;

// What the process needs whatever it serves. Before the first thread.
base::Result<> PrepareProcess(const Options& options) {
  signal(SIGPIPE, SIG_IGN);
  // Not to be traced or read through /proc by anything less than root, and no core dump of what it holds.
  if (prctl(PR_SET_DUMPABLE, 0) != 0) return base::ErrnoError("prctl PR_SET_DUMPABLE");
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return base::ErrnoError("getrlimit RLIMIT_NOFILE");
  files.rlim_cur = files.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &files) != 0) return base::ErrnoError("setrlimit RLIMIT_NOFILE");
  return base::MakeDirs(options.state_dir, 0700);
}

// Tells the host, once, that the API is up. A host that doesn't listen has asked for nothing.
void TellReady(transport::Dialer* dialer, uint32_t port) {
  auto connection = dialer->Dial(port, base::MonotonicNs() + kReadyTimeoutNs);
  if (!connection) {
    base::LogError("ready port", connection.error());
    return;
  }
  const std::string line = std::string("ready ") + kVersion + "\n";
  if (write(connection->get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    base::LogError("ready port", base::Error{"write", errno, std::to_string(port), {}});
  }
}

constexpr std::string_view kMountKey = "mount/";

// The mounts among the entries; takes them out.
void RestoreMounts(guest::Keep& keep, storage::Storage& storage, std::vector<guest::Keep::Entry>& entries) {
  for (guest::Keep::Entry& entry : entries) {
    if (!entry.key.starts_with(kMountKey)) continue;
    base::Fd connection = entry.fds.empty() ? base::Fd() : std::move(entry.fds[0]);
    const std::string id = entry.key.substr(kMountKey.size());
    if (auto restored = storage.Restore(id, entry.value, std::move(connection)); !restored) {
      base::LogError("restore mount", restored.error());
      keep.Remove(entry.key);
    }
  }
  std::erase_if(entries, [](const guest::Keep::Entry& entry) { return entry.key.starts_with(kMountKey); });
}

// What the agent before this one left when it crashed and could not be taken over. Only in a machine that is
// the agent's alone, which is where init starts it. Trouble is no reason not to serve.
void RemoveLeftovers(storage::Storage& storage, const guest::Containers& containers,
                     const guest::Pods& pods) {
  const int64_t deadline_ns = base::MonotonicNs() + kLeftoversTimeoutNs;
  guest::LeftoverCgroups left;
  left.living = containers.CgroupPaths();
  std::ranges::move(pods.CgroupPaths(), std::back_inserter(left.living));
  const auto cgroups = guest::RemoveLeftovers(left, deadline_ns);
  if (!cgroups) base::LogError("containers of an earlier agent", cgroups.error());
  // Not in vain after a container that does not end: the mounts of others may go.
  const auto mounts =
      storage.ReleaseLeftovers({.deadline_ns = base::MonotonicNs() + kLeftoversTimeoutNs, .cancel_fd = -1});
  if (!mounts) base::LogError("mounts of an earlier agent", mounts.error());
  if (cgroups.value_or(0) + mounts.value_or(0) == 0) return;
  base::Log(
      base::Level::kWarn, "removed what an earlier agent left",
      {{"cgroups", std::to_string(cgroups.value_or(0))}, {"mounts", std::to_string(mounts.value_or(0))}});
}

base::Result<> Serve(const Options& options) {
  GCS_ASSIGN(std::unique_ptr<guest::InitLine> init, guest::InitLine::FromEnvironment());

  // The zygote is forked here, while this is the only thread, no signal is blocked or ignored and nothing is
  // open but descriptors 0-2 and the line to init.
  std::unique_ptr<engine::Engine> engine;
  if (options.containers) {
    GCS_ASSIGN(std::unique_ptr<engine::Zygote> zygote, engine::Zygote::Start());
    GCS_ASSIGN(engine, engine::Engine::Create({.spare_networks = 4}, std::move(zygote)));
  }
  // After the fork: containers must not inherit the agent's limits and ignored signals.
  GCS_TRY(PrepareProcess(options));
  if (engine != nullptr) GCS_TRY(engine->AwaitReady());

  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (sigprocmask(SIG_BLOCK, &signals, nullptr) != 0) return base::ErrnoError("sigprocmask");
  const base::Fd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signal_fd) return base::ErrnoError("signalfd");

  GCS_ASSIGN(const std::unique_ptr<base::Loop> loop, base::Loop::Create());
  GCS_TRY(loop->Add(signal_fd.get(), EPOLLIN, [&](uint32_t) {
    loop->Remove(signal_fd.get());  // never read, it would keep the last rounds of the loop from waiting
    loop->Stop();
  }));

  const std::unique_ptr<transport::Dialer> dialer =
      options.dial_unix.empty() ? transport::VsockDialer() : transport::UnixDialer(options.dial_unix);
  std::unique_ptr<guest::Keep> keep;
  std::vector<guest::Keep::Entry> kept;
  if (init->connected() && options.containers) {
    GCS_ASSIGN(keep, guest::Keep::Open(init.get()));
    kept = keep->TakeEntries();
  }
  guest::Journal journal({}, keep.get());
  journal.Restore(kept);
  uint32_t restarts = 0;
  if (init->connected()) {
    GCS_ASSIGN(restarts, init->Restarts());
  }
  journal.Append({}, {}, guest::AgentStarted{restarts});
  const auto devices = guest::DeviceEvents::Start(loop.get(), &journal);
  if (!devices) base::LogError("device events", devices.error());

  const std::string pods_dir = options.state_dir + "/pods";
  // Declared before the pools: their destructors run what is queued, which may use all of this.
  storage::StorageOptions storage_options{.default_dir = options.state_dir + "/mounts",
                                          .target_roots = {options.state_dir},
                                          .reserved = {pods_dir}};
  if (keep != nullptr) {
    storage_options.keep = [&keep](const std::string& id, const std::string& text, int connection) {
      const std::array fds{connection};
      return keep->Put(std::string(kMountKey) + id, text, std::span(fds).first(connection < 0 ? 0 : 1));
    };
    storage_options.forget = [&keep](const std::string& id) { keep->Remove(std::string(kMountKey) + id); };
  }
  storage::Storage storage(std::move(storage_options));
  std::unique_ptr<guest::Pods> pods;
  std::unique_ptr<guest::Containers> containers;
  rpc::Core core;
  std::vector<rpc::RequestCache::Open> open_calls;
  std::vector<std::function<void()>> unfinished;
  if (options.containers) {
    pods = std::make_unique<guest::Pods>(guest::Pods::Options{.dir = pods_dir}, engine.get(), keep.get());
    containers = std::make_unique<guest::Containers>(guest::Containers::Backends{
        loop.get(), engine.get(), &storage, &journal, dialer.get(), pods.get(), keep.get()});
  }
  if (keep != nullptr) {
    open_calls = core.requests.KeepIn(keep.get(), kept, base::MonotonicNs());
    RestoreMounts(*keep, storage, kept);
    pods->Restore(kept);
    unfinished = containers->Restore(std::move(kept));
    RemoveLeftovers(storage, *containers, *pods);
  }
  std::unique_ptr<rpc::Server> server;
  std::vector<std::unique_ptr<transport::Listener>> listeners;
  base::Pool quick_pool(kQuickThreads);
  base::Pool work_pool(kWorkThreads);
  base::Pool storage_pool(kStorageThreads);
  core.quick = &quick_pool;
  core.work = &work_pool;
  core.storage = &storage_pool;

  guest::Sysctls sysctls([&engine] {
    if (engine != nullptr) engine->DropSpareNetworks();
  });
  rpc::RouteGrpcLog();
  const auto features = std::make_shared<std::vector<std::string>>();
  rpc::GuestBackend guest_backend;
  guest_backend.version = kVersion;
  guest_backend.commit = kCommit;
  guest_backend.input_hash = kInputHash;
  guest_backend.boot_file = options.state_dir + "/boot";
  guest_backend.restarts = restarts;
  guest_backend.init = init.get();
  guest_backend.journal = &journal;
  guest_backend.sysctls = &sysctls;
  guest_backend.containers = [&containers] {
    return containers == nullptr ? 0U : static_cast<uint32_t>(containers->count());
  };
  guest_backend.copy_containers = containers.get();
  guest_backend.refused_connections = [&listeners] {
    uint64_t refused = 0;
    for (const auto& listener : listeners) refused += listener->refused();
    return refused;
  };
  guest_backend.transport_of = [&server](const std::string& peer) { return server->TransportOf(peer); };
  guest_backend.features = features;

  std::vector<rpc::BuiltService> services;
  services.push_back(rpc::MakeGuestService(&core, std::move(guest_backend)));
  services.push_back(rpc::MakeEventService(&core, &journal));
  if (containers != nullptr) {
    services.push_back(rpc::MakeContainerService(&core, containers.get()));
    services.push_back(rpc::MakeProcessService(&core, containers.get()));
    services.push_back(rpc::MakeStdioService(&core, containers.get()));
    services.push_back(rpc::MakeStorageService(&core, &storage, dialer.get()));
    services.push_back(rpc::MakePodService(&core, pods.get()));
    services.push_back(rpc::MakeNetworkService(&core, pods.get()));
  }
  for (const rpc::BuiltService& service : services) {
    features->insert(features->end(), service.features.begin(), service.features.end());
  }
  std::sort(features->begin(), features->end());
  GCS_ASSIGN(server, rpc::Server::Create({.keepalive_time_ms = options.keepalive_time_ms,
                                          .keepalive_timeout_ms = options.keepalive_timeout_ms},
                                         std::move(services)));

  size_t listening = 0;
  const auto listen = [&](transport::Endpoint endpoint) {
    const bool vsock = endpoint.kind == transport::Kind::kVsock;
    transport::Listener::Callbacks callbacks;
    callbacks.on_connection = [&server, vsock](base::Fd connection) {
      // Looked up each time: the driver may have appeared after the agent.
      server->Adopt(std::move(connection), vsock ? guest::VsockTransport() : "unix");
    };
    callbacks.on_listening = [&] {
      if (++listening < listeners.size() || options.ready_port == 0) return;
      work_pool.Post([&dialer, port = options.ready_port] { TellReady(dialer.get(), port); });
    };
    listeners.push_back(
        std::make_unique<transport::Listener>(loop.get(), std::move(endpoint), std::move(callbacks)));
  };
  if (options.port != 0) listen(transport::Endpoint::Vsock(options.port));
  if (!options.listen_unix.empty()) listen(transport::Endpoint::Unix(options.listen_unix));
  for (const auto& listener : listeners) listener->Start();
  if (!open_calls.empty() || !unfinished.empty()) {
    // In this order: what the calls were at is done or undone when they are answered.
    work_pool.Post([&, tasks = std::move(unfinished)] {
      for (const auto& task : tasks) task();
      rpc::EndOpenCalls(core.requests, open_calls, *containers, *pods, storage, journal);
    });
  }

  loop->Run();

  base::Log(base::Level::kInfo, "ending");
  for (const auto& listener : listeners) listener->Stop();
  // Calls in progress may wait for what only the loop brings them: exits, output.
  std::atomic<bool> ended = false;
  std::thread ending([&] {
    server->Shutdown(kShutdownGraceMs);
    ended = true;
    loop->Post([] {});
  });
  while (!ended) loop->RunOnce(100);
  ending.join();
  return {};
}

}  // namespace
}  // namespace gcs

int main(int argc, char** argv) {
  int exit_code = 0;
  const auto options = gcs::ParseOptions(argc, argv, &exit_code);
  if (!options) return exit_code;
  gcs::base::SetLogOutput(2, options->log_format, options->log_level);
  if (const auto own = gcs::base::OwnLogOutput(); !own) gcs::base::LogError("log may block", own.error());
  gcs::base::Log(gcs::base::Level::kInfo, "gcs starts",
                 {{"version", gcs::kVersion}, {"commit", gcs::kCommit}, {"pid", std::to_string(getpid())}});
  if (const auto served = gcs::Serve(*options); !served) {
    gcs::base::LogError("gcs fails", served.error());
    return 1;
  }
  return 0;
}
