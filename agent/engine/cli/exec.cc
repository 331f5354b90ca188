// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include "base/paths.h"
#include "engine/cli/cli.h"

namespace gcs::oci {

using base::Fd;
using base::Json;
using base::MakeError;
using base::Result;

namespace {

constexpr int64_t kExecSeconds = 60;

Result<engine::Process> MakeProcess(const ExecCommand& command, const engine::Process& defaults) {
  if (!command.process_file.empty()) {
    GCS_ASSIGN(const std::string text, base::ReadFile(command.process_file, 16 << 20));
    // A file says all: nothing comes from the container but what the specification has no place for.
    return engine::ParseProcess(text, engine::Process{});
  }
  if (command.args.empty()) return MakeError(EINVAL, "exec", command.id, "process args cannot be empty");
  Json process{{"args", command.args}, {"terminal", command.tty}};
  if (command.has_user) {
    GCS_ASSIGN(const UserIds user, ParseUser(command.user));
    process["user"]["uid"] = user.uid;
    if (user.gid) process["user"]["gid"] = *user.gid;
  }
  if (!command.additional_gids.empty()) process["user"]["additionalGids"] = command.additional_gids;
  if (!command.cwd.empty()) process["cwd"] = command.cwd;
  if (!command.apparmor.empty()) process["apparmorProfile"] = command.apparmor;
  if (!command.selinux.empty()) process["selinuxLabel"] = command.selinux;
  if (command.no_new_privileges) process["noNewPrivileges"] = true;
  engine::Process merged = defaults;
  for (const std::string& variable : command.env) {
    if (variable.find('=', 1) == std::string::npos || variable[0] == '=')
      return MakeError(EINVAL, "set environment", variable, "must be NAME=value");
  }
  // The last of two with one name counts.
  merged.env.insert(merged.env.end(), command.env.begin(), command.env.end());
  GCS_ASSIGN(engine::Process parsed, engine::ParseProcess(process.dump(), merged));
  if (!command.capabilities.empty()) {
    const Json added{{"args", {"x"}}, {"capabilities", {{"bounding", command.capabilities}}}};
    GCS_ASSIGN(const engine::Process extra, engine::ParseProcess(added.dump(), engine::Process{}));
    // To what can be used, not to what is handed on (CVE-2022-29162): the inheritable set stays.
    const uint64_t set = extra.capabilities.bounding;
    parsed.capabilities.bounding |= set;
    parsed.capabilities.permitted |= set;
    parsed.capabilities.effective |= set;
  }
  return parsed;
}

// The cgroup of the process: the container's, or one below it, where ".." leads no further up.
Result<std::string> CgroupFor(const ExecCommand& command, const Record& record) {
  if (command.cgroup.find(':') != std::string::npos) {
    return MakeError(EOPNOTSUPP, "exec", "--cgroup", "one for each controller is not supported");
  }
  const std::string below = engine::CleanPath(command.cgroup);
  return below == "/" ? record.cgroup_path : record.cgroup_path + below;
}

}  // namespace

Result<int> Exec(const Global& global, const ExecCommand& command, std::unique_ptr<engine::Zygote> zygote) {
  GCS_ASSIGN(std::vector<int> preserved, PreservedFds(command.options, 0));
  if (!command.options.detach) BlockSignals();
  GCS_ASSIGN(const std::unique_ptr<engine::Engine> engine, MakeEngine(std::move(zygote)));
  engine::EngineContainer container;
  Fd pidfd;
  {
    GCS_ASSIGN(Loaded loaded, Load(global, command.id, Access::kRead));
    if (loaded.status == Status::kStopped || loaded.status == Status::kCreating) {
      return MakeError(ESRCH, "exec", command.id,
                       "cannot exec in a " + std::string(StatusName(loaded.status)) + " container");
    }
    if (loaded.status == Status::kPaused && !command.ignore_paused) {
      return MakeError(EBUSY, "exec", command.id,
                       "cannot exec in a paused container (use --ignore-paused to override)");
    }
    pidfd = std::move(loaded.pidfd);
    GCS_ASSIGN(const std::string cgroup, CgroupFor(command, loaded.record));
    GCS_ASSIGN(container,
               engine->Adopt(command.id, std::move(loaded.container.spec), cgroup, loaded.record.bundle));
  }
  GCS_ASSIGN(engine::Process process, MakeProcess(command, *container.spec.process));
  GCS_TRY(CheckTerminal(process.terminal, command.options));
  GCS_ASSIGN(engine::ChildProcess child, engine->Exec(container, process,
                                                      {.stdio = {0, 1, 2},
                                                       .preserved = std::move(preserved),
                                                       .init_pidfd = pidfd.get(),
                                                       .deadline_ns = Deadline(kExecSeconds)}));
  const auto fail = [&](base::Error error) -> std::unexpected<base::Error> {
    child.Kill();
    return std::unexpected(std::move(error));
  };
  Fd console;
  if (process.terminal) {
    console = child.TakeConsole();
    if (!command.options.console_socket.empty()) {
      if (auto sent = SendConsole(command.options.console_socket, console); !sent) return fail(sent.error());
      console.Reset();
    }
  }
  if (auto written = WritePidFile(command.options.pid_file, child.pid()); !written)
    return fail(written.error());
  if (auto started = child.Start(Deadline(kExecSeconds)); !started) return fail(started.error());
  if (command.options.detach) return 0;
  return Attend(child.pidfd(), std::move(console));
}

}  // namespace gcs::oci
