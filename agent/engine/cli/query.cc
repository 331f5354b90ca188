// SPDX-License-Identifier: Apache-2.0
// state, list, ps, pause, resume, update, events, spec, features.
#include <fcntl.h>
#include <seccomp.h>
#include <spawn.h>
#include <sys/capability.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <optional>
#include <sstream>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "base/paths.h"
#include "engine/cli/cli.h"

namespace gcs::oci {

using base::Json;
using base::MakeError;
using base::Result;

namespace {

constexpr int64_t kFreezeSeconds = 10;

std::string Text(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

// runc's names: containerd and podman read them.
Json StatsJson(const engine::CgroupStats& stats) {
  constexpr uint64_t kNsPerUs = 1000;
  Json data;
  data["cpu"] = {{"usage",
                  {{"total", stats.cpu_usage_us * kNsPerUs},
                   {"kernel", stats.cpu_system_us * kNsPerUs},
                   {"user", stats.cpu_user_us * kNsPerUs}}},
                 {"throttling",
                  {{"periods", stats.cpu_periods},
                   {"throttledPeriods", stats.cpu_throttled_periods},
                   {"throttledTime", stats.cpu_throttled_us * kNsPerUs}}}};
  data["memory"] = {{"cache", stats.memory_file},
                    {"usage",
                     {{"limit", stats.memory_limit == 0 ? UINT64_MAX : stats.memory_limit},
                      {"usage", stats.memory_usage},
                      {"max", stats.memory_peak},
                      {"failcnt", stats.memory_max_hits}}},
                    {"swap", {{"usage", stats.memory_swap}}},
                    {"kernel", {{"usage", stats.memory_kernel}}},
                    {"raw",
                     {{"anon", stats.memory_anon},
                      {"file", stats.memory_file},
                      {"inactive_file", stats.memory_inactive_file},
                      {"oom_kill", stats.memory_oom_kill}}}};
  data["pids"] = {{"current", stats.pids_current}, {"limit", stats.pids_limit}};
  Json bytes = Json::array();
  Json operations = Json::array();
  for (const engine::IoStats& io : stats.io) {
    const auto row = [&](const char* op, uint64_t value) {
      return Json{{"major", io.major}, {"minor", io.minor}, {"op", op}, {"value", value}};
    };
    bytes.push_back(row("Read", io.read_bytes));
    bytes.push_back(row("Write", io.write_bytes));
    operations.push_back(row("Read", io.read_ops));
    operations.push_back(row("Write", io.write_ops));
  }
  data["blkio"] = {{"ioServiceBytesRecursive", bytes}, {"ioServicedRecursive", operations}};
  const auto pressure = [&](const char* name, const std::optional<engine::PressureStats>& psi) {
    if (!psi) return;
    data[name]["psi"] = {{"some",
                          {{"avg10", psi->some_avg10},
                           {"avg60", psi->some_avg60},
                           {"avg300", psi->some_avg300},
                           {"total", psi->some_total_us}}},
                         {"full",
                          {{"avg10", psi->full_avg10},
                           {"avg60", psi->full_avg60},
                           {"avg300", psi->full_avg300},
                           {"total", psi->full_total_us}}}};
  };
  pressure("cpu", stats.cpu_pressure);
  pressure("memory", stats.memory_pressure);
  pressure("blkio", stats.io_pressure);
  return data;
}

Result<engine::Cgroup*> CgroupOf(const Loaded& loaded, const char* act) {
  if (loaded.status == Status::kStopped || loaded.status == Status::kCreating ||
      loaded.container.cgroup == nullptr) {
    return MakeError(ESRCH, act, loaded.record.id, "container not running");
  }
  return loaded.container.cgroup.get();
}

// What ps(1) prints, an error with that if it fails. The one program of the machine that this one calls: its
// options are what is asked for.
Result<std::string> AskPs(const std::vector<std::string>& options) {
  constexpr size_t kMost = 16 << 20;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoError("pipe", "ps");
  const base::Fd ours(ends[0]);
  base::Fd theirs(ends[1]);
  std::vector<std::string> words{"ps"};
  words.insert(words.end(), options.begin(), options.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), 2);
  pid_t pid = 0;
  const int err = posix_spawnp(&pid, "ps", &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (err != 0) return MakeError(err, "ps", "ps", "can't be executed");
  theirs.Reset();
  auto output = base::ReadFd(ours.get(), "output of ps", kMost);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  if (!output) return output;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return MakeError(ECHILD, "ps", {}, "exit status " + std::to_string(code) + ": " + *output);
  }
  return output;
}

// The head of the table and the rows of these processes.
Result<std::string> RowsOf(const std::string& table, const std::vector<int>& pids) {
  std::istringstream lines(table);
  std::string line;
  std::string rows;
  std::optional<size_t> column;
  while (std::getline(lines, line)) {
    std::istringstream text(line);
    const std::vector<std::string> words{std::istream_iterator<std::string>(text), {}};
    if (!column) {
      const auto found = std::ranges::find(words, "PID");
      if (found == words.end()) {
        return MakeError(EINVAL, "ps", {}, "couldn't find PID field in ps output");
      }
      column = static_cast<size_t>(found - words.begin());
      rows += line + "\n";
      continue;
    }
    if (*column >= words.size()) continue;
    const std::string& word = words[*column];
    if (std::ranges::any_of(pids, [&](int pid) { return std::to_string(pid) == word; })) rows += line + "\n";
  }
  return rows;
}

}  // namespace

Result<int> State(const Global& global, const std::string& id) {
  GCS_ASSIGN(const Loaded loaded, Load(global, id, Access::kRead));
  std::cout << Text(StateOf(loaded), 2) << '\n';
  return 0;
}

Result<int> List(const Global& global, const std::string& format, bool quiet) {
  if (format != "table" && format != "json")
    return MakeError(EINVAL, "list", format, "invalid format option");
  GCS_ASSIGN(const std::vector<std::string> ids, Store::List(global.root));
  Json all = Json::array();
  for (const std::string& id : ids) {
    auto loaded = Load(global, id, Access::kRead);
    // Deleted meanwhile, or broken: told, but the others are listed.
    if (!loaded) {
      if (loaded.error().err != ENOENT) base::LogError("list", loaded.error());
      continue;
    }
    all.push_back(StateOf(*loaded));
  }
  if (quiet) {
    for (const Json& state : all) std::cout << state["id"].get<std::string>() << '\n';
    return 0;
  }
  if (format == "json") {
    std::cout << Text(all) << '\n';
    return 0;
  }
  printf("%-28s %-8s %-9s %-36s %-36s %s\n", "ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER");
  for (const Json& state : all) {
    printf("%-28s %-8d %-9s %-36s %-36s %s\n", state["id"].get<std::string>().c_str(),
           state["pid"].get<int>(), state["status"].get<std::string>().c_str(),
           state["bundle"].get<std::string>().c_str(), state["created"].get<std::string>().c_str(),
           state["owner"].get<std::string>().c_str());
  }
  return fflush(stdout) == 0 ? 0 : 1;
}

Result<int> Ps(const Global& global, const std::string& id, const std::string& format,
               const std::vector<std::string>& options) {
  if (format != "table" && format != "json") return MakeError(EINVAL, "ps", format, "invalid format option");
  GCS_ASSIGN(const Loaded loaded, Load(global, id, Access::kRead));
  // Of a stopped container those that its first process has left behind.
  std::vector<int> pids;
  if (loaded.container.cgroup != nullptr) {
    GCS_ASSIGN(pids, loaded.container.cgroup->Pids());
  }
  if (format == "json") {
    std::cout << Text(Json(pids)) << '\n';
    return 0;
  }
  if (!options.empty()) {
    GCS_ASSIGN(const std::string table, AskPs(options));
    GCS_ASSIGN(const std::string rows, RowsOf(table, pids));
    std::cout << rows << std::flush;
    return std::cout ? 0 : 1;
  }
  std::cout << "PID      COMMAND\n";
  for (const int pid : pids) {
    std::string command = base::ReadFile("/proc/" + std::to_string(pid) + "/cmdline", 1 << 20).value_or("");
    std::ranges::replace(command, '\0', ' ');
    // A container's text may hold what a terminal obeys.
    std::ranges::replace_if(command, [](unsigned char c) { return c < ' ' || c == 0x7f; }, '?');
    printf("%-8d %s\n", pid, command.c_str());
  }
  return fflush(stdout) == 0 ? 0 : 1;
}

Result<int> Pause(const Global& global, const std::string& id, bool frozen) {
  GCS_ASSIGN(const Loaded loaded, Load(global, id, Access::kChange));
  const char* act = frozen ? "pause container" : "resume container";
  GCS_ASSIGN(engine::Cgroup * cgroup, CgroupOf(loaded, act));
  const bool fits = frozen ? loaded.status == Status::kRunning || loaded.status == Status::kCreated
                           : loaded.status == Status::kPaused;
  if (!fits) return MakeError(EINVAL, act, id, frozen ? "container not running" : "container not paused");
  GCS_TRY(cgroup->Freeze(frozen, Deadline(kFreezeSeconds)));
  return 0;
}

Result<int> Update(const Global& global, const UpdateCommand& command) {
  GCS_ASSIGN(const Loaded loaded, Load(global, command.id, Access::kChange));
  GCS_ASSIGN(engine::Cgroup * cgroup, CgroupOf(loaded, "update container"));
  Json resources = Json::object();
  if (!command.file.empty()) {
    std::string text;
    if (command.file == "-") {
      GCS_ASSIGN(text, base::ReadFd(0, "standard input", 16 << 20));
    } else {
      GCS_ASSIGN(text, base::ReadFile(command.file, 16 << 20));
    }
    GCS_ASSIGN(resources, base::ParseJson(text, "resources"));
  }
  resources.merge_patch(command.resources);
  GCS_ASSIGN(const engine::Resources parsed, engine::ParseResources(Text(resources)));
  GCS_TRY(cgroup->Update(parsed));
  if (!parsed.devices.empty()) GCS_TRY(cgroup->SetDevices(parsed.devices));
  return 0;
}

Result<int> Events(const Global& global, const std::string& id, bool stats, int64_t interval_ns) {
  uint64_t oom_kills = 0;
  for (bool first = true;; first = false) {
    engine::CgroupStats now;
    {
      auto loaded = Load(global, id, Access::kRead);
      // The end of the container is the end of its events.
      if (!loaded) return first ? Result<int>(std::unexpected(loaded.error())) : Result<int>(0);
      auto cgroup = CgroupOf(*loaded, "events");
      if (!cgroup) return first ? Result<int>(std::unexpected(cgroup.error())) : Result<int>(0);
      GCS_ASSIGN(now, (*cgroup)->Stats());
    }
    if (!first && now.memory_oom_kill > oom_kills) {
      std::cout << Text({{"type", "oom"}, {"id", id}}) << std::endl;
    }
    oom_kills = now.memory_oom_kill;
    std::cout << Text({{"type", "stats"}, {"id", id}, {"data", StatsJson(now)}}) << std::endl;
    if (!std::cout || stats) return std::cout ? 0 : 1;
    std::this_thread::sleep_for(std::chrono::nanoseconds(interval_ns));
  }
}

Result<int> WriteSpec(const std::string& bundle) {
  const std::string path = bundle + "/config.json";
  if (access(path.c_str(), F_OK) == 0) {
    return MakeError(EEXIST, "write specification", path, "File config.json exists. Remove it first");
  }
  const std::vector<std::string> kCapabilities{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"};
  const Json spec{
      {"ociVersion", engine::kOciVersion},
      {"process",
       {{"terminal", true},
        {"user", {{"uid", 0}, {"gid", 0}}},
        {"args", {"sh"}},
        {"env", {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"}},
        {"cwd", "/"},
        {"capabilities",
         {{"bounding", kCapabilities}, {"effective", kCapabilities}, {"permitted", kCapabilities}}},
        {"rlimits", {{{"type", "RLIMIT_NOFILE"}, {"hard", 1024}, {"soft", 1024}}}},
        {"noNewPrivileges", true}}},
      {"root", {{"path", "rootfs"}, {"readonly", true}}},
      {"hostname", "container"},
      {"mounts",
       {{{"destination", "/proc"}, {"type", "proc"}, {"source", "proc"}},
        {{"destination", "/dev"},
         {"type", "tmpfs"},
         {"source", "tmpfs"},
         {"options", {"nosuid", "strictatime", "mode=755", "size=65536k"}}},
        {{"destination", "/dev/pts"},
         {"type", "devpts"},
         {"source", "devpts"},
         {"options", {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}}},
        {{"destination", "/dev/shm"},
         {"type", "tmpfs"},
         {"source", "shm"},
         {"options", {"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}}},
        {{"destination", "/dev/mqueue"},
         {"type", "mqueue"},
         {"source", "mqueue"},
         {"options", {"nosuid", "noexec", "nodev"}}},
        {{"destination", "/sys"},
         {"type", "sysfs"},
         {"source", "sysfs"},
         {"options", {"nosuid", "noexec", "nodev", "ro"}}},
        {{"destination", "/sys/fs/cgroup"},
         {"type", "cgroup"},
         {"source", "cgroup"},
         {"options", {"nosuid", "noexec", "nodev", "relatime", "ro"}}}}},
      {"linux",
       {{"resources", {{"devices", {{{"allow", false}, {"access", "rwm"}}}}}},
        {"namespaces",
         {{{"type", "pid"}},
          {{"type", "network"}},
          {{"type", "ipc"}},
          {{"type", "uts"}},
          {{"type", "mount"}},
          {{"type", "cgroup"}}}},
        {"maskedPaths",
         {"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
          "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"}},
        {"readonlyPaths", {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}}}}};
  GCS_TRY(base::ReplaceFile(path, Text(spec, 2) + "\n", 0666));
  return 0;
}

Result<int> Features() {
  Json capabilities = Json::array();
  for (cap_value_t cap = 0; cap_max_bits() > cap; ++cap) {
    char* name = cap_to_name(cap);
    if (name == nullptr) continue;
    std::string text = name;
    cap_free(name);
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::toupper(c); });
    if (text.starts_with("CAP_")) capabilities.push_back(text);
  }
  const scmp_version* seccomp = seccomp_version();
  const Json features{
      {"ociVersionMin", "1.0.0"},
      {"ociVersionMax", engine::kOciVersion},
      {"hooks", {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}},
      {"mountOptions", {"async",         "atime",        "bind",
                        "defaults",      "dev",          "diratime",
                        "exec",          "idmap",        "loud",
                        "noatime",       "nodev",        "nodiratime",
                        "noexec",        "nolazytime",   "norelatime",
                        "nostrictatime", "nosuid",       "nosymfollow",
                        "private",       "ratime",       "rbind",
                        "rdev",          "rdiratime",    "relatime",
                        "remount",       "rexec",        "ridmap",
                        "rnoatime",      "rnodev",       "rnodiratime",
                        "rnoexec",       "rnorelatime",  "rnostrictatime",
                        "rnosuid",       "rnosymfollow", "ro",
                        "rprivate",      "rrelatime",    "rro",
                        "rrw",           "rshared",      "rslave",
                        "rstrictatime",  "rsuid",        "rsymfollow",
                        "runbindable",   "rw",           "shared",
                        "silent",        "slave",        "strictatime",
                        "suid",          "symfollow",    "tmpcopyup",
                        "unbindable"}},
      {"linux",
       {{"namespaces", {"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"}},
        {"capabilities", capabilities},
        {"cgroup", {{"v1", true}, {"v2", true}, {"systemd", false}, {"systemdUser", false}, {"rdma", true}}},
        {"seccomp",
         {{"enabled", true},
          {"actions",
           {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"}},
          {"operators",
           {"SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
            "SCMP_CMP_NE"}},
          {"archs", {"SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_X86_64"}},
          {"knownFlags",
           {"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}},
          {"supportedFlags",
           {"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}}}},
        {"apparmor", {{"enabled", true}}},
        {"selinux", {{"enabled", true}}},
        {"intelRdt", {{"enabled", true}, {"schemata", true}, {"monitoring", true}}},
        {"memoryPolicy",
         {{"modes",
           {"MPOL_DEFAULT", "MPOL_PREFERRED", "MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_LOCAL",
            "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE"}},
          {"flags", {"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES", "MPOL_F_NUMA_BALANCING"}}}},
        {"mountExtensions", {{"idmap", {{"enabled", true}}}}},
        {"netDevices", {{"enabled", true}}}}},
      {"annotations",
       {{"org.opencontainers.runc.checkpoint.enabled", "false"},
        {"io.github.seccomp.libseccomp.version", std::to_string(seccomp->major) + "." +
                                                     std::to_string(seccomp->minor) + "." +
                                                     std::to_string(seccomp->micro)}}},
      {"potentiallyUnsafeConfigAnnotations", Json::array()}};
  std::cout << Text(features, 2) << '\n';
  return 0;
}

}  // namespace gcs::oci
