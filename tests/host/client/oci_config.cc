// SPDX-License-Identifier: Apache-2.0
#include "host/client/oci_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

namespace gcs::host {

namespace {

using Json = nlohmann::json;

// linux/capability.h, in the order of their numbers.
constexpr std::array kCapabilities = {"CHOWN",
                                      "DAC_OVERRIDE",
                                      "DAC_READ_SEARCH",
                                      "FOWNER",
                                      "FSETID",
                                      "KILL",
                                      "SETGID",
                                      "SETUID",
                                      "SETPCAP",
                                      "LINUX_IMMUTABLE",
                                      "NET_BIND_SERVICE",
                                      "NET_BROADCAST",
                                      "NET_ADMIN",
                                      "NET_RAW",
                                      "IPC_LOCK",
                                      "IPC_OWNER",
                                      "SYS_MODULE",
                                      "SYS_RAWIO",
                                      "SYS_CHROOT",
                                      "SYS_PTRACE",
                                      "SYS_PACCT",
                                      "SYS_ADMIN",
                                      "SYS_BOOT",
                                      "SYS_NICE",
                                      "SYS_RESOURCE",
                                      "SYS_TIME",
                                      "SYS_TTY_CONFIG",
                                      "MKNOD",
                                      "LEASE",
                                      "AUDIT_WRITE",
                                      "AUDIT_CONTROL",
                                      "SETFCAP",
                                      "MAC_OVERRIDE",
                                      "MAC_ADMIN",
                                      "SYSLOG",
                                      "WAKE_ALARM",
                                      "BLOCK_SUSPEND",
                                      "AUDIT_READ",
                                      "PERFMON",
                                      "BPF",
                                      "CHECKPOINT_RESTORE"};
constexpr std::array kDefaultCapabilities = {
    "CHOWN",  "DAC_OVERRIDE", "FSETID",  "FOWNER",           "MKNOD",      "NET_RAW", "SETGID",
    "SETUID", "SETFCAP",      "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL",    "AUDIT_WRITE"};

constexpr char kDefaultPath[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

base::Result<> ChangeCapabilities(std::set<std::string>& set, const std::vector<std::string>& names,
                                  bool add) {
  for (const std::string& given : names) {
    std::string name = given;
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(toupper(c)); });
    if (name.starts_with("CAP_")) name.erase(0, 4);
    if (name == "ALL") {
      set.clear();
      if (add) set.insert(kCapabilities.begin(), kCapabilities.end());
      continue;
    }
    if (std::ranges::find(kCapabilities, name) == kCapabilities.end()) {
      return base::MakeError(EINVAL, "make config.json", add ? "--cap-add" : "--cap-drop",
                             "no capability " + given);
    }
    if (add) {
      set.insert(name);
    } else {
      set.erase(name);
    }
  }
  return {};
}

base::Result<std::set<std::string>> Capabilities(const ContainerSettings& settings) {
  std::set<std::string> set;
  if (settings.privileged) {
    set.insert(kCapabilities.begin(), kCapabilities.end());
  } else {
    set.insert(kDefaultCapabilities.begin(), kDefaultCapabilities.end());
  }
  // `--cap-drop ALL --cap-add X` and `--cap-add ALL --cap-drop X` both mean what they say, as docker has it.
  const auto is_all = [](const std::string& name) { return strcasecmp(name.c_str(), "all") == 0; };
  if (std::ranges::any_of(settings.cap_add, is_all)) {
    GCS_TRY(ChangeCapabilities(set, settings.cap_add, true));
    GCS_TRY(ChangeCapabilities(set, settings.cap_drop, false));
  } else {
    GCS_TRY(ChangeCapabilities(set, settings.cap_drop, false));
    GCS_TRY(ChangeCapabilities(set, settings.cap_add, true));
  }
  return set;
}

// Later definitions of a name replace earlier ones in their place.
void SetEnv(std::vector<std::string>& env, const std::string& entry) {
  const std::string name = entry.substr(0, entry.find('=') + 1);
  for (std::string& old : env) {
    if (old.starts_with(name)) {
      old = entry;
      return;
    }
  }
  env.push_back(entry);
}

bool HasEnv(const std::vector<std::string>& env, const std::string& name) {
  return std::ranges::any_of(env, [&](const std::string& entry) { return entry.starts_with(name + "="); });
}

base::Result<> AddUserEnv(std::vector<std::string>& env, const std::vector<std::string>& given) {
  for (const std::string& entry : given) {
    if (entry.empty() || entry[0] == '=') return base::MakeError(EINVAL, "make config.json", "--env", entry);
    if (entry.find('=') != std::string::npos) {
      SetEnv(env, entry);
    } else if (const char* value = getenv(entry.c_str())) {
      SetEnv(env, entry + "=" + value);
    }
  }
  return {};
}

Json UserJson(const User& user) {
  Json json = {{"uid", user.uid}, {"gid", user.gid}};
  if (!user.additional_gids.empty()) json["additionalGids"] = user.additional_gids;
  return json;
}

Json MountJson(const char* destination, const char* type, const char* source,
               std::vector<std::string> options) {
  return {{"destination", destination}, {"type", type}, {"source", source}, {"options", std::move(options)}};
}

Json DefaultMounts(bool privileged) {
  const char* access = privileged ? "rw" : "ro";
  return Json::array(
      {MountJson("/proc", "proc", "proc", {"nosuid", "noexec", "nodev"}),
       MountJson("/dev", "tmpfs", "tmpfs", {"nosuid", "strictatime", "mode=755", "size=65536k"}),
       MountJson("/dev/pts", "devpts", "devpts",
                 {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}),
       MountJson("/dev/shm", "tmpfs", "shm", {"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}),
       MountJson("/dev/mqueue", "mqueue", "mqueue", {"nosuid", "noexec", "nodev"}),
       MountJson("/sys", "sysfs", "sysfs", {"nosuid", "noexec", "nodev", access}),
       MountJson("/sys/fs/cgroup", "cgroup", "cgroup", {"nosuid", "noexec", "nodev", "relatime", access})});
}

base::Result<Json> Resources(const ContainerSettings& settings) {
  Json resources = Json::object();
  if (settings.memory_bytes != 0) {
    // No swap on top, as none would be there to use.
    resources["memory"] = {{"limit", settings.memory_bytes}, {"swap", settings.memory_bytes}};
  }
  if (settings.cpus < 0 || !std::isfinite(settings.cpus) || (settings.cpus > 0 && settings.cpus < 0.01)) {
    return base::MakeError(EINVAL, "make config.json", "--cpus", "at least 0.01");
  }
  if (settings.cpus > 0) {
    resources["cpu"] = {{"quota", std::llround(settings.cpus * 100'000)}, {"period", 100'000}};
  }
  if (settings.pids_limit != 0) resources["pids"] = {{"limit", settings.pids_limit}};
  Json devices = Json::array();
  devices.push_back({{"allow", settings.privileged}, {"access", "rwm"}});
  if (!settings.privileged) {
    const auto allow = [&devices](char type, int major, int minor, const char* access) {
      Json rule = {{"allow", true}, {"type", std::string(1, type)}, {"access", access}};
      if (major >= 0) rule["major"] = major;
      if (minor >= 0) rule["minor"] = minor;
      devices.push_back(std::move(rule));
    };
    allow('c', -1, -1, "m");
    allow('b', -1, -1, "m");
    for (const int minor : {3, 5, 7, 8, 9}) allow('c', 1, minor, "rwm");  // null zero full random urandom
    allow('c', 5, 0, "rwm");                                              // tty
    allow('c', 5, 2, "rwm");                                              // ptmx
    allow('c', 136, -1, "rwm");                                           // pts
  }
  resources["devices"] = std::move(devices);
  return resources;
}

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

base::Result<std::string> MakeOciConfig(const ImageConfig& image, const ContainerSettings& settings) {
  if (settings.args.empty()) {
    return base::MakeError(EINVAL, "make config.json", "process.args",
                           "neither the image nor you name a program");
  }
  GCS_ASSIGN(const std::set<std::string> names, Capabilities(settings));
  std::vector<std::string> capabilities;
  for (const std::string& name : names) capabilities.push_back("CAP_" + name);

  std::vector<std::string> env = {kDefaultPath};
  for (const std::string& entry : image.env) SetEnv(env, entry);
  if (!settings.hostname.empty()) SetEnv(env, "HOSTNAME=" + settings.hostname);
  if (settings.terminal && !HasEnv(env, "TERM")) env.emplace_back("TERM=xterm");
  GCS_TRY(AddUserEnv(env, settings.env));
  if (!HasEnv(env, "HOME")) env.push_back("HOME=" + (settings.user.home.empty() ? "/" : settings.user.home));

  std::string cwd = settings.cwd.empty() ? image.working_dir : settings.cwd;
  if (cwd.empty()) cwd = "/";
  const std::vector<std::string> effective =
      settings.user.uid == 0 ? capabilities : std::vector<std::string>();
  Json process = {
      {"terminal", settings.terminal},
      {"user", UserJson(settings.user)},
      {"args", settings.args},
      {"env", env},
      {"cwd", cwd},
      {"capabilities", {{"bounding", capabilities}, {"permitted", effective}, {"effective", effective}}},
      {"rlimits", Json::array({{{"type", "RLIMIT_NOFILE"}, {"soft", 1024}, {"hard", 1'048'576}}})},
      {"noNewPrivileges", settings.no_new_privileges}};
  if (settings.terminal && settings.width != 0) {
    process["consoleSize"] = {{"width", settings.width}, {"height", settings.height}};
  }
  Json mounts = DefaultMounts(settings.privileged);
  for (const BindMount& mount : settings.mounts) {
    mounts.push_back({{"destination", mount.destination},
                      {"type", "bind"},
                      {"source", mount.source},
                      {"options", {"rbind", "rprivate", mount.read_only ? "ro" : "rw"}}});
  }
  GCS_ASSIGN(Json resources, Resources(settings));
  Json namespaces = Json::array();
  for (const char* type : {"pid", "network", "ipc", "uts", "mount", "cgroup"})
    namespaces.push_back({{"type", type}});
  Json linux_part = {{"namespaces", namespaces}, {"resources", resources}};
  if (!settings.privileged) {
    linux_part["maskedPaths"] = {"/proc/asound",
                                 "/proc/acpi",
                                 "/proc/kcore",
                                 "/proc/keys",
                                 "/proc/latency_stats",
                                 "/proc/timer_list",
                                 "/proc/timer_stats",
                                 "/proc/sched_debug",
                                 "/proc/scsi",
                                 "/sys/firmware",
                                 "/sys/devices/virtual/powercap"};
    linux_part["readonlyPaths"] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    if (settings.seccomp) linux_part["seccomp"] = Json::parse(SeccompProfile(names.contains("SYS_ADMIN")));
  }
  Json config = {{"ociVersion", "1.0.2"},
                 {"process", process},
                 {"root", {{"path", settings.root_path}, {"readonly", settings.read_only}}},
                 {"hostname", settings.hostname},
                 {"mounts", mounts},
                 {"linux", linux_part}};
  return Dump(config);
}

base::Result<std::string> MakeOciProcess(const ContainerSettings& settings, bool with_user) {
  Json process = {{"terminal", settings.terminal}, {"args", settings.args}};
  if (settings.args.empty()) return base::MakeError(EINVAL, "exec", "args", "no program");
  if (!settings.cwd.empty()) process["cwd"] = settings.cwd;
  if (with_user) process["user"] = UserJson(settings.user);
  if (!settings.env.empty()) process["env"] = settings.env;
  if (settings.terminal && settings.width != 0) {
    process["consoleSize"] = {{"width", settings.width}, {"height", settings.height}};
  }
  return Dump(process);
}

base::Result<uint64_t> ParseSize(const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit(end, text.data() + text.size());
  std::ranges::transform(unit, unit.begin(), [](unsigned char c) { return static_cast<char>(tolower(c)); });
  if (unit.size() > 1 && unit.ends_with('b')) unit.pop_back();
  if (unit.size() > 1 && unit.ends_with('i')) unit.pop_back();
  constexpr std::string_view kUnits = "bkmgt";
  const size_t power = unit.empty() ? 0 : kUnits.find(unit);
  if (error != std::errc() || unit.size() > 1 || power == std::string_view::npos ||
      value > (UINT64_MAX >> (10 * power))) {
    return base::MakeError(EINVAL, "parse size", text, "a number and one of b, k, m, g, t");
  }
  return value << (10 * power);
}

base::Result<int> ParseSignal(const std::string& text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size()) {
    if (number >= 1 && number <= 64) return number;
  } else {
    const std::string name = text.starts_with("SIG") ? text.substr(3) : text;
    for (int signal = 1; signal < NSIG; ++signal) {
      const char* abbreviation = sigabbrev_np(signal);
      if (abbreviation != nullptr && name == abbreviation) return signal;
    }
  }
  return base::MakeError(EINVAL, "parse signal", text, "a name such as TERM, or 1 to 64");
}

}  // namespace gcs::host
