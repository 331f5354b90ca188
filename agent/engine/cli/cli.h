// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/cli/store.h"
#include "engine/engine.h"

// runc's commands over the engine. Each returns the exit code, or the error that becomes 1, of exec 255
// (runc's for its own failures).
namespace gcs::oci {

inline constexpr char kVersion[] = "1.0.0";
inline constexpr char kCgroupMount[] = "/sys/fs/cgroup";

struct Global {
  std::string root = "/run/gcs-oci";
  std::string log;  // file for messages; empty: standard error only
  std::string log_format = "text";
  bool debug = false;
};

// Where a process's streams and the runtime's files go.
struct ProcessOptions {
  std::string pid_file;
  std::string console_socket;
  int preserve_fds = 0;
  bool detach = false;
};

struct CreateCommand {
  std::string id;
  std::string bundle = ".";
  ProcessOptions process;
  bool no_new_keyring = false;
  bool keep = false;  // run: no delete at the end
};

struct ExecCommand {
  std::string id;
  ProcessOptions options;
  std::string process_file;
  std::vector<std::string> args;
  bool tty = false;
  bool has_user = false;  // an empty one is none that somebody forgot: it must not mean the container's
  std::string user, cwd, apparmor, selinux;
  std::string cgroup;  // below the container's; empty: that one
  std::vector<std::string> env, capabilities;
  std::vector<uint32_t> additional_gids;
  bool no_new_privileges = false;
  bool ignore_paused = false;
};

struct UpdateCommand {
  std::string id;
  std::string file;                             // "-": standard input
  base::Json resources = base::Json::object();  // of the flags, over the file's
};

base::Result<int> Create(const Global& global, const CreateCommand& command,
                         std::unique_ptr<engine::Zygote> zygote);
base::Result<int> Run(const Global& global, const CreateCommand& command,
                      std::unique_ptr<engine::Zygote> zygote);
base::Result<int> Start(const Global& global, const std::string& id);
base::Result<int> Kill(const Global& global, const std::string& id, const std::string& signal, bool all);
base::Result<int> Delete(const Global& global, const std::string& id, bool force);
base::Result<int> Exec(const Global& global, const ExecCommand& command,
                       std::unique_ptr<engine::Zygote> zygote);
base::Result<int> State(const Global& global, const std::string& id);
base::Result<int> List(const Global& global, const std::string& format, bool quiet);
// With options: what ps(1) of the machine tells about the processes.
base::Result<int> Ps(const Global& global, const std::string& id, const std::string& format,
                     const std::vector<std::string>& options);
base::Result<int> Pause(const Global& global, const std::string& id, bool frozen);
base::Result<int> Update(const Global& global, const UpdateCommand& command);
base::Result<int> Events(const Global& global, const std::string& id, bool stats, int64_t interval_ns);
base::Result<int> WriteSpec(const std::string& bundle);
base::Result<int> Features();

// What the commands share.

// A container of the store: its state, configuration and cgroup (null if that is gone).
struct Loaded {
  Store store;
  Record record;
  Status status = Status::kStopped;
  std::unique_ptr<engine::CgroupRoot> cgroups;  // which the container's cgroup points into
  engine::EngineContainer container;
  base::Fd pidfd;  // of a process that lives
};
base::Result<Loaded> Load(const Global& global, const std::string& id, Access access);
base::Result<Loaded> Load(Store store);
base::Result<std::unique_ptr<engine::Engine>> MakeEngine(std::unique_ptr<engine::Zygote> zygote);
base::Json StateOf(const Loaded& loaded);

// The number of "KILL", "SIGKILL" or "9".
base::Result<int> ParseSignal(const std::string& name);
struct UserIds {
  uint32_t uid = 0;
  std::optional<uint32_t> gid;
};
// "UID[:GID]", decimal and nothing else: never root by accident (CVE-2026-30892).
base::Result<UserIds> ParseUser(const std::string& text);
base::Result<> WritePidFile(const std::string& path, int pid);
// Sends the pty's master to the process that listens at `socket`.
base::Result<> SendConsole(const std::string& socket, const base::Fd& master);
// Waits for the process, forwarding signals to it and, with a master, copying between that and our terminal.
// The exit code as a shell has it. Signals must have been blocked by BlockSignals before.
base::Result<int> Attend(int pidfd, base::Fd master);
void BlockSignals();
// How the streams of a new process are had: ours, or a terminal.
base::Result<> CheckTerminal(bool terminal, const ProcessOptions& options);
// Those from 3 on: `listened` sockets (sd_listen_fds(3)) and then what --preserve-fds counts. To be called
// before anything is opened, as that would be handed on in the place of one that is missing.
base::Result<std::vector<int>> PreservedFds(const ProcessOptions& options, int listened);
int64_t Deadline(int64_t seconds);

}  // namespace gcs::oci
