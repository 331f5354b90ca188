// SPDX-License-Identifier: Apache-2.0
#include "host/vm/control.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "host/vm/command.h"
#include "host/vm/qmp.h"
#include "host/vm/wait.h"
#include "host/vsock/unix_socket.h"

namespace gcs::host {

namespace {

constexpr int64_t kQmpTimeoutMs = 10'000;
constexpr int64_t kConnectRetryNs = 5'000'000;
constexpr uint64_t kMemoryBlock = 128 << 20;

// The device ids that DiskId makes.
bool ParseDiskId(std::string_view id, Disk& disk) {
  constexpr std::string_view kPrefix = "disk-";
  if (!id.starts_with(kPrefix)) return false;
  const char* const end = id.data() + id.size();
  const auto target = std::from_chars(id.data() + kPrefix.size(), end, disk.target);
  if (target.ec != std::errc() || target.ptr == end || *target.ptr != '-') return false;
  const auto lun = std::from_chars(target.ptr + 1, end, disk.lun);
  return lun.ec == std::errc() && lun.ptr == end;
}

base::Result<std::vector<Disk>> ListDisks(QmpClient& qmp) {
  GCS_ASSIGN(const nlohmann::json blocks, qmp.Execute("query-block", nlohmann::json::object()));
  std::vector<Disk> disks;
  for (const nlohmann::json& block : blocks) {
    Disk disk;
    if (!ParseDiskId(block.value("qdev", ""), disk) || !block.contains("inserted")) continue;
    disk.path = block["inserted"].value("file", "");
    disk.readonly = block["inserted"].value("ro", false);
    disks.push_back(std::move(disk));
  }
  return disks;
}

base::Result<> PlugDisk(QmpClient& qmp, const Disk& disk) {
  GCS_TRY(qmp.Execute("blockdev-add", BlockdevArguments(disk)));
  const auto added = qmp.Execute("device_add", ScsiDiskArguments(disk));
  if (added) return {};
  // The node is of no use without its device; if it cannot be removed either, the first failure is the one to
  // report.
  [[maybe_unused]] const auto removed =
      qmp.Execute("blockdev-del", {{"node-name", NodeName(disk.target, disk.lun)}});
  return std::unexpected(added.error());
}

}  // namespace

base::Result<base::Fd> VmControl::Connect(uint32_t port, int64_t timeout_ms) const {
  const int64_t deadline = base::MonotonicNs() + (timeout_ms * base::kNsPerMs);
  const std::string object = vsock_path() + " port " + std::to_string(port);
  auto connected = vsock::ConnectUnix(vsock_path());
  while (!connected && connected.error().err == EAGAIN && base::MonotonicNs() < deadline) {
    const timespec pause = {.tv_sec = 0, .tv_nsec = kConnectRetryNs};
    nanosleep(&pause, nullptr);
    connected = vsock::ConnectUnix(vsock_path());
  }
  if (!connected) return connected;
  const base::Fd& socket = *connected;
  const std::string request = "CONNECT " + std::to_string(port) + "\n";
  if (send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size())) {
    if (errno == EPIPE || errno == ECONNRESET) return base::MakeError(ECONNREFUSED, "vsock connect", object);
    return base::ErrnoError("vsock connect", object);
  }
  // Byte by byte up to the newline: what follows belongs to the caller.
  std::string line;
  while (!line.ends_with('\n')) {
    GCS_TRY(WaitFd(socket.get(), POLLIN, deadline, "vsock connect " + object));
    char byte = 0;
    const ssize_t n = recv(socket.get(), &byte, 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n == 0 || (n < 0 && errno == ECONNRESET))
      return base::MakeError(ECONNREFUSED, "vsock connect", object);
    if (n < 0) return base::ErrnoError("vsock connect", object);
    line.push_back(byte);
    if (line.size() > 32) return base::MakeError(EPROTO, "vsock connect", object, line);
  }
  if (!line.starts_with("OK ")) return base::MakeError(EPROTO, "vsock connect", object, line);
  // Callers get an ordinary blocking socket.
  const int flags = fcntl(socket.get(), F_GETFL);
  if (flags < 0 || fcntl(socket.get(), F_SETFL, flags & ~O_NONBLOCK) != 0) {
    return base::ErrnoError("fcntl", object);
  }
  return connected;
}

std::string VmControl::ListenPath(uint32_t port) const { return vsock_path() + "_" + std::to_string(port); }

base::Result<base::Fd> VmControl::Listen(uint32_t port) const {
  return vsock::ListenUnix(ListenPath(port), SOMAXCONN);
}

base::Result<nlohmann::json> VmControl::Qmp(const std::string& command,
                                            const nlohmann::json& arguments) const {
  GCS_ASSIGN(QmpClient qmp, QmpClient::Connect(qmp_path(), kQmpTimeoutMs));
  return qmp.Execute(command, arguments);
}

base::Result<> VmControl::AddDisk(const Disk& disk) const {
  GCS_ASSIGN(QmpClient qmp, QmpClient::Connect(qmp_path(), kQmpTimeoutMs));
  GCS_ASSIGN(const std::vector<Disk> present, ListDisks(qmp));
  for (const Disk& other : present) {
    if (other.target == disk.target && other.lun == disk.lun) {
      return base::MakeError(EEXIST, "add disk", disk.path, "address is taken by " + other.path);
    }
  }
  return PlugDisk(qmp, disk);
}

base::Result<Disk> VmControl::AddDiskAnywhere(Disk disk) const {
  GCS_ASSIGN(QmpClient qmp, QmpClient::Connect(qmp_path(), kQmpTimeoutMs));
  GCS_ASSIGN(const std::vector<Disk> present, ListDisks(qmp));
  std::set<uint32_t> taken;
  for (const Disk& other : present) {
    if (other.target == 0) taken.insert(other.lun);
  }
  disk.target = 0;
  disk.lun = 0;
  while (taken.contains(disk.lun)) ++disk.lun;
  GCS_TRY(PlugDisk(qmp, disk));
  return disk;
}

base::Result<> VmControl::RemoveDisk(uint32_t target, uint32_t lun, int64_t timeout_ms) const {
  GCS_ASSIGN(QmpClient qmp, QmpClient::Connect(qmp_path(), timeout_ms));
  const std::string id = DiskId(target, lun);
  GCS_ASSIGN(const std::vector<Disk> present, ListDisks(qmp));
  bool found = false;
  for (const Disk& disk : present) found = found || (disk.target == target && disk.lun == lun);
  if (!found) return base::MakeError(ENOENT, "remove disk", id);
  GCS_TRY(qmp.Execute("device_del", {{"id", id}}));
  GCS_TRY(qmp.WaitEvent("DEVICE_DELETED",
                        [&id](const nlohmann::json& data) { return data.value("device", "") == id; }));
  GCS_TRY(qmp.Execute("blockdev-del", {{"node-name", NodeName(target, lun)}}));
  return {};
}

base::Result<std::vector<Disk>> VmControl::Disks() const {
  GCS_ASSIGN(QmpClient qmp, QmpClient::Connect(qmp_path(), kQmpTimeoutMs));
  return ListDisks(qmp);
}

base::Result<> VmControl::AddMemory(uint32_t mib) const {
  if (mib == 0 || mib % 128 != 0)
    return base::MakeError(EINVAL, "add memory", std::to_string(mib), "no multiple of 128 MiB");
  GCS_ASSIGN(QmpClient qmp, QmpClient::Connect(qmp_path(), kQmpTimeoutMs));
  GCS_ASSIGN(const nlohmann::json present, qmp.Execute("query-memory-devices", nlohmann::json::object()));
  const std::string number = std::to_string(present.size());
  // QEMU would put it right behind an nvdimm of any size; Linux takes memory in whole blocks of 128 MiB only.
  uint64_t end = 0;
  for (const nlohmann::json& device : present) {
    const nlohmann::json& data = device["data"];
    end = std::max(end, data.value("addr", uint64_t{0}) + data.value("size", uint64_t{0}));
  }
  end = (end + kMemoryBlock - 1) / kMemoryBlock * kMemoryBlock;
  const std::string backend = "hotmem" + number;
  GCS_TRY(qmp.Execute("object-add", {{"qom-type", "memory-backend-memfd"},
                                     {"id", backend},
                                     {"size", uint64_t{mib} << 20},
                                     {"share", true}}));
  nlohmann::json dimm = {{"driver", "pc-dimm"}, {"id", "dimm" + number}, {"memdev", backend}};
  if (end != 0) dimm["addr"] = end;
  const auto added = qmp.Execute("device_add", dimm);
  if (added) return {};
  [[maybe_unused]] const auto removed = qmp.Execute("object-del", {{"id", backend}});
  return std::unexpected(added.error());
}

base::Result<> VmControl::Quit() const {
  const auto quit = Qmp("quit", nlohmann::json::object());
  // QEMU may be gone before its answer.
  if (!quit && quit.error().err != EPIPE && quit.error().err != ECONNRESET)
    return std::unexpected(quit.error());
  return {};
}

}  // namespace gcs::host
