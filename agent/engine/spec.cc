// SPDX-License-Identifier: Apache-2.0
#include "engine/spec.h"

#include <sched.h>
#include <sys/capability.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <algorithm>

#include "base/log.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

namespace gcs::engine {

using base::Json;
using base::JsonReader;
using base::Result;

namespace {

constexpr std::string_view kStep = "parse config.json";
constexpr int64_t kIdMax = 0xfffffffe;  // 4294967295 is "no id" to setresuid(2)
constexpr size_t kMaxMounts = 1000;
constexpr size_t kMaxStrings = 100'000;

struct NamedNumber {
  std::string_view name;
  int number;
};

constexpr std::array<NamedNumber, 8> kNamespaces{{{"pid", CLONE_NEWPID},
                                                  {"network", CLONE_NEWNET},
                                                  {"mount", CLONE_NEWNS},
                                                  {"ipc", CLONE_NEWIPC},
                                                  {"uts", CLONE_NEWUTS},
                                                  {"user", CLONE_NEWUSER},
                                                  {"cgroup", CLONE_NEWCGROUP},
                                                  {"time", CLONE_NEWTIME}}};

constexpr std::array<NamedNumber, 16> kRlimits{{{"RLIMIT_CPU", RLIMIT_CPU},
                                                {"RLIMIT_FSIZE", RLIMIT_FSIZE},
                                                {"RLIMIT_DATA", RLIMIT_DATA},
                                                {"RLIMIT_STACK", RLIMIT_STACK},
                                                {"RLIMIT_CORE", RLIMIT_CORE},
                                                {"RLIMIT_RSS", RLIMIT_RSS},
                                                {"RLIMIT_NPROC", RLIMIT_NPROC},
                                                {"RLIMIT_NOFILE", RLIMIT_NOFILE},
                                                {"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK},
                                                {"RLIMIT_AS", RLIMIT_AS},
                                                {"RLIMIT_LOCKS", RLIMIT_LOCKS},
                                                {"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING},
                                                {"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE},
                                                {"RLIMIT_NICE", RLIMIT_NICE},
                                                {"RLIMIT_RTPRIO", RLIMIT_RTPRIO},
                                                {"RLIMIT_RTTIME", RLIMIT_RTTIME}}};

void Refuse(JsonReader& reader, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (!reader.Has(key)) continue;
    const Json& value = reader.value().at(key);
    const bool empty = (value.is_array() || value.is_object() || value.is_string()) && value.empty();
    const bool blank = value.is_string() && value.get_ref<const std::string&>().empty();
    if (!empty && !blank) reader.Fail(key, "is not supported by this engine", EOPNOTSUPP);
  }
}

// Unknown names are warnings, as the specification wants of capabilities that can't be granted.
uint64_t ParseCapabilitySet(JsonReader& reader, const char* key) {
  uint64_t set = 0;
  for (const std::string& name : reader.Strings(key)) {
    std::string lower = name;
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
    cap_value_t number = 0;
    if (lower.starts_with("cap_") && cap_from_name(lower.c_str(), &number) == 0 && number < 64) {
      set |= uint64_t{1} << number;
    } else {
      base::Log(base::Level::kWarn, "unknown capability ignored", {{"name", name}, {"at", reader.Path(key)}});
    }
  }
  return set;
}

void ParseUser(JsonReader user, Process& process) {
  process.uid = static_cast<uint32_t>(user.Int("uid", process.uid, 0, kIdMax));
  process.gid = static_cast<uint32_t>(user.Int("gid", process.gid, 0, kIdMax));
  process.umask = static_cast<uint32_t>(user.Int("umask", process.umask, 0, 0777));
  if (!user.Has("additionalGids")) return;
  process.additional_gids.clear();
  const Json& gids = user.value().at("additionalGids");
  if (!gids.is_array()) return user.Fail("additionalGids", "must be an array");
  for (const Json& gid : gids) {
    if (!gid.is_number_unsigned() || gid.get<uint64_t>() > kIdMax) {
      return user.Fail("additionalGids[" + std::to_string(process.additional_gids.size()) + "]",
                       "must be an integer from 0 to 4294967294");
    }
    process.additional_gids.push_back(gid.get<uint32_t>());
  }
}

void ParseRlimits(JsonReader& reader, Process& process) {
  if (!reader.Has("rlimits")) return;
  process.rlimits.clear();
  for (JsonReader& entry : reader.Objects("rlimits")) {
    const std::string type = entry.RequiredString("type");
    const auto* found = std::ranges::find(kRlimits, type, &NamedNumber::name);
    if (found == kRlimits.end()) return entry.Fail("type", "unknown resource " + type);
    const Rlimit limit{found->number, entry.Uint64("soft", 0), entry.Uint64("hard", 0)};
    if (!entry.Has("soft") || !entry.Has("hard")) entry.Fail("", "needs soft and hard");
    if (limit.soft > limit.hard) entry.Fail("soft", "is above hard");
    if (std::ranges::find(process.rlimits, limit.resource, &Rlimit::resource) != process.rlimits.end()) {
      entry.Fail("type", "duplicate " + type);
    }
    process.rlimits.push_back(limit);
  }
}

Process ReadProcess(JsonReader reader, Process process) {
  process.terminal = reader.Bool("terminal", false);
  JsonReader size = reader.Object("consoleSize");
  process.console_height = static_cast<uint16_t>(size.Int("height", 0, 0, 0xffff));
  process.console_width = static_cast<uint16_t>(size.Int("width", 0, 0, 0xffff));
  process.args = reader.Strings("args");
  if (process.args.empty() || process.args[0].empty()) reader.Fail("args", "needs a program");
  if (reader.Has("env")) {
    process.env = reader.Strings("env");
    for (size_t i = 0; i < process.env.size(); ++i) {
      if (process.env[i].find('=') == std::string::npos || process.env[i][0] == '=') {
        reader.Fail("env[" + std::to_string(i) + "]", "must have the form NAME=value");
      }
    }
  }
  if (process.env.size() + process.args.size() > kMaxStrings) reader.Fail("env", "too many strings", E2BIG);
  process.cwd = reader.String("cwd", process.cwd);
  if (process.cwd.empty() || process.cwd[0] != '/') reader.Fail("cwd", "must be an absolute path");
  if (reader.Has("user")) ParseUser(reader.Object("user"), process);
  if (reader.Has("capabilities")) {
    JsonReader caps = reader.Object("capabilities");
    process.capabilities = {.bounding = ParseCapabilitySet(caps, "bounding"),
                            .effective = ParseCapabilitySet(caps, "effective"),
                            .inheritable = ParseCapabilitySet(caps, "inheritable"),
                            .permitted = ParseCapabilitySet(caps, "permitted"),
                            .ambient = ParseCapabilitySet(caps, "ambient")};
  }
  ParseRlimits(reader, process);
  process.no_new_privileges = reader.Bool("noNewPrivileges", process.no_new_privileges);
  if (const auto adj = reader.OptionalInt("oomScoreAdj", -1000, 1000))
    process.oom_score_adj = static_cast<int>(*adj);
  Refuse(reader, {"apparmorProfile", "selinuxLabel", "ioPriority", "scheduler", "execCPUAffinity"});
  return process;
}

void ReadDeviceRules(JsonReader& reader, Resources& resources) {
  for (JsonReader& entry : reader.Objects("devices")) {
    DeviceRule rule{.allow = entry.Bool("allow")};
    const std::string type = entry.String("type", "a");
    if (type != "a" && type != "b" && type != "c") entry.Fail("type", "must be a, b or c");
    rule.type = type.empty() ? 'a' : type[0];
    for (auto [key, number] : {std::pair("major", &rule.major), std::pair("minor", &rule.minor)}) {
      const auto value = entry.OptionalInt(key, -1, 0xffffff);
      if (value && *value >= 0) *number = static_cast<uint32_t>(*value);
    }
    for (const char c : entry.String("access", "rwm")) {
      if (c == 'r') {
        rule.read = true;
      } else if (c == 'w') {
        rule.write = true;
      } else if (c == 'm') {
        rule.mknod = true;
      } else {
        entry.Fail("access", "may only have r, w and m");
      }
    }
    resources.devices.push_back(rule);
  }
}

Resources ReadResources(JsonReader reader) {
  Resources resources;
  JsonReader memory = reader.Object("memory");
  resources.memory_limit = memory.OptionalInt("limit", -1, INT64_MAX);
  resources.memory_reservation = memory.OptionalInt("reservation", -1, INT64_MAX);
  resources.memory_swap = memory.OptionalInt("swap", -1, INT64_MAX);
  // kernel, kernelTCP, swappiness and disableOOMKiller have no cgroup v2 counterpart; "0"/false asks for
  // nothing.
  for (const char* key : {"kernel", "kernelTCP", "swappiness", "disableOOMKiller"}) {
    if (memory.Has(key) && memory.value().at(key) != Json(0) && memory.value().at(key) != Json(false) &&
        memory.value().at(key) != Json(-1)) {
      base::Log(base::Level::kWarn, "no such control in cgroup v2, ignored", {{"at", memory.Path(key)}});
    }
  }
  JsonReader cpu = reader.Object("cpu");
  if (const auto shares = cpu.OptionalInt("shares", 0, INT64_MAX); shares && *shares != 0)
    resources.cpu_shares = *shares;
  resources.cpu_quota = cpu.OptionalInt("quota", INT64_MIN, INT64_MAX);
  if (const auto period = cpu.OptionalInt("period", 0, 1'000'000); period && *period != 0)
    resources.cpu_period = *period;
  if (const auto burst = cpu.OptionalInt("burst", 0, INT64_MAX)) resources.cpu_burst = *burst;
  resources.cpus = cpu.String("cpus");
  resources.mems = cpu.String("mems");
  for (const char* key : {"realtimeRuntime", "realtimePeriod", "idle"}) {
    if (cpu.Has(key) && cpu.value().at(key) != Json(0))
      cpu.Fail(key, "is not supported on cgroup v2", EOPNOTSUPP);
  }
  resources.pids_limit = reader.Object("pids").OptionalInt("limit", -1, INT64_MAX);
  resources.unified = reader.StringMap("unified");
  for (const auto& [key, value] : resources.unified) {
    if (key.find('/') != std::string::npos || key.starts_with(".") || key.empty()) {
      reader.Fail("unified." + key, "is no name of a cgroup file");
    }
  }
  ReadDeviceRules(reader, resources);
  Refuse(reader, {"blockIO", "hugepageLimits", "network", "rdma"});
  return resources;
}

void ReadNamespaces(JsonReader& linux_part, Spec& spec) {
  for (JsonReader& entry : linux_part.Objects("namespaces")) {
    const std::string type = entry.RequiredString("type");
    const auto* found = std::ranges::find(kNamespaces, type, &NamedNumber::name);
    if (found == kNamespaces.end()) {
      entry.Fail("type", "unknown namespace " + type);
      return;
    }
    const Namespace ns{found->number, entry.String("path")};
    if (spec.FindNamespace(ns.flag) != nullptr) entry.Fail("type", "duplicate " + type);
    if (!ns.path.empty() && ns.path[0] != '/') entry.Fail("path", "must be absolute");
    const bool joinable = ns.flag == CLONE_NEWNET || ns.flag == CLONE_NEWIPC || ns.flag == CLONE_NEWUTS;
    if (!ns.path.empty() && !joinable)
      entry.Fail("path", "joining this namespace is not supported", EOPNOTSUPP);
    if (ns.flag == CLONE_NEWUSER || ns.flag == CLONE_NEWTIME) {
      entry.Fail("type", type + " namespaces are not supported", EOPNOTSUPP);
    }
    spec.namespaces.push_back(ns);
  }
  if (spec.FindNamespace(CLONE_NEWNS) == nullptr) {
    linux_part.Fail("namespaces", "a mount namespace is required", EOPNOTSUPP);
  }
}

void ReadDevices(JsonReader& linux_part, Spec& spec) {
  for (JsonReader& entry : linux_part.Objects("devices")) {
    Device device{.path = CleanPath(entry.RequiredString("path"))};
    const std::string type = entry.RequiredString("type");
    if (type != "c" && type != "u" && type != "b" && type != "p") entry.Fail("type", "must be c, u, b or p");
    device.type = type == "u" ? 'c' : type.empty() ? 'c' : type[0];
    if (device.type != 'p' && (!entry.Has("major") || !entry.Has("minor")))
      entry.Fail("major", "is required");
    device.major = static_cast<uint32_t>(entry.Int("major", 0, 0, 0xfff));
    device.minor = static_cast<uint32_t>(entry.Int("minor", 0, 0, 0xfffff));
    device.mode = static_cast<uint32_t>(entry.Int("fileMode", 0666, 0, 07777));
    device.uid = static_cast<uint32_t>(entry.Int("uid", 0, 0, kIdMax));
    device.gid = static_cast<uint32_t>(entry.Int("gid", 0, 0, kIdMax));
    spec.devices.push_back(std::move(device));
  }
}

void ReadMounts(JsonReader& reader, Spec& spec) {
  for (JsonReader& entry : reader.Objects("mounts")) {
    Mount mount{.destination = CleanPath(entry.RequiredString("destination")),
                .type = entry.String("type"),
                .source = entry.String("source"),
                .options = entry.Strings("options")};
    if (mount.destination == "/") entry.Fail("destination", "may not be the root", EOPNOTSUPP);
    Refuse(entry, {"uidMappings", "gidMappings"});
    spec.mounts.push_back(std::move(mount));
  }
  if (spec.mounts.size() > kMaxMounts) reader.Fail("mounts", "more than 1000 mounts", E2BIG);
}

std::vector<std::string> ReadPaths(JsonReader& reader, const char* key) {
  std::vector<std::string> paths = reader.Strings(key);
  for (std::string& path : paths) {
    if (path.empty() || path[0] != '/') reader.Fail(key, "must be absolute paths: " + path);
    path = CleanPath(path);
  }
  if (paths.size() > kMaxMounts) reader.Fail(key, "more than 1000 paths", E2BIG);
  return paths;
}

void ReadLinux(JsonReader reader, Spec& spec) {
  ReadNamespaces(reader, spec);
  ReadDevices(reader, spec);
  spec.masked_paths = ReadPaths(reader, "maskedPaths");
  spec.readonly_paths = ReadPaths(reader, "readonlyPaths");
  spec.sysctl = reader.StringMap("sysctl");
  spec.cgroups_path = reader.String("cgroupsPath");
  spec.resources = ReadResources(reader.Object("resources"));
  if (reader.Has("seccomp")) spec.seccomp = reader.Object("seccomp").value();
  const std::string propagation = reader.String("rootfsPropagation");
  if (propagation == "shared" || propagation == "rshared") {
    spec.rootfs_propagation = MS_SHARED;
  } else if (propagation == "unbindable" || propagation == "runbindable") {
    spec.rootfs_propagation = MS_UNBINDABLE;
  } else if (!propagation.empty() && propagation != "private" && propagation != "rprivate" &&
             propagation != "slave" && propagation != "rslave") {
    reader.Fail("rootfsPropagation", "unknown value " + propagation);
  }
  Refuse(reader, {"uidMappings", "gidMappings", "timeOffsets", "intelRdt", "personality", "mountLabel",
                  "netDevices", "memoryPolicy"});
}

void CheckNames(JsonReader& reader, Spec& spec) {
  const bool uts = spec.FindNamespace(CLONE_NEWUTS) != nullptr;
  if (!spec.hostname.empty() && !uts) reader.Fail("hostname", "needs a uts namespace");
  if (!spec.domainname.empty() && !uts) reader.Fail("domainname", "needs a uts namespace");
  if (spec.hostname.size() > 64) reader.Fail("hostname", "longer than 64 bytes", ENAMETOOLONG);
  if (spec.domainname.size() > 64) reader.Fail("domainname", "longer than 64 bytes", ENAMETOOLONG);
}

// Only sysctls that belong to a namespace which the container has for itself: all others would change the
// whole VM.
void CheckSysctls(JsonReader& reader, Spec& spec) {
  constexpr std::array<std::string_view, 8> kIpc{"kernel.msgmax", "kernel.msgmnb",         "kernel.msgmni",
                                                 "kernel.sem",    "kernel.shmall",         "kernel.shmmax",
                                                 "kernel.shmmni", "kernel.shm_rmid_forced"};
  for (auto& [key, value] : spec.sysctl) {
    std::string name = key;
    if (name.find('.') == std::string::npos) std::ranges::replace(name, '/', '.');
    const auto own = [&](int flag) {
      const Namespace* ns = spec.FindNamespace(flag);
      return ns != nullptr && ns->path.empty();
    };
    const bool plain = name.find("..") == std::string::npos && name.find('/') == std::string::npos &&
                       name.find_first_of(" \t\n=+") == std::string::npos &&
                       value.find('\n') == std::string::npos;
    const bool net = name.starts_with("net.") && own(CLONE_NEWNET);
    const bool ipc =
        (std::ranges::find(kIpc, name) != kIpc.end() || name.starts_with("fs.mqueue.")) && own(CLONE_NEWIPC);
    const bool uts = name == "kernel.domainname" && own(CLONE_NEWUTS) && spec.domainname.empty();
    if (!plain || (!net && !ipc && !uts)) {
      reader.Fail("linux.sysctl." + key, "is not a sysctl of a namespace of the container");
    }
    std::ranges::replace(name, '.', '/');
    key = name;
  }
}

template <typename T>
Result<T> Finish(const JsonReader& reader, T value) {
  if (reader.error()) return std::unexpected(*reader.error());
  return value;
}

}  // namespace

const Namespace* Spec::FindNamespace(int flag) const {
  const auto it = std::ranges::find(namespaces, flag, &Namespace::flag);
  return it == namespaces.end() ? nullptr : &*it;
}

std::string CleanPath(std::string_view path) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at <= path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string_view part = path.substr(at, end - at);
    if (part == "..") {
      if (!parts.empty()) parts.pop_back();
    } else if (!part.empty() && part != ".") {
      parts.push_back(part);
    }
    at = end + 1;
  }
  std::string clean;
  for (const std::string_view part : parts) {
    clean += '/';
    clean += part;
  }
  return clean.empty() ? "/" : clean;
}

Result<Spec> ParseSpec(std::string_view config_json) {
  GCS_ASSIGN(const Json document, base::ParseJson(config_json, "config.json"));
  JsonReader reader(document, kStep);
  Spec spec;
  spec.oci_version = reader.RequiredString("ociVersion");
  if (!spec.oci_version.starts_with("1.")) reader.Fail("ociVersion", "must be 1.x, is " + spec.oci_version);
  JsonReader root = reader.Object("root");
  spec.root_path = root.RequiredString("path");
  if (!spec.root_path.empty() && spec.root_path[0] != '/') root.Fail("path", "must be absolute in the guest");
  spec.root_readonly = root.Bool("readonly");
  spec.hostname = reader.String("hostname");
  spec.domainname = reader.String("domainname");
  if (!reader.Has("linux")) reader.Fail("linux", "is required");
  ReadLinux(reader.Object("linux"), spec);
  ReadMounts(reader, spec);
  if (reader.Has("process")) spec.process = ReadProcess(reader.Object("process"), Process{});
  spec.annotations = reader.StringMap("annotations");
  JsonReader hooks = reader.Object("hooks");
  Refuse(hooks, {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"});
  CheckNames(reader, spec);
  CheckSysctls(reader, spec);
  return Finish(reader, std::move(spec));
}

Result<Process> ParseProcess(std::string_view process_json, const Process& defaults) {
  GCS_ASSIGN(const Json document, base::ParseJson(process_json, "process"));
  JsonReader reader(document, "parse process");
  return Finish(reader, ReadProcess(reader, defaults));
}

Result<Resources> ParseResources(std::string_view resources_json) {
  GCS_ASSIGN(const Json document, base::ParseJson(resources_json, "resources"));
  JsonReader reader(document, "parse resources");
  return Finish(reader, ReadResources(reader));
}

}  // namespace gcs::engine
