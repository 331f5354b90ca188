// SPDX-License-Identifier: Apache-2.0
// PID 1 of the vsock tests' VM: loads the modules in /modules, serves a few ports and dials the host's ready
// port.
//   7   echo until the end of the stream, then close
//   9   read to the end, then send the count (8 bytes) and a sum (8 bytes)
//   19  read a count (8 bytes), then send that many bytes of the pattern i * 31 + (i >> 8)
//   6   one line: "reboot", "poweroff", "dial PORT" (dials the host and echoes there), "memory" (MemTotal),
//   "disks" (names
//       and sizes), "refused PORT" (dials the host and sends back the errno), "slow" (reads nothing more for
//       2 s, then as port 9)
#include <dirent.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

[[noreturn]] void Fail(const char* what) {
  printf("vsock-guest: %s: %s\n", what, strerror(errno));
  fflush(stdout);
  reboot(RB_AUTOBOOT);
  abort();
}

int DialHost(uint32_t port) {
  const int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_vm address = {};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_HOST;
  address.svm_port = port;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    const int err = errno;
    close(fd);
    errno = err;
    return -1;
  }
  return fd;
}

bool WriteAll(int fd, const void* data, size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = write(fd, at, size);
    if (n <= 0) return false;
    at += n;
    size -= n;
  }
  return true;
}

void Echo(int fd) {
  std::vector<char> buffer(256 << 10);
  for (;;) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n <= 0 || !WriteAll(fd, buffer.data(), n)) break;
  }
}

void Sink(int fd) {
  std::vector<uint8_t> buffer(256 << 10);
  uint64_t count = 0;
  uint64_t sum = 0;
  for (;;) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n <= 0) break;
    for (ssize_t i = 0; i < n; ++i) sum = (sum * 31) + buffer[i];
    count += n;
  }
  WriteAll(fd, &count, sizeof count);
  WriteAll(fd, &sum, sizeof sum);
}

void Source(int fd) {
  uint64_t left = 0;
  if (read(fd, &left, sizeof left) != sizeof left) return;
  std::vector<uint8_t> buffer(256 << 10);
  uint64_t at = 0;
  while (left > 0) {
    const size_t n = left < buffer.size() ? left : buffer.size();
    for (size_t i = 0; i < n; ++i, ++at) buffer[i] = static_cast<uint8_t>((at * 31) + (at >> 8));
    if (!WriteAll(fd, buffer.data(), n)) return;
    left -= n;
  }
}

std::string FileText(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string Disks() {
  std::string out;
  DIR* dir = opendir("/sys/block");
  if (dir == nullptr) return "none\n";
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name.starts_with("sd") || name.starts_with("pmem"))
      out += name + "=" + FileText("/sys/block/" + name + "/size") + " ";
  }
  closedir(dir);
  return out + "\n";
}

void Command(int fd) {
  std::string line;
  char byte = 0;
  while (read(fd, &byte, 1) == 1 && byte != '\n') line.push_back(byte);
  if (line == "reboot" || line == "poweroff") {
    sync();
    reboot(line == "reboot" ? RB_AUTOBOOT : RB_POWER_OFF);
  } else if (line.starts_with("dial ")) {
    const int host = DialHost(strtoul(line.c_str() + 5, nullptr, 10));
    if (host >= 0) {
      Echo(host);
      close(host);
    }
  } else if (line.starts_with("refused ")) {
    const int host = DialHost(strtoul(line.c_str() + 8, nullptr, 10));
    const std::string answer = host >= 0 ? "connected\n" : std::string(strerrorname_np(errno)) + "\n";
    if (host >= 0) close(host);
    WriteAll(fd, answer.data(), answer.size());
  } else if (line == "memory") {
    const std::string answer = FileText("/proc/meminfo") + "\n";
    WriteAll(fd, answer.data(), answer.size());
  } else if (line == "disks") {
    const std::string answer = Disks();
    WriteAll(fd, answer.data(), answer.size());
  } else if (line == "slow") {
    sleep(2);
    Sink(fd);
  }
}

void Serve(uint32_t port, void (*handler)(int)) {
  const int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_vm address = {};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) Fail("bind");
  if (listen(listener, 512) != 0) Fail("listen");
  std::thread([listener, handler] {
    for (;;) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      std::thread([fd, handler] {
        handler(fd);
        close(fd);
      }).detach();
    }
  }).detach();
}

void LoadModules() {
  DIR* dir = opendir("/modules");
  if (dir == nullptr) return;
  while (const dirent* entry = readdir(dir)) {
    const std::string path = std::string("/modules/") + entry->d_name;
    if (!path.ends_with(".ko")) continue;
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (syscall(SYS_finit_module, fd, "", 0) != 0) Fail(path.c_str());
    close(fd);
  }
  closedir(dir);
}

uint32_t ReadyPort() {
  const std::string line = FileText("/proc/cmdline");
  const size_t at = line.find("gcs.ready-port=");
  return at == std::string::npos ? 0 : strtoul(line.c_str() + at + 15, nullptr, 10);
}

}  // namespace

int main() {
  mount("dev", "/dev", "devtmpfs", 0, nullptr);
  const int console = open("/dev/console", O_RDWR);
  for (int fd = 0; console >= 0 && fd < 3; ++fd) dup2(console, fd);
  mount("proc", "/proc", "proc", 0, nullptr);
  mount("sys", "/sys", "sysfs", 0, nullptr);
  signal(SIGPIPE, SIG_IGN);
  LoadModules();
  Serve(6, Command);
  Serve(7, Echo);
  Serve(9, Sink);
  Serve(19, Source);
  const int ready = DialHost(ReadyPort());
  if (ready < 0) Fail("dial the ready port");
  close(ready);
  for (;;) pause();
}
