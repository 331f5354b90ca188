// SPDX-License-Identifier: Apache-2.0
#include "guest/info.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "base/clock.h"
#include "base/paths.h"

namespace gcs::guest {

namespace {

// The value of a line "key:   1234 kB" of /proc/meminfo in bytes.
base::Result<uint64_t> MeminfoBytes(std::string_view text, std::string_view key) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    if (!line.starts_with(key) || line.size() <= key.size() || line[key.size()] != ':') continue;
    line.remove_prefix(key.size() + 1);
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    uint64_t kib = 0;
    const auto parsed = std::from_chars(line.data(), line.data() + line.size(), kib);
    if (parsed.ec != std::errc()) break;
    return kib * 1024;
  }
  return base::MakeError(EBADMSG, "parse", "/proc/meminfo", std::string(key) + " is missing or no number");
}

// Whether a driver's directory in sysfs has a device bound to it; the other names in there are "bind",
// "uevent" and the like.
bool HasDevice(const std::string& driver, bool (*is_device)(std::string_view name)) {
  const auto names = base::ListDir(driver);
  return names && std::ranges::any_of(*names, is_device);
}

bool IsGuid(std::string_view name) { return name.size() == 36 && name[8] == '-'; }
bool IsVirtioDevice(std::string_view name) {
  return name.starts_with("virtio") && name.size() > 6 && name[6] >= '0' && name[6] <= '9';
}

}  // namespace

base::Result<MachineInfo> ReadMachineInfo() {
  MachineInfo info;
  utsname name{};
  if (uname(&name) != 0) return base::ErrnoError("uname");
  info.kernel_release = name.release;
  info.kernel_version = name.version;
  info.uptime_ns = base::BoottimeNs();
  info.time_ns = base::RealtimeNs();
  const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  if (cpus < 1) return base::ErrnoError("sysconf", "_SC_NPROCESSORS_ONLN");
  info.cpus = static_cast<uint32_t>(cpus);
  GCS_ASSIGN(const std::string meminfo, base::ReadFile("/proc/meminfo"));
  GCS_ASSIGN(info.memory_total_bytes, MeminfoBytes(meminfo, "MemTotal"));
  GCS_ASSIGN(info.memory_available_bytes, MeminfoBytes(meminfo, "MemAvailable"));
  return info;
}

base::Result<std::vector<BootPhase>> ParseBootPhases(std::string_view text) {
  std::vector<BootPhase> phases;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    at = end + 1;
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    int64_t ns = -1;
    if (space != std::string_view::npos && space > 0) {
      const auto parsed = std::from_chars(line.data() + space + 1, line.data() + line.size(), ns);
      if (parsed.ec != std::errc() || parsed.ptr != line.data() + line.size()) ns = -1;
    }
    if (ns < 0) return base::MakeError(EBADMSG, "parse boot phases", line);
    phases.push_back({std::string(line.substr(0, space)), ns});
  }
  return phases;
}

base::Result<std::vector<BootPhase>> ReadBootPhases(const std::string& path) {
  auto text = base::ReadFile(path);
  if (!text && text.error().err == ENOENT) return std::vector<BootPhase>();
  if (!text) return std::unexpected(std::move(text).error());
  return ParseBootPhases(*text);
}

std::string VsockTransport() {
  // VMBus names its devices by GUID, so any link but "module" is one; virtio calls them virtioN.
  if (HasDevice("/sys/bus/vmbus/drivers/hv_sock", IsGuid)) return "hyperv";
  if (HasDevice("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport", IsVirtioDevice)) return "virtio";
  return "vsock";
}

}  // namespace gcs::guest
