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

base::Result<pid_t> SpawnServer(const std::string& directory, const std::string& socket,
                                const std::string& log) {
  std::vector<std::string> words = {kDiod,  "--foreground", "--no-auth", "--export",    directory, "--listen",
                                    socket, "--logdest",    log,         "--nwthreads", "4"};
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
  pid_t pid = 0;
  const int err = posix_spawn(&pid, kDiod, &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (err == ENOENT) return base::MakeError(err, "share directory", kDiod, "not there: apt-get install diod");
  if (err != 0) return base::MakeError(err, "share directory", kDiod);
  return pid;
}

}  // namespace

base::Result<Share> StartShare(const Machine& machine, const std::string& container_id,
                               const std::string& directory, bool /*read_only*/) {
  char* const resolved = realpath(directory.c_str(), nullptr);
  if (resolved == nullptr) return base::ErrnoError("share directory", directory);
  Share share{.port = 0, .directory = resolved};
  free(resolved);
  struct stat st{};
  if (stat(share.directory.c_str(), &st) != 0) return base::ErrnoError("share directory", share.directory);
  if (!S_ISDIR(st.st_mode)) {
    return base::MakeError(ENOTDIR, "share directory", share.directory, "only directories can be shared");
  }
  // The file reserves the port.
  std::string state;
  for (share.port = kFirstPort; share.port <= kLastPort; ++share.port) {
    state = machine.dir + "/share-" + std::to_string(share.port) + ".json";
    const base::Fd reserved(open(state.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (reserved) break;
    if (errno != EEXIST) return base::ErrnoError("open", state);
  }
  if (share.port > kLastPort) return base::MakeError(EADDRINUSE, "share directory", share.directory);
  const std::string socket = machine.control().ListenPath(share.port);
  auto pid = SpawnServer(share.directory, socket, machine.dir + "/diod.log");
  if (!pid) {
    unlink(state.c_str());
    return std::unexpected(pid.error());
  }
  const Json json = {{"container", container_id},
                     {"pid", *pid},
                     {"start_time", StartTime(*pid)},
                     {"socket", socket},
                     {"directory", share.directory}};
  GCS_TRY(base::ReplaceFile(state, json.dump() + "\n", 0600));
  const int64_t deadline = base::MonotonicNs() + (5 * base::kNsPerSec);
  while (access(socket.c_str(), F_OK) != 0) {
    if (StartTime(*pid).empty() || base::MonotonicNs() > deadline) {
      return base::MakeError(EIO, "share directory", share.directory,
                             "diod does not listen; see " + machine.dir + "/diod.log");
    }
    const timespec pause = {.tv_sec = 0, .tv_nsec = 5 * base::kNsPerMs};
    nanosleep(&pause, nullptr);
  }
  return share;
}

void EndShares(const std::string& state_dir, const std::set<std::string>& keep) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(state_dir, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("share-") || !name.ends_with(".json")) continue;
    const auto text = base::ReadFile(entry.path().string());
    const Json json = text ? Json::parse(*text, nullptr, false) : Json();
    // Empty: another gcsctl is about to fill it in.
    if (!json.is_object() || keep.contains(json.value("container", ""))) continue;
    const pid_t pid = json.value("pid", 0);
    if (pid > 1) {
      const base::Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
      if (pidfd && StartTime(pid) == json.value("start_time", "")) {
        syscall(SYS_pidfd_send_signal, pidfd.get(), SIGTERM, nullptr, 0);
      }
    }
    unlink(json.value("socket", "").c_str());
    unlink(entry.path().c_str());
  }
}

}  // namespace gcs::gcsctl
