// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/loop.h"
#include "engine/cgroup.h"
#include "engine/engine.h"
#include "guest/exit_status.h"
#include "guest/journal.h"
#include "guest/keep.h"
#include "guest/pods.h"
#include "stdio/process_io.h"
#include "storage/storage.h"
#include "transport/dialer.h"

namespace gcs::guest {

enum class ContainerStatus : uint8_t {
  kCreating = 1,
  kCreated,
  kRunning,
  kPaused,
  kStopped
};  // as in containers.proto

// Where a stream goes, before anything is dialled; StreamSpec of common.proto.
struct StreamRequest {
  stdio::Mode mode = stdio::Mode::kNull;
  uint32_t port = 0;  // kSocket: port on the host
};

struct StdioRequest {
  StreamRequest in, out, err;
  stdio::Overflow overflow = stdio::Overflow::kBlock;
  uint64_t ring_bytes = 0;
};

using Timing = engine::Timing;  // {step, duration_ns}

struct CreateContainer {
  std::string container_id;
  std::string config_json;
  StdioRequest stdio;
  std::vector<std::pair<std::string, std::string>> labels;
  std::vector<std::string> owned_mounts;
  std::string pod_id;  // empty: none
  bool allow_vsock = false;
  int cancel_fd = -1;  // readable (an eventfd): whoever asked has gone, so nothing is to be left
};

struct ExecProcess {
  std::string container_id;
  std::string process_id;
  std::string process_json;
  StdioRequest stdio;
  int cancel_fd = -1;  // as in CreateContainer
};

struct Spawned {
  int pid = 0;
  std::vector<Timing> timings;
};

struct ContainerInfo {
  std::string container_id;
  ContainerStatus status = ContainerStatus::kCreating;
  int pid = 0;
  int64_t created_at_ns = 0;
  int64_t started_at_ns = 0;
  std::optional<ExitStatus> exit;
  std::vector<std::pair<std::string, std::string>> labels;
  std::vector<std::string> args;
  std::string root_path;
  std::string cgroup_path;
  std::string pod_id;
};

struct ProcessInfo {
  std::string process_id;
  int pid = 0;
  bool managed = false;
  std::string command;
  std::optional<ExitStatus> exit;
  uint32_t uid = 0;
  uint64_t rss_bytes = 0;
  int64_t cpu_time_ns = 0;
  int64_t started_at_ns = 0;
};

struct ContainerStats {
  std::string container_id;
  engine::CgroupStats stats;
};

class Container;
class Process;
struct ContainerRecord;

// All containers of the VM. Any thread may call anything. Calls block for as long as their work takes (so: on
// a pool thread), but Wait, Signal, List, State and Attach never wait for a Create, Start, Delete, Pause or
// Stats of the same container.
//
// Errors: ENOENT "find container"/"find process"; EEXIST id in use; EINVAL bad id or configuration (object:
// the JSON path); EBUSY wrong state (step names the act, message the state); ESRCH signal to a process that
// has ended; ETIMEDOUT, ECANCELED, and what the engine says.
class Containers {
 public:
  struct Backends {
    base::Loop* loop;  // exits, stdio; must run until after ~Containers
    engine::Engine* engine;
    storage::Storage* storage;
    Journal* journal;
    transport::Dialer* dialer;
    Pods* pods;
    Keep* keep = nullptr;  // null: nothing outlives the agent
  };
  explicit Containers(Backends backends);
  ~Containers();  // kills and removes what is left
  Containers(const Containers&) = delete;
  Containers& operator=(const Containers&) = delete;

  // Takes over what an agent that crashed has left of its containers, before anything else is called: they
  // run on, their streams go on, an exit that happened meanwhile is told. Returns what is left to be done for
  // those that it was in the middle of starting or deleting: to be run on pool threads once the loop runs.
  std::vector<std::function<void()>> Restore(std::vector<Keep::Entry> entries);
  // cgroups of all containers that there are.
  [[nodiscard]] std::vector<std::string> CgroupPaths() const;

  base::Result<Spawned> Create(const CreateContainer& request, int64_t deadline_ns);
  base::Result<std::vector<Timing>> Start(const std::string& container_id, int64_t deadline_ns);
  // `force`: SIGKILL to everything in it first, whatever else is being done with it. Mounts that the
  // container owns go with it.
  base::Result<std::vector<Timing>> Delete(const std::string& container_id, bool force, int64_t deadline_ns);

  // Calls `done` once with the exit record: at once if the process has ended, else on the loop's thread when
  // it does. An unknown process or one that is deleted meanwhile gives an error. CancelWait (any thread)
  // drops the callback; it may be running just then.
  using WaitCallback = std::function<void(base::Result<ExitStatus>)>;
  uint64_t Wait(const std::string& container_id, const std::string& process_id, WaitCallback done);
  void CancelWait(uint64_t wait);

  base::Result<> Signal(const std::string& container_id, const std::string& process_id, int signal);
  base::Result<> SignalAll(const std::string& container_id, int signal);

  std::vector<ContainerInfo> List() const;
  base::Result<ContainerInfo> State(const std::string& container_id) const;
  // The state object of the OCI runtime specification.
  base::Result<std::string> OciState(const std::string& container_id) const;
  size_t count() const;

  base::Result<> Pause(const std::string& container_id, int64_t deadline_ns);
  base::Result<> Resume(const std::string& container_id, int64_t deadline_ns);
  base::Result<> Update(const std::string& container_id, const std::string& resources_json,
                        int64_t deadline_ns);
  // No ids: all containers. One that is deleted meanwhile is left out unless it was asked for by name.
  base::Result<std::vector<ContainerStats>> Stats(const std::vector<std::string>& container_ids) const;

  base::Result<Spawned> Exec(const ExecProcess& request, int64_t deadline_ns);
  base::Result<std::vector<ProcessInfo>> ListProcesses(const std::string& container_id) const;
  base::Result<> DeleteProcess(const std::string& container_id, const std::string& process_id);
  base::Result<> Resize(const std::string& container_id, const std::string& process_id, uint32_t width,
                        uint32_t height);
  base::Result<std::unique_ptr<stdio::Session>> Attach(const std::string& container_id,
                                                       const std::string& process_id,
                                                       stdio::AttachOptions options);

  // The container's root file system for copying, as a mount of its own that keeps nobody from deleting the
  // container: root.path of its configuration without what is mounted below it. EROFS to write to one that is
  // read-only.
  base::Result<base::Fd> OpenRoot(const std::string& container_id, bool write) const;

 private:
  base::Result<std::shared_ptr<Container>> Find(const std::string& container_id) const;
  base::Result<std::shared_ptr<Process>> FindProcess(const std::string& container_id,
                                                     const std::string& process_id) const;
  base::Result<stdio::Config> MakeStdio(const std::string& name, const StdioRequest& request,
                                        const engine::Process& process, int64_t deadline_ns, int cancel_fd);
  void Tell(const Container& container, const std::string& process_id, EventBody body);
  base::Result<> KeepContainer(Container& container, const CreateContainer& request);
  void ForgetKept(const std::string& container_id);
  // Of a container that an agent that crashed left without a cgroup or a process.
  void FinishRemoval(const std::string& container_id, const std::vector<std::string>& owned,
                     const std::string& pod_id);
  base::Result<std::shared_ptr<Container>> RestoreContainer(const std::string& container_id,
                                                            const std::string& config,
                                                            ContainerRecord record);
  base::Result<std::shared_ptr<Process>> RestoreProcess(Container& container, const std::string& process_id,
                                                        Keep::Entry entry);
  void Watch(const std::shared_ptr<Container>& container, const std::shared_ptr<Process>& process);
  void WatchMemory(const std::shared_ptr<Container>& container);
  void ForgetMemory(const std::shared_ptr<Container>& container);
  void OnExit(const std::shared_ptr<Container>& container, const std::shared_ptr<Process>& process);
  void Collect(const std::shared_ptr<Container>& container, const std::shared_ptr<Process>& process,
               int64_t retry_ns);
  void Finish(const std::shared_ptr<Container>& container, const std::shared_ptr<Process>& process,
              const ExitStatus& exit);

  const Backends backends_;
  mutable std::mutex mutex_;  // guards the tables, never held across a kernel call that can block
  std::map<std::string, std::shared_ptr<Container>> containers_;
  std::map<uint64_t, std::weak_ptr<Process>> waits_;
  uint64_t next_wait_ = 1;
};

}  // namespace gcs::guest
