// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "base/paths.h"
#include "host/image/pack.h"

namespace gcs::host {
namespace {

constexpr char kPath[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct FixedFile {
  const char* path;
  uint32_t mode;
  const char* content;
};

constexpr FixedFile kBase[] = {
    {"bin", S_IFDIR | 0755, nullptr},
    {"dev", S_IFDIR | 0755, nullptr},
    {"etc", S_IFDIR | 0755, nullptr},
    {"etc/group", S_IFREG | 0644, "root:x:0:\ndaemon:x:1:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n"},
    {"etc/hostname", S_IFREG | 0644, ""},
    {"etc/hosts", S_IFREG | 0644, "127.0.0.1\tlocalhost\n::1\tlocalhost\n"},
    {"etc/passwd", S_IFREG | 0644,
     "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
     "user:x:1000:100:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"},
    {"etc/resolv.conf", S_IFREG | 0644, ""},
    {"home", S_IFDIR | 0755, nullptr},
    {"mnt", S_IFDIR | 0755, nullptr},
    {"proc", S_IFDIR | 0755, nullptr},
    {"root", S_IFDIR | 0700, nullptr},
    {"run", S_IFDIR | 0755, nullptr},
    {"sbin", S_IFDIR | 0755, nullptr},
    {"sys", S_IFDIR | 0755, nullptr},
    {"tmp", S_IFDIR | 01777, nullptr},
    {"usr", S_IFDIR | 0755, nullptr},
    {"usr/bin", S_IFDIR | 0755, nullptr},
    {"usr/sbin", S_IFDIR | 0755, nullptr},
    {"var", S_IFDIR | 0755, nullptr},
    {"var/tmp", S_IFDIR | 01777, nullptr},
};

// What `busybox --list-full` prints: the applets with their places, "usr/bin/[".
base::Result<std::string> ListApplets(const std::string& busybox) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoError("pipe2", busybox);
  base::Fd read_end(ends[0]);
  base::Fd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  std::string name = busybox;
  std::string option = "--list-full";
  char* const argv[] = {name.data(), option.data(), nullptr};
  char* const env[] = {nullptr};
  pid_t pid = 0;
  const int err = posix_spawn(&pid, busybox.c_str(), &actions, nullptr, argv, env);
  posix_spawn_file_actions_destroy(&actions);
  if (err != 0) return base::MakeError(err, "run busybox", busybox);
  write_end.Reset();
  auto text = base::ReadFd(read_end.get(), busybox, 1 << 20);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return base::ErrnoError("waitpid", busybox);
  }
  if (!text) return text;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || text->empty()) {
    return base::MakeError(EIO, "run busybox", busybox, "--list-full failed");
  }
  return text;
}

}  // namespace

base::Result<std::string> MakeDefaultImage(const std::string& out, const std::string& busybox) {
  GCS_ASSIGN(const std::string list, ListApplets(busybox));
  PackLayer base_layer;
  for (const FixedFile& file : kBase) {
    base_layer.files.push_back(
        {.path = file.path, .mode = file.mode, .content = file.content == nullptr ? "" : file.content});
  }
  base_layer.files.push_back({.path = "home/user", .mode = S_IFDIR | 0755, .uid = 1000, .gid = 100});

  PackLayer tools;
  tools.files.push_back({.path = "bin/", .mode = S_IFDIR | 0755});
  tools.files.push_back({.path = "bin/busybox", .mode = S_IFREG | 0755, .source = busybox});
  std::vector<std::string> applets;
  for (std::string_view rest = list; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string applet(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const bool known = applet.starts_with("bin/") || applet.starts_with("sbin/") ||
                       applet.starts_with("usr/bin/") || applet.starts_with("usr/sbin/");
    if (known && applet != "bin/busybox") applets.push_back(applet);
  }
  std::ranges::sort(applets);
  // A directory that a layer touches is listed in it: overlayfs takes owner and mode from the uppermost
  // layer.
  for (const char* dir : {"sbin", "usr", "usr/bin", "usr/sbin"}) {
    tools.files.push_back({.path = dir, .mode = S_IFDIR | 0755});
  }
  for (const std::string& applet : applets) {
    tools.files.push_back({.path = applet, .mode = S_IFLNK | 0777, .link = "/bin/busybox"});
  }
  PackOptions options;
  options.config.cmd = {"/bin/sh"};
  options.config.env = {kPath};
  options.name = "lcow-gcs/default:latest";
  return PackImage(out, {base_layer, tools}, options);
}

}  // namespace gcs::host
