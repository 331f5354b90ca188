// SPDX-License-Identifier: Apache-2.0
#include "host/gcsctl/share.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/paths.h"

extern char** environ;

namespace gcs::gcsctl {

namespace {

using Json = nlohmann::json;

constexpr uint32_t kFirstPort = 20'000;
constexpr uint32_t kLastPort = 29'999;
constexpr char kDiod[] = "/usr/sbin/diod";

// Field 22 of /proc/PID/stat: with the pid it names one process for as long as the machine is up.
std::string StartTime(pid_t pid) {
  const auto stat = base::ReadFile("/proc/" + std::to_string(pid) + "/stat");
  if (!stat) return {};
  size_t at = stat->rfind(')');
  for (int field = 2; at != std::string::npos && field < 22; ++field) at = stat->find(' ', at + 1);
  if (at == std::string::npos) return {};
  return stat->substr(at + 1, stat->find(' ', at + 1) - at - 1);
}

// A guest that is not what it should be must not write to a read-only share. diod's own "ro" lets attributes
// and O_RDONLY|O_TRUNC through, so the kernel refuses: the server sees its directory by a read-only mount
// that nobody else has. Arguments: log, directory, mount point, the server's command.
constexpr char kReadOnlyScript[] = R"(exec 2>>"$1"; mount -o bind,ro "$2" "$3" && shift 3 && exec "$@")";

// Where a read-only share is mounted.
std::string MountPoint(const std::string& state_file) {
  return state_file.substr(0, state_file.size() - std::string_view(".json").size());
}

// Serves `directory`; with a `mount_point`, which is what is exported then, read-only. It runs in
// `own_dir`, where its core file goes if it leaves one (it raises that limit itself).
base::Result<pid_t> SpawnServer(const std::string& directory, const std::string& mount_point,
                                const std::string& socket, const std::string& own_dir,
                                const std::string& log) {
  if (access(kDiod, X_OK) != 0) {
    return base::MakeError(errno, "share directory", kDiod, "not there: apt-get install diod");
  }
  std::vector<std::string> words;
  if (!mount_point.empty()) {
    words = {"/usr/bin/unshare", "--mount",  "/bin/sh", "-c", kReadOnlyScript, "sh", log,
             directory,          mount_point};
  }
  words.insert(words.end(),
               {kDiod, "--foreground", "--no-auth", "--export", mount_point.empty() ? directory : mount_point,
                "--listen", socket, "--logdest", log, "--nwthreads", "4"});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  // A terminal's Ctrl-C is gcsctl's to handle.
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (const int fd : {0, 1, 2}) posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
  posix_spawn_file_actions_addchdir_np(&actions, own_dir.c_str());
  pid_t pid = 0;
  const int err = posix_spawn(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (err != 0) return base::MakeError(err, "share directory", argv[0]);
  return pid;
}

// Ends the server that a state file tells of, and forgets it. An empty file was left by a gcsctl that died.
void End(const std::string& state_file) {
  const auto text = base::ReadFile(state_file);
  const Json json = text ? Json::parse(*text, nullptr, false) : Json();
  if (json.is_object()) {
    const pid_t pid = json.value("pid", 0);
    const base::Fd pidfd(pid > 1 ? static_cast<int>(syscall(SYS_pidfd_open, pid, 0)) : -1);
    if (pidfd && StartTime(pid) == json.value("start_time", "")) {
      syscall(SYS_pidfd_send_signal, pidfd.get(), SIGTERM, nullptr, 0);
    }
    unlink(json.value("socket", "").c_str());
  }
  rmdir(MountPoint(state_file).c_str());
  unlink(state_file.c_str());
}

std::vector<std::string> StateFiles(const std::string& state_dir) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(state_dir, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("share-") && name.ends_with(".json")) files.push_back(entry.path().string());
  }
  return files;
}

// Makes and locks the state file of a free port: it reserves the port.
base::Result<Share> Reserve(const std::string& state_dir) {
  Share share;
  for (share.port = kFirstPort; share.port <= kLastPort; ++share.port) {
    share.state_file = state_dir + "/share-" + std::to_string(share.port) + ".json";
    share.lock.Reset(open(share.state_file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!share.lock && errno != EEXIST) return base::ErrnoError("open", share.state_file);
    if (!share.lock || flock(share.lock.get(), LOCK_EX | LOCK_NB) != 0) continue;
    // Between the two calls a sweep may have taken the file for a dead one's.
    struct stat st{};
    if (fstat(share.lock.get(), &st) == 0 && st.st_nlink == 1) return share;
  }
  return base::MakeError(EADDRINUSE, "share directory", state_dir, "no port is free");
}

// Starts the server of `directory` and waits until it listens.
base::Result<> Serve(Share& share, const Machine& machine, const std::string& container_id,
                     const std::string& directory, bool read_only) {
  const std::string socket = machine.control().ListenPath(share.port);
  const std::string log = machine.dir + "/diod.log";
  const std::string mount_point = read_only ? MountPoint(share.state_file) : "";
  if (read_only) GCS_TRY(base::MakeDirs(mount_point, 0700));
  share.name = read_only ? mount_point : directory;
  GCS_ASSIGN(const pid_t pid, SpawnServer(directory, mount_point, socket, machine.dir, log));
  const Json json = {{"container", container_id},    {"pid", pid},
                     {"start_time", StartTime(pid)}, {"socket", socket},
                     {"directory", directory},       {"name", share.name}};
  // In place: a new file would not be locked.
  const std::string text = json.dump() + "\n";
  if (write(share.lock.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    kill(pid, SIGTERM);
    return base::ErrnoError("write", share.state_file);
  }
  const int64_t deadline = base::MonotonicNs() + (5 * base::kNsPerSec);
  while (access(socket.c_str(), F_OK) != 0) {
    if (StartTime(pid).empty() || base::MonotonicNs() > deadline) {
      return base::MakeError(EIO, "share directory", directory, "diod does not listen; see " + log);
    }
    const timespec pause = {.tv_sec = 0, .tv_nsec = 5 * base::kNsPerMs};
    nanosleep(&pause, nullptr);
  }
  return {};
}

}  // namespace

base::Result<Share> StartShare(const Machine& machine, const std::string& container_id,
                               const std::string& directory, bool read_only) {
  char* const resolved = realpath(directory.c_str(), nullptr);
  if (resolved == nullptr) return base::ErrnoError("share directory", directory);
  const std::string path = resolved;
  free(resolved);
  struct stat st{};
  if (stat(path.c_str(), &st) != 0) return base::ErrnoError("share directory", path);
  if (!S_ISDIR(st.st_mode)) {
    return base::MakeError(ENOTDIR, "share directory", path, "only directories can be shared");
  }
  GCS_ASSIGN(Share share, Reserve(machine.dir));
  if (auto serving = Serve(share, machine, container_id, path, read_only); !serving) {
    EndShare(share);
    return std::unexpected(std::move(serving).error());
  }
  return share;
}

void EndShare(const Share& share) { End(share.state_file); }

void EndUnusedShares(host::Client& client, const Machine& machine) {
  const std::vector<std::string> files = StateFiles(machine.dir);
  if (files.empty()) return;
  // One sweep at a time, so that none passes over a share because another one looks at it.
  const base::Fd sweep(open((machine.dir + "/share-sweep").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!sweep || flock(sweep.get(), LOCK_EX) != 0) return;
  // First the locks, then the list: who has let go of a share by then has its container in the list.
  std::vector<std::pair<std::string, base::Fd>> locked;
  for (const std::string& file : files) {
    base::Fd lock(open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (lock && flock(lock.get(), LOCK_EX | LOCK_NB) == 0) locked.emplace_back(file, std::move(lock));
  }
  const auto list = client.Call(v1::ListContainersRequest());
  if (!list) return;
  std::set<std::string> keep;
  for (const v1::Container& container : list->containers()) keep.insert(container.container_id());
  for (const auto& [file, lock] : locked) {
    const auto text = base::ReadFd(lock.get(), file, 64 << 10);
    const Json json = text ? Json::parse(*text, nullptr, false) : Json();
    if (!json.is_object() || !keep.contains(json.value("container", ""))) End(file);
  }
}

void EndAllShares(const std::string& state_dir) {
  for (const std::string& file : StateFiles(state_dir)) End(file);
}

}  // namespace gcs::gcsctl
