// SPDX-License-Identifier: Apache-2.0
// Runs in containers of the VM tests, for what busybox cannot do. Static; no C++ run time beyond the
// compiler's own.
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace {

const char* Name(int err) {
  const char* name = strerrorname_np(err);
  return name != nullptr ? name : "?";
}

int Vsock(const char* cid, const char* port) {
  const int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (fd < 0) {
    printf("socket %s\n", Name(errno));
    return 0;
  }
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = static_cast<unsigned>(strtoul(cid, nullptr, 0));
  address.svm_port = static_cast<unsigned>(strtoul(port, nullptr, 0));
  const int rc = connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
  printf("connect %s\n", rc == 0 ? "OK" : Name(errno));
  return 0;
}

int IoUring() {
  char parameters[256] = {};
  const long fd = syscall(SYS_io_uring_setup, 4, parameters);
  printf("io_uring_setup %s\n", fd >= 0 ? "OK" : Name(errno));
  return 0;
}

// A stream that the host can make too: xorshift64 from `seed`, 8 bytes at a time.
int Pattern(uint64_t seed, uint64_t size) {
  static uint64_t block[8192];
  while (size > 0) {
    for (uint64_t& word : block) {
      seed ^= seed << 13;
      seed ^= seed >> 7;
      seed ^= seed << 17;
      word = seed;
    }
    size_t left = size < sizeof block ? size : sizeof block;
    size -= left;
    const char* at = reinterpret_cast<const char*>(block);
    while (left > 0) {
      const ssize_t n = write(1, at, left);
      if (n < 0) return 1;
      at += n;
      left -= n;
    }
  }
  return 0;
}

volatile sig_atomic_t g_winch = 0;

int WindowSize() {
  struct sigaction action{};
  action.sa_handler = [](int) { g_winch = 1; };
  sigaction(SIGWINCH, &action, nullptr);
  sigset_t block, old;
  sigemptyset(&block);
  sigaddset(&block, SIGWINCH);
  sigprocmask(SIG_BLOCK, &block, &old);
  for (int i = 0; i < 2; ++i) {
    winsize size{};
    if (ioctl(0, TIOCGWINSZ, &size) != 0) return 1;
    printf("size %dx%d\n", size.ws_col, size.ws_row);
    fflush(stdout);
    if (i == 0) {
      while (g_winch == 0) sigsuspend(&old);
    }
  }
  return 0;
}

// As many children as the limit lets.
int Forks(int count) {
  int made = 0;
  int err = 0;
  for (; made < count; ++made) {
    const pid_t pid = fork();
    if (pid < 0) {
      err = errno;
      break;
    }
    if (pid == 0) {
      pause();
      _exit(0);
    }
  }
  printf("forks %d %s\n", made, err == 0 ? "OK" : Name(err));
  return 0;
}

// All the processes that it can get, each of which wants more.
int Bomb() {
  bool told = false;
  for (;;) {
    if (fork() >= 0) continue;
    if (!told) dprintf(1, "full %s\n", Name(errno));
    told = true;
    usleep(100'000);
  }
}

int Eat(uint64_t mib) {
  for (uint64_t i = 0; i < mib; ++i) {
    void* block = mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return 1;
    memset(block, 1, 1 << 20);
  }
  printf("ate %llu\n", static_cast<unsigned long long>(mib));
  return 0;
}

// Counts lines out at a steady pace, for connections that break meanwhile.
int Ticks(int count, int ms) {
  for (int i = 0; i < count; ++i) {
    dprintf(1, "tick %d\n", i);
    usleep(ms * 1000);
  }
  return 0;
}

// Traces a process and waits for nothing of it, so that it stays a zombie that only its tracer sees.
int Trace(pid_t pid) {
  const long rc = ptrace(PTRACE_SEIZE, pid, nullptr, nullptr);
  printf("traced %s\n", rc == 0 ? "OK" : Name(errno));
  fflush(stdout);
  for (;;) pause();
}

// The first process ends; a grandchild keeps its outputs.
int Orphan() {
  if (fork() == 0) {
    sleep(1000);
    _exit(0);
  }
  printf("gone\n");
  fflush(stdout);
  _exit(7);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc > 1 ? argv[1] : "";
  const auto number = [&](int i) { return argc > i ? strtoull(argv[i], nullptr, 0) : 0; };
  if (what == "vsock" && argc == 4) return Vsock(argv[2], argv[3]);
  if (what == "io_uring") return IoUring();
  if (what == "pattern") return Pattern(number(2), number(3));
  if (what == "winsize") return WindowSize();
  if (what == "forks") return Forks(static_cast<int>(number(2)));
  if (what == "bomb") return Bomb();
  if (what == "eat") return Eat(number(2));
  if (what == "ticks") return Ticks(static_cast<int>(number(2)), static_cast<int>(number(3)));
  if (what == "orphan") return Orphan();
  if (what == "trace") return Trace(static_cast<pid_t>(number(2)));
  fprintf(stderr, "guest_probe: unknown word %s\n", argc > 1 ? argv[1] : "");
  return 2;
}
