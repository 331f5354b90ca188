// SPDX-License-Identifier: Apache-2.0
// The vsock device and the launcher against the product's kernel. GCS_KERNEL_DIR names the kernel's build
// (vmlinux, modules/).
#include <doctest/doctest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/paths.h"
#include "host/vm/cpio.h"
#include "host/vm/vm.h"

namespace {

using namespace gcs;

constexpr uint32_t kReadyPort = 7000;
constexpr uint32_t kCommand = 6;
constexpr uint32_t kEcho = 7;
constexpr uint32_t kSink = 9;
constexpr uint32_t kSource = 19;

std::string Text(const base::Error& error) { return error.ToString(); }

class TempDir {
 public:
  TempDir() {
    std::array<char, 32> path = {"/tmp/gcs-vsock-test.XXXXXX"};
    REQUIRE(mkdtemp(path.data()) != nullptr);
    path_ = path.data();
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string KernelDir() {
  const char* dir = getenv("GCS_KERNEL_DIR");
  REQUIRE_MESSAGE(dir != nullptr, "GCS_KERNEL_DIR is not set");
  return dir;
}

host::VmOptions Options(const TempDir& dir) {
  const std::string kernel = KernelDir();
  host::Cpio cpio;
  for (const char* name : {"dev", "proc", "sys", "modules"}) cpio.AddDirectory(name);
  REQUIRE(cpio.AddFileFrom("init", VSOCK_GUEST, 0755));
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kernel + "/modules")) {
    if (entry.path().filename() == "vmw_vsock_virtio_transport.ko") {
      REQUIRE(cpio.AddFileFrom("modules/" + entry.path().filename().string(), entry.path().string(), 0644));
    }
  }
  const std::string initrd = dir.path() + "/initrd";
  REQUIRE(cpio.WriteTo(initrd));
  host::VmOptions options;
  options.kernel = kernel + "/vmlinux";
  options.initrd = initrd;
  options.memory_mib = 256;
  options.accel = host::Accel::kAuto;
  options.ready_port = kReadyPort;
  return options;
}

std::unique_ptr<host::Vm> Boot(const host::VmOptions& options) {
  auto vm = host::Vm::Start(options);
  REQUIRE_MESSAGE(vm, Text(vm ? base::Error{} : vm.error()));
  printf("%s ready after %lld ms\n", options.machine == host::Machine::kQ35 ? "q35" : "microvm",
         static_cast<long long>(((*vm)->ready_ns() - (*vm)->started_ns()) / base::kNsPerMs));
  return std::move(*vm);
}

base::Fd Connect(const host::Vm& vm, uint32_t port) {
  auto fd = vm.Connect(port);
  REQUIRE_MESSAGE(fd, Text(fd ? base::Error{} : fd.error()));
  return std::move(*fd);
}

void SendAll(int fd, const void* data, size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = send(fd, at, size, MSG_NOSIGNAL);
    if (n < 0) FAIL("send: " << strerror(errno));
    at += n;
    size -= n;
  }
}

// To the end of the stream, or `size` bytes.
std::string Receive(int fd, size_t size = SIZE_MAX) {
  std::string out;
  std::vector<char> buffer(256 << 10);
  while (out.size() < size) {
    pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
    REQUIRE_MESSAGE(poll(&entry, 1, 30'000) == 1, "nothing came for 30 s");
    const ssize_t n = recv(fd, buffer.data(), std::min(buffer.size(), size - out.size()), 0);
    if (n < 0) FAIL("recv: " << strerror(errno));
    if (n == 0) break;
    out.append(buffer.data(), n);
  }
  return out;
}

std::string Ask(const host::Vm& vm, const std::string& command) {
  const base::Fd fd = Connect(vm, kCommand);
  SendAll(fd.get(), (command + "\n").data(), command.size() + 1);
  return Receive(fd.get());
}

std::string Pattern(size_t size) {
  std::string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>((i * 31) + (i >> 8));
  return out;
}

void PrintRate(const char* what, size_t bytes, int64_t from_ns) {
  printf("%s: %.0f MB/s\n", what,
         static_cast<double>(bytes) * 1e3 / static_cast<double>(base::MonotonicNs() - from_ns));
}

// The streams, over a VM of either machine.
void CheckStreams(const host::Vm& vm, size_t size) {
  const std::string data = Pattern(size);
  {
    const base::Fd fd = Connect(vm, kEcho);
    const int64_t from = base::MonotonicNs();
    std::string back;
    std::jthread writer([&] {
      SendAll(fd.get(), data.data(), data.size());
      shutdown(fd.get(), SHUT_WR);
    });
    back = Receive(fd.get());
    writer.join();
    PrintRate("echo both ways", size, from);
    CHECK(back.size() == data.size());
    CHECK(back == data);
  }
  {
    const base::Fd fd = Connect(vm, kSink);
    const int64_t from = base::MonotonicNs();
    SendAll(fd.get(), data.data(), data.size());
    // Half-close: the guest answers after our end.
    shutdown(fd.get(), SHUT_WR);
    const std::string answer = Receive(fd.get());
    PrintRate("host to guest", size, from);
    REQUIRE(answer.size() == 16);
    uint64_t count = 0;
    uint64_t sum = 0;
    memcpy(&count, answer.data(), 8);
    memcpy(&sum, answer.data() + 8, 8);
    uint64_t expected = 0;
    for (const char c : data) expected = (expected * 31) + static_cast<uint8_t>(c);
    CHECK(count == size);
    CHECK(sum == expected);
  }
  {
    const base::Fd fd = Connect(vm, kSource);
    const uint64_t count = size;
    const int64_t from = base::MonotonicNs();
    SendAll(fd.get(), &count, sizeof count);
    const std::string got = Receive(fd.get());
    PrintRate("guest to host", size, from);
    CHECK(got.size() == data.size());
    CHECK(got == data);
  }
}

void CheckRoundTrip(const host::Vm& vm) {
  const base::Fd fd = Connect(vm, kEcho);
  std::vector<int64_t> times;
  const std::string ping(100, 'p');
  for (int i = 0; i < 300; ++i) {
    const int64_t from = base::MonotonicNs();
    SendAll(fd.get(), ping.data(), ping.size());
    REQUIRE(Receive(fd.get(), ping.size()) == ping);
    times.push_back(base::MonotonicNs() - from);
  }
  std::ranges::sort(times);
  printf("round trip of 100 bytes: p50 %lld us, p99 %lld us\n", static_cast<long long>(times[150] / 1000),
         static_cast<long long>(times[297] / 1000));
}

TEST_CASE("vsock streams on microvm are intact, refused, half-closed and many") {
  const TempDir dir;
  const auto vm = Boot(Options(dir));

  SUBCASE("everything over one boot") {
    CheckStreams(*vm, 64 << 20);
    CheckRoundTrip(*vm);

    // A port that nobody serves, both ways.
    const auto refused = vm->Connect(4242);
    REQUIRE(!refused);
    CHECK(refused.error().err == ECONNREFUSED);
    CHECK(Ask(*vm, "refused 4242") == "ECONNRESET\n");

    // The guest dials.
    const auto listener = vm->Listen(5555);
    REQUIRE(listener);
    {
      const base::Fd command = Connect(*vm, kCommand);
      SendAll(command.get(), "dial 5555\n", 10);
      pollfd entry = {.fd = listener->get(), .events = POLLIN, .revents = 0};
      REQUIRE(poll(&entry, 1, 10'000) == 1);
      const base::Fd call(accept(listener->get(), nullptr, nullptr));
      REQUIRE(call);
      SendAll(call.get(), "hello", 5);
      shutdown(call.get(), SHUT_WR);
      CHECK(Receive(call.get()) == "hello");
      CHECK(Receive(command.get()).empty());
    }
    unlink(vm->control().ListenPath(5555).c_str());

    // A guest that does not read for 2 s stops us at its credit, loses nothing, and hinders no other stream.
    {
      const std::string data = Pattern(4 << 20);
      const base::Fd slow = Connect(*vm, kCommand);
      SendAll(slow.get(), "slow\n", 5);
      std::jthread writer([&] {
        SendAll(slow.get(), data.data(), data.size());
        shutdown(slow.get(), SHUT_WR);
      });
      const int64_t from = base::MonotonicNs();
      const base::Fd other = Connect(*vm, kEcho);
      SendAll(other.get(), "x", 1);
      CHECK(Receive(other.get(), 1) == "x");
      CHECK(base::MonotonicNs() - from < base::kNsPerSec);
      const std::string answer = Receive(slow.get());
      writer.join();
      REQUIRE(answer.size() == 16);
      uint64_t count = 0;
      memcpy(&count, answer.data(), 8);
      CHECK(count == data.size());
    }

    // 200 at once.
    std::vector<base::Fd> many;
    for (int i = 0; i < 200; ++i) many.push_back(Connect(*vm, kEcho));
    for (size_t i = 0; i < many.size(); ++i) {
      const std::string word = "connection " + std::to_string(i);
      SendAll(many[i].get(), word.data(), word.size());
    }
    for (size_t i = 0; i < many.size(); ++i) {
      const std::string word = "connection " + std::to_string(i);
      CHECK(Receive(many[i].get(), word.size()) == word);
    }
    many.clear();

    // Reboot is how microvm ends.
    const base::Fd command = Connect(*vm, kCommand);
    SendAll(command.get(), "reboot\n", 7);
    const auto ended = vm->Wait(10'000);
    REQUIRE_MESSAGE(ended, Text(ended ? base::Error{} : ended.error()));
    CHECK(ended->code == 0);
    CHECK(ended->signal == 0);
    CHECK(Receive(command.get()).empty());
  }
}

TEST_CASE("the device survives a guest's reset: old streams end, the second boot is served") {
  const TempDir dir;
  host::VmOptions options = Options(dir);
  options.allow_reset = true;
  const auto vm = Boot(options);
  const auto second_ready = vm->Listen(kReadyPort);
  REQUIRE(second_ready);
  const base::Fd open_stream = Connect(*vm, kEcho);
  {
    const base::Fd command = Connect(*vm, kCommand);
    SendAll(command.get(), "reboot\n", 7);
    CHECK(Receive(open_stream.get()).empty());
  }
  pollfd entry = {.fd = second_ready->get(), .events = POLLIN, .revents = 0};
  REQUIRE_MESSAGE(poll(&entry, 1, 30'000) == 1, vm->ConsoleTail());
  CheckStreams(*vm, 1 << 20);
  const auto ended = vm->Stop(0);
  REQUIRE(ended);
  CHECK(ended->signal == SIGKILL);
}

TEST_CASE("q35: streams, hot-plugged disks and memory, nvdimm, power-off") {
  const TempDir dir;
  host::VmOptions options = Options(dir);
  options.machine = host::Machine::kQ35;
  options.max_memory_mib = 1024;
  for (const auto& [name, mib] : {std::pair{"a.img", 4}, {"b.img", 8}, {"c.img", 16}}) {
    const std::string path = dir.path() + "/" + name;
    std::ofstream(path).close();
    REQUIRE(truncate(path.c_str(), mib << 20) == 0);
  }
  options.disks.push_back(
      {.path = dir.path() + "/a.img", .readonly = true, .lun = 2, .target = 0, .serial = "first"});
  options.nvdimms.push_back(dir.path() + "/c.img");
  const auto vm = Boot(options);
  CheckStreams(*vm, 8 << 20);

  const auto wait_for = [&](const std::string& command, const auto& check) {
    std::string last;
    for (int i = 0; i < 100; ++i) {
      last = Ask(*vm, command);
      if (check(last)) return;
      usleep(50'000);
    }
    FAIL("last answer to " << command << ": " << last);
  };
  const auto has = [](std::string word) {
    return [word = std::move(word)](const std::string& text) { return text.find(word) != std::string::npos; };
  };
  wait_for("disks", has("sda=8192 "));
  wait_for("disks", has("pmem0=32768 "));

  const auto disk = vm->control().AddDiskAnywhere(
      {.path = dir.path() + "/b.img", .readonly = false, .lun = 0, .target = 0, .serial = {}});
  REQUIRE_MESSAGE(disk, Text(disk ? base::Error{} : disk.error()));
  CHECK(disk->lun == 0);
  wait_for("disks", has("sdb=16384 "));
  const auto taken = vm->control().AddDisk(*disk);
  REQUIRE(!taken);
  CHECK(taken.error().err == EEXIST);
  const auto listed = vm->control().Disks();
  REQUIRE(listed);
  CHECK(listed->size() == 2);
  const auto removed = vm->control().RemoveDisk(0, 0);
  REQUIRE_MESSAGE(removed, Text(removed ? base::Error{} : removed.error()));
  wait_for("disks", [&](const std::string& text) { return !has("sdb")(text); });
  CHECK(vm->control().RemoveDisk(0, 0).error().err == ENOENT);

  const auto memory_kib = [](const std::string& text) {
    return strtoull(text.c_str() + strlen("MemTotal:"), nullptr, 10);
  };
  const uint64_t before = memory_kib(Ask(*vm, "memory"));
  const auto added = vm->control().AddMemory(256);
  REQUIRE_MESSAGE(added, Text(added ? base::Error{} : added.error()));
  wait_for("memory", [&](const std::string& text) { return memory_kib(text) >= before + (240 << 10); });
  // The device's view of memory changed under its running queues.
  CheckStreams(*vm, 8 << 20);

  const base::Fd command = Connect(*vm, kCommand);
  SendAll(command.get(), "poweroff\n", 9);
  const auto ended = vm->Wait(10'000);
  REQUIRE_MESSAGE(ended, Text(ended ? base::Error{} : ended.error()));
  CHECK(ended->code == 0);
}

TEST_CASE("a disk can be added to and pulled from a running microvm") {
  const TempDir dir;
  const std::string path = dir.path() + "/disk,with comma.img";
  std::ofstream(path).close();
  REQUIRE(truncate(path.c_str(), 4 << 20) == 0);
  const auto vm = Boot(Options(dir));
  const auto added =
      vm->control().AddDisk({.path = path, .readonly = true, .lun = 5, .target = 1, .serial = "s"});
  REQUIRE_MESSAGE(added, Text(added ? base::Error{} : added.error()));
  std::string disks;
  for (int i = 0; i < 100 && disks.find("sda=8192") == std::string::npos; ++i) {
    disks = Ask(*vm, "disks");
    usleep(20'000);
  }
  CHECK(disks.find("sda=8192") != std::string::npos);
  REQUIRE(vm->control().RemoveDisk(1, 5));
  REQUIRE(vm->control().Quit());
  const auto ended = vm->Wait(5'000);
  REQUIRE(ended);
  CHECK(ended->code == 0);
}

TEST_CASE("an error of a VM that does not get ready has QEMU's words and the console's") {
  const TempDir dir;
  host::VmOptions options = Options(dir);
  SUBCASE("QEMU refuses an option") {
    options.extra_args = {"-device", "no-such-device"};
    const auto vm = host::Vm::Start(options);
    REQUIRE(!vm);
    CHECK(vm.error().err == ESRCH);
    CHECK(vm.error().message.find("no-such-device") != std::string::npos);
  }
  SUBCASE("the guest panics") {
    options.command_line = "rdinit=/nothing";
    options.quiet = false;
    const auto vm = host::Vm::Start(options);
    REQUIRE(!vm);
    CHECK(vm.error().err == ESRCH);
    CHECK(vm.error().message.find("Kernel panic") != std::string::npos);
  }
  SUBCASE("the guest takes too long") {
    options.start_timeout_ms = 300;
    const int64_t from = base::MonotonicNs();
    const auto vm = host::Vm::Start(options);
    REQUIRE(!vm);
    CHECK(vm.error().err == ETIMEDOUT);
    CHECK(base::MonotonicNs() - from < 5 * base::kNsPerSec);
  }
  SUBCASE("there is no such QEMU") {
    options.qemu = "/no/such/qemu";
    const auto vm = host::Vm::Start(options);
    REQUIRE(!vm);
    CHECK(vm.error().err == ENOENT);
    CHECK(vm.error().step == "exec");
  }
}

TEST_CASE("nothing of a VM is left behind") {
  const TempDir dir;
  const auto processes_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  };
  const auto before = processes_files();
  std::string run_dir;
  pid_t pid = 0;
  {
    const auto vm = Boot(Options(dir));
    run_dir = vm->run_dir();
    pid = vm->pid();
    CHECK(std::filesystem::exists(run_dir));
  }
  CHECK(!std::filesystem::exists(run_dir));
  CHECK(kill(pid, 0) == -1);
  CHECK(processes_files() == before);
}

}  // namespace
