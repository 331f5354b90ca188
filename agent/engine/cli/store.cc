// SPDX-License-Identifier: Apache-2.0
#include "engine/cli/store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/clock.h"
#include "base/paths.h"
#include "base/procfs.h"
#include "engine/engine.h"

namespace gcs::oci {

using base::ErrnoError;
using base::Fd;
using base::Json;
using base::MakeError;
using base::Result;

namespace {

constexpr char kSocket[] = "start.sock";
constexpr char kLock[] = "lock";

constexpr int64_t kLockStepNs = 10 * base::kNsPerMs;

Result<Fd> LockDirectory(int dir, const std::string& path, int operation) {
  GCS_ASSIGN(Fd lock, base::OpenFileAt(dir, kLock, O_RDWR | O_CREAT | O_NOFOLLOW, 0600));
  while (flock(lock.get(), operation) != 0) {
    if (errno != EINTR) return ErrnoError("lock", path);
  }
  return lock;
}

std::unexpected<base::Error> NoContainer(const std::string& id) {
  return MakeError(ENOENT, "find container", id, "container does not exist");
}

// Unix socket addresses are short: through the directory's descriptor any root will do.
sockaddr_un Address(int dir) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = "/proc/self/fd/" + std::to_string(dir) + "/" + kSocket;
  memcpy(address.sun_path, path.c_str(), std::min(path.size() + 1, sizeof address.sun_path));
  return address;
}

}  // namespace

std::string_view StatusName(Status status) {
  constexpr std::array<std::string_view, 5> kNames{"creating", "created", "running", "paused", "stopped"};
  return kNames[static_cast<size_t>(status)];
}

Result<Store> Store::Create(const std::string& root, const std::string& id) {
  if (!engine::ValidId(id))
    return MakeError(EINVAL, "create container", id.substr(0, 64), "bad container id");
  GCS_TRY(base::MakeDirs(root, 0700));
  const std::string path = root + "/" + id;
  GCS_ASSIGN(const Fd parent, base::OpenFile(root, O_RDONLY | O_DIRECTORY));
  GCS_TRY(base::MakeDirs(path, 0700));
  auto dir = base::OpenFileAt(parent.get(), id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!dir) return std::unexpected(dir.error());
  // Being made by another call, or with a state already: somebody else's.
  auto lock = LockDirectory(dir->get(), path, LOCK_EX | LOCK_NB);
  if (!lock && lock.error().err != EWOULDBLOCK) return std::unexpected(lock.error());
  if (!lock || base::ReadFileAt(dir->get(), "state.json")) {
    return MakeError(EEXIST, "create container", id, "container with given ID already exists");
  }
  return Store(path, std::move(*dir), std::move(*lock));
}

Result<Store> Store::Open(const std::string& root, const std::string& id, Access access,
                          int64_t deadline_ns) {
  if (!engine::ValidId(id)) return MakeError(EINVAL, "find container", id.substr(0, 64), "bad container id");
  const std::string path = root + "/" + id;
  auto dir = base::OpenFile(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  // Any other failure says nothing about the container: delete --force must not take it for gone.
  if (!dir && dir.error().err == ENOENT) return NoContainer(id);
  if (!dir) return std::unexpected(dir.error());
  Fd lock;
  if (access == Access::kChange) {
    auto locked = LockDirectory(dir->get(), path, LOCK_EX | LOCK_NB);
    while (!locked && locked.error().err == EWOULDBLOCK && base::MonotonicNs() < deadline_ns) {
      std::this_thread::sleep_for(std::chrono::nanoseconds(kLockStepNs));
      locked = LockDirectory(dir->get(), path, LOCK_EX | LOCK_NB);
    }
    if (!locked && locked.error().err == ENOENT) return NoContainer(id);  // deleted just now
    if (!locked && locked.error().err == EWOULDBLOCK) {
      return MakeError(EWOULDBLOCK, "lock container", id, "another call is changing it");
    }
    if (!locked) return std::unexpected(locked.error());
    lock = std::move(*locked);
  }
  return Store(path, std::move(*dir), std::move(lock));
}

Result<std::vector<std::string>> Store::List(const std::string& root) {
  auto names = base::ListDir(root);
  if (!names && names.error().err == ENOENT) return std::vector<std::string>();
  if (!names) return names;
  std::erase_if(*names, [&](const std::string& name) {
    return !engine::ValidId(name) || access((root + "/" + name + "/state.json").c_str(), F_OK) != 0;
  });
  return names;
}

Result<> Store::Save(const Record& record) {
  const Json json{{"id", record.id},
                  {"bundle", record.bundle},
                  {"cgroup_path", record.cgroup_path},
                  {"rootfs", record.rootfs},
                  {"init_process_pid", record.pid},
                  {"init_process_start", record.start_time},
                  {"creator_pid", record.creator.pid},
                  {"creator_start", record.creator.start_time},
                  {"created", record.created},
                  {"owner", record.owner},
                  {"made_rdt", record.made_rdt}};
  return base::ReplaceFile(path_ + "/state.json", json.dump(), 0600);
}

Result<> Store::SaveConfig(const std::string& config_json) {
  return base::ReplaceFile(path_ + "/config.json", config_json, 0600);
}

Result<Record> Store::Load() const {
  auto text = base::ReadFileAt(dir_.get(), "state.json");
  if (!text && text.error().err == ENOENT) return NoContainer(path_.substr(path_.rfind('/') + 1));
  if (!text) return std::unexpected(text.error());
  GCS_ASSIGN(const Json json, base::ParseJson(*text, path_ + "/state.json"));
  base::JsonReader reader(json, "read state");
  Record record{.id = reader.RequiredString("id"),
                .bundle = reader.String("bundle"),
                .cgroup_path = reader.RequiredString("cgroup_path"),
                .rootfs = reader.String("rootfs"),
                .pid = static_cast<int>(reader.Int("init_process_pid", 0, 0, INT32_MAX)),
                .start_time = reader.Uint64("init_process_start", 0),
                .creator = {.pid = static_cast<int>(reader.Int("creator_pid", 0, 0, INT32_MAX)),
                            .start_time = reader.Uint64("creator_start", 0)},
                .created = reader.String("created"),
                .owner = reader.String("owner"),
                .made_rdt = reader.Bool("made_rdt")};
  if (reader.error()) return std::unexpected(*reader.error());
  return record;
}

Result<std::string> Store::Config() const { return base::ReadFileAt(dir_.get(), "config.json", 16 << 20); }

Result<> Store::Remove() {
  // The state first: without it the container is gone for everybody else. The lock last: up to then no other
  // is made here.
  std::vector<std::string> names{"state.json"};
  for (std::string& name : base::ListDir(path_).value_or(names)) {
    if (name != kLock) names.push_back(std::move(name));
  }
  names.emplace_back(kLock);
  for (const std::string& name : names) {
    if (unlinkat(dir_.get(), name.c_str(), 0) != 0 && errno != ENOENT)
      return ErrnoError("remove state", path_, name);
  }
  // Another call may have removed it, or be making a new container there by now.
  if (unlinkat(AT_FDCWD, path_.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT && errno != ENOTEMPTY) {
    return ErrnoError("remove state", path_);
  }
  return {};
}

bool Store::Busy() const { return !lock_ && !LockDirectory(dir_.get(), path_, LOCK_SH | LOCK_NB); }

Result<Fd> Store::Listen() {
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) return ErrnoError("socket", kSocket);
  const sockaddr_un address = Address(dir_.get());
  unlinkat(dir_.get(), kSocket, 0);  // of a create that was killed
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(fd.get(), 8) != 0) {
    return ErrnoError("listen", path_ + "/" + kSocket);
  }
  return fd;
}

Result<Fd> Store::Connect() const {
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) return ErrnoError("socket", kSocket);
  const sockaddr_un address = Address(dir_.get());
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoError("connect", path_ + "/" + kSocket);
  }
  return fd;
}

uint64_t StartTime(int pid) {
  const auto stat = base::ReadFile("/proc/" + std::to_string(pid) + "/stat");
  if (!stat) return 0;
  const auto parsed = base::ParseProcessStat(*stat);
  return parsed && parsed->state != 'Z' && parsed->state != 'X' ? parsed->start_ticks : 0;
}

Result<Fd> OpenProcess(const ProcessId& process, const std::string& id) {
  Fd pidfd(process.pid > 0 ? static_cast<int>(syscall(SYS_pidfd_open, process.pid, 0)) : -1);
  // The number is looked at after the pidfd holds the process.
  if (!pidfd || StartTime(process.pid) != process.start_time || process.start_time == 0) {
    return MakeError(ESRCH, "find process", id, "container not running");
  }
  return pidfd;
}

}  // namespace gcs::oci
