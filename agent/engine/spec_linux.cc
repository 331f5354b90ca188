// SPDX-License-Identifier: Apache-2.0
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/personality.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "engine/spec_read.h"
#include "net/device.h"

namespace gcs::engine {

using base::JsonReader;

namespace {

constexpr std::array<NamedNumber, 8> kNamespaces{{{"pid", CLONE_NEWPID},
                                                  {"network", CLONE_NEWNET},
                                                  {"mount", CLONE_NEWNS},
                                                  {"ipc", CLONE_NEWIPC},
                                                  {"uts", CLONE_NEWUTS},
                                                  {"user", CLONE_NEWUSER},
                                                  {"cgroup", CLONE_NEWCGROUP},
                                                  {"time", CLONE_NEWTIME}}};

void ReadNamespaces(JsonReader& linux_part, Spec& spec) {
  for (JsonReader& entry : linux_part.Objects("namespaces")) {
    const auto flag = ReadNamed(entry, "type", kNamespaces);
    if (!flag) return;
    const Namespace ns{static_cast<int>(*flag), entry.String("path")};
    if (spec.FindNamespace(ns.flag) != nullptr) entry.Fail("type", "duplicate " + entry.String("type"));
    if (!ns.path.empty() && ns.path[0] != '/') entry.Fail("path", "must be absolute");
    if (!ns.path.empty() && ns.flag == CLONE_NEWNS) {
      entry.Fail("path", "joining a mount namespace is not supported", EOPNOTSUPP);
    }
    spec.namespaces.push_back(ns);
  }
  if (spec.FindNamespace(CLONE_NEWNS) == nullptr) {
    linux_part.Fail("namespaces", "a mount namespace is required", EOPNOTSUPP);
  }
}

// Id mappings and clock offsets belong to namespaces that are made here.
void ReadNamespaceSettings(JsonReader& linux_part, Spec& spec) {
  spec.uid_mappings = ReadIdMappings(linux_part, "uidMappings");
  spec.gid_mappings = ReadIdMappings(linux_part, "gidMappings");
  if (spec.MakesNamespace(CLONE_NEWUSER)) {
    if (spec.uid_mappings.empty()) linux_part.Fail("uidMappings", "is required for a new user namespace");
    if (spec.gid_mappings.empty()) linux_part.Fail("gidMappings", "is required for a new user namespace");
  } else if (spec.FindNamespace(CLONE_NEWUSER) == nullptr &&
             !(spec.uid_mappings.empty() && spec.gid_mappings.empty())) {
    linux_part.Fail("uidMappings", "needs a user namespace");
  }
  JsonReader offsets = linux_part.Object("timeOffsets");
  for (const auto& [clock, value] : offsets.value().items()) {
    if (clock != "monotonic" && clock != "boottime") {
      offsets.Fail(clock, "is no clock of a time namespace");
      continue;
    }
    JsonReader entry = offsets.Object(clock.c_str());
    spec.time_offsets.push_back({clock, entry.Int("secs", 0, INT64_MIN, INT64_MAX),
                                 static_cast<uint32_t>(entry.Int("nanosecs", 0, 0, 999'999'999))});
  }
  if (!spec.time_offsets.empty() && !spec.MakesNamespace(CLONE_NEWTIME)) {
    linux_part.Fail("timeOffsets", "needs a new time namespace");
  }
}

void ReadNetDevices(JsonReader& linux_part, Spec& spec) {
  JsonReader devices = linux_part.Object("netDevices");
  for (const auto& [name, value] : devices.value().items()) {
    if (!net::ValidDeviceName(name)) {
      devices.Fail(name, "is no name of a network device");
      continue;
    }
    JsonReader entry = devices.Object(name.c_str());
    NetDevice device{name, entry.String("name")};
    if (!device.new_name.empty() && !net::ValidDeviceTemplate(device.new_name)) {
      entry.Fail("name", "is no name of a network device: " + device.new_name);
    }
    const auto wanted = [](const NetDevice& each) {
      return each.new_name.empty() ? each.name : each.new_name;
    };
    const bool twice = std::ranges::any_of(
        spec.net_devices, [&](const NetDevice& other) { return wanted(other) == wanted(device); });
    if (twice && wanted(device).find('%') == std::string::npos) {
      entry.Fail("name", "is another device's, too: " + wanted(device));
    }
    spec.net_devices.push_back(std::move(device));
  }
  if (!spec.net_devices.empty() && spec.FindNamespace(CLONE_NEWNET) == nullptr) {
    linux_part.Fail("netDevices", "needs a network namespace");
  }
}

void ReadPersonality(JsonReader& linux_part, Spec& spec) {
  if (!linux_part.Has("personality")) return;
  constexpr std::array<NamedNumber, 2> kDomains{{{"LINUX", PER_LINUX}, {"LINUX32", PER_LINUX32}}};
  JsonReader entry = linux_part.Object("personality");
  spec.personality = static_cast<uint32_t>(ReadNamed(entry, "domain", kDomains).value_or(PER_LINUX));
  if (!entry.Strings("flags").empty()) entry.Fail("flags", "none are defined");
}

void ReadMemoryPolicy(JsonReader& linux_part, Spec& spec) {
  if (!linux_part.Has("memoryPolicy")) return;
  constexpr std::array<NamedNumber, 7> kModes{{{"MPOL_DEFAULT", MPOL_DEFAULT},
                                               {"MPOL_PREFERRED", MPOL_PREFERRED},
                                               {"MPOL_BIND", MPOL_BIND},
                                               {"MPOL_INTERLEAVE", MPOL_INTERLEAVE},
                                               {"MPOL_LOCAL", MPOL_LOCAL},
                                               {"MPOL_PREFERRED_MANY", MPOL_PREFERRED_MANY},
                                               {"MPOL_WEIGHTED_INTERLEAVE", 6}}};  // since Linux 6.9
  constexpr std::array<NamedNumber, 3> kFlags{{{"MPOL_F_STATIC_NODES", MPOL_F_STATIC_NODES},
                                               {"MPOL_F_RELATIVE_NODES", MPOL_F_RELATIVE_NODES},
                                               {"MPOL_F_NUMA_BALANCING", MPOL_F_NUMA_BALANCING}}};
  JsonReader entry = linux_part.Object("memoryPolicy");
  MemoryPolicy policy;
  policy.mode = static_cast<int>(ReadNamed(entry, "mode", kModes).value_or(MPOL_DEFAULT));
  policy.mode |= static_cast<int>(ReadFlags(entry, "flags", kFlags));
  policy.nodes = ReadBitList(entry, "nodes");
  spec.memory_policy = std::move(policy);
}

// "l3CacheSchema" may have lines for memory bandwidth, which count only without "memBwSchema".
void ReadIntelRdt(JsonReader& linux_part, Spec& spec) {
  if (!linux_part.Has("intelRdt")) return;
  JsonReader entry = linux_part.Object("intelRdt");
  IntelRdt rdt{.clos_id = entry.String("closID"), .enable_monitoring = entry.Bool("enableMonitoring")};
  const bool plain = rdt.clos_id.size() <= 255 && rdt.clos_id.find_first_of("/\n") == std::string::npos &&
                     rdt.clos_id != "." && rdt.clos_id != "..";
  if (rdt.clos_id != "/" && !plain) entry.Fail("closID", "must be the name of one directory, or /");
  const std::string bandwidth = entry.String("memBwSchema");
  std::string cache = entry.String("l3CacheSchema");
  while (!cache.empty()) {
    const size_t end = std::min(cache.find('\n'), cache.size());
    const std::string line = cache.substr(0, end);
    cache.erase(0, end + 1);
    if (!line.empty() && (bandwidth.empty() || !line.starts_with("MB:"))) rdt.schemata.push_back(line);
  }
  if (!bandwidth.empty()) {
    if (!bandwidth.starts_with("MB:") || bandwidth.find('\n') != std::string::npos) {
      entry.Fail("memBwSchema", "must be one line that starts with MB:");
    }
    rdt.schemata.push_back(bandwidth);
  }
  for (std::string& line : entry.Strings("schemata")) {
    if (line.empty() || line.find('\n') != std::string::npos) entry.Fail("schemata", "must be lines");
    rdt.schemata.push_back(std::move(line));
  }
  spec.intel_rdt = std::move(rdt);
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
    // podman and containerd put the file type in, as stat(2) does; the device's type is what counts (runc).
    device.mode = static_cast<uint32_t>(entry.Int("fileMode", 0666, 0, 0177777)) & 07777;
    device.uid = static_cast<uint32_t>(entry.Int("uid", 0, 0, kIdMax));
    device.gid = static_cast<uint32_t>(entry.Int("gid", 0, 0, kIdMax));
    spec.devices.push_back(std::move(device));
  }
  if (spec.devices.size() > kMaxDevices) linux_part.Fail("devices", "more than 10000 devices", E2BIG);
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

}  // namespace

std::vector<IdMapping> ReadIdMappings(JsonReader& reader, const char* key) {
  constexpr size_t kMaxMappings = 340;  // of the kernel, user_namespaces(7)
  std::vector<IdMapping> mappings;
  for (JsonReader& entry : reader.Objects(key)) {
    for (const char* field : {"containerID", "hostID", "size"}) {
      if (!entry.Has(field)) entry.Fail(field, "is required");
    }
    mappings.push_back({static_cast<uint32_t>(entry.Int("containerID", 0, 0, kIdMax)),
                        static_cast<uint32_t>(entry.Int("hostID", 0, 0, kIdMax)),
                        static_cast<uint32_t>(entry.Int("size", 1, 1, kIdMax + 1))});
  }
  if (mappings.size() > kMaxMappings) reader.Fail(key, "more than 340 ranges", E2BIG);
  return mappings;
}

void ReadLinux(JsonReader reader, Spec& spec) {
  ReadNamespaces(reader, spec);
  ReadNamespaceSettings(reader, spec);
  ReadNetDevices(reader, spec);
  ReadPersonality(reader, spec);
  ReadMemoryPolicy(reader, spec);
  ReadIntelRdt(reader, spec);
  spec.mount_label = reader.String("mountLabel");
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
}

int SysctlNamespace(std::string_view key, std::string* path) {
  constexpr std::array<std::string_view, 8> kIpc{"kernel.msgmax", "kernel.msgmnb",         "kernel.msgmni",
                                                 "kernel.sem",    "kernel.shmall",         "kernel.shmmax",
                                                 "kernel.shmmni", "kernel.shm_rmid_forced"};
  std::string name(key);
  if (name.find('.') == std::string::npos) std::ranges::replace(name, '/', '.');
  const bool plain = name.find("..") == std::string::npos && name.find('/') == std::string::npos &&
                     name.find_first_of(" \t\n=+") == std::string::npos &&
                     name.find('\0') == std::string::npos;
  if (!plain) return 0;
  int kind = 0;
  if (name.starts_with("net.")) kind = CLONE_NEWNET;
  if (std::ranges::find(kIpc, name) != kIpc.end() || name.starts_with("fs.mqueue.")) kind = CLONE_NEWIPC;
  if (name == "kernel.domainname") kind = CLONE_NEWUTS;
  if (name.starts_with("user.")) kind = CLONE_NEWUSER;
  std::ranges::replace(name, '.', '/');
  *path = std::move(name);
  return kind;
}

void CheckSysctls(JsonReader& reader, Spec& spec) {
  for (auto& [key, value] : spec.sysctl) {
    std::string path;
    const int kind = SysctlNamespace(key, &path);
    if (kind == 0 || !spec.MakesNamespace(kind) || (kind == CLONE_NEWUTS && !spec.domainname.empty()) ||
        value.find('\n') != std::string::npos) {
      reader.Fail("linux.sysctl." + key, "is not a sysctl of a namespace of the container");
    }
    key = std::move(path);
  }
}

}  // namespace gcs::engine
