// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/paths.h"
#include "host/vm/command.h"
#include "host/vm/cpio.h"
#include "host/vm/process.h"
#include "host/vm/wait.h"

namespace gcs::host {

namespace {

std::string Joined(const std::vector<std::string>& words) {
  std::string out = " ";
  for (const std::string& word : words) out += word + " ";
  return out;
}

bool Has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

const VmPaths kPaths = {.qmp = "/run/q", .vhost = "/run/v", .console = "/run/a,b"};

class TempDir {
 public:
  TempDir() {
    std::array<char, 32> path = {"/tmp/gcs-vm-unit.XXXXXX"};
    REQUIRE(mkdtemp(path.data()) != nullptr);
    path_ = path.data();
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace

TEST_CASE("microvm gets mmio devices, shared memory, no ACPI, and ends by a reset") {
  VmOptions options;
  options.kernel = "/k";
  options.initrd = "/i";
  options.ready_port = 77;
  options.command_line = "more words";
  options.disks.push_back({.path = "/d,1", .readonly = true, .lun = 3, .target = 2, .serial = "s"});
  const auto command = QemuCommand(options, kPaths);
  REQUIRE(command);
  const std::string line = Joined(*command);
  CHECK(Has(line, " -machine microvm,acpi=off,"));
  CHECK(Has(line, "memory-backend=ram"));
  CHECK(Has(line, "memory-backend-memfd,id=ram,share=on,size=512M"));
  CHECK(Has(line, " -device vhost-user-vsock-device,chardev=vsock "));
  CHECK(Has(line, " -device virtio-scsi-device,id=scsi0 "));
  CHECK(Has(line, " -global virtio-mmio.force-legacy=false "));
  CHECK(Has(line, " -no-reboot "));
  CHECK(Has(line, "path=/run/a,,b "));
  CHECK(Has(line, " -append console=ttyS0 reboot=t panic=-1 quiet gcs.ready-port=77 more words "));
  CHECK(Has(line, R"("filename":"/d,1")"));
  CHECK(Has(line, R"("lun":3)"));
  CHECK(Has(line, R"("scsi-id":2)"));
  CHECK(Has(line, R"("read-only":true)"));
  CHECK(!Has(line, "-pci"));

  options.allow_reset = true;
  options.quiet = false;
  const std::string again = Joined(*QemuCommand(options, kPaths));
  CHECK(!Has(again, "-no-reboot"));
  CHECK(!Has(again, "quiet"));
}

TEST_CASE("q35 gets PCI devices, slots for memory and nvdimms") {
  const TempDir dir;
  VmOptions options;
  options.kernel = "/k";
  options.machine = Machine::kQ35;
  options.max_memory_mib = 1024;
  std::ofstream(dir / "p").close();
  REQUIRE(truncate((dir / "p").c_str(), 4 << 20) == 0);
  options.nvdimms = {dir / "p"};
  const auto command = QemuCommand(options, kPaths);
  REQUIRE(command);
  const std::string line = Joined(*command);
  CHECK(Has(line, " -machine q35,"));
  CHECK(Has(line, "nvdimm=on"));
  CHECK(Has(line, " -m 512M,slots=9,maxmem=2052M "));
  CHECK(Has(line, " -device vhost-user-vsock-pci,chardev=vsock "));
  CHECK(Has(line, "memory-backend-file,id=pmem0,share=on,readonly=on,size=4194304,"));
  CHECK(!Has(line, "force-legacy"));

  REQUIRE(truncate((dir / "p").c_str(), (4 << 20) + 1) == 0);
  CHECK(QemuCommand(options, kPaths).error().err == EINVAL);
  options.nvdimms = {dir / "missing"};
  CHECK(QemuCommand(options, kPaths).error().err == ENOENT);
}

TEST_CASE("options that do not go together are refused") {
  VmOptions options;
  options.kernel = "/k";
  options.max_memory_mib = 1024;
  CHECK(QemuCommand(options, kPaths).error().err == EINVAL);
  options.machine = Machine::kQ35;
  options.max_memory_mib = 256;
  CHECK(QemuCommand(options, kPaths).error().err == EINVAL);
}

TEST_CASE("a program is started with its output in the log, or the reason is told") {
  const TempDir dir;
  const auto process = Spawn({"sh", "-c", "echo out; echo err >&2; exit 3"}, dir / "log");
  REQUIRE(process);
  REQUIRE(WaitFd(process->pidfd.get(), POLLIN, base::MonotonicNs() + (5 * base::kNsPerSec), "wait"));
  int status = 0;
  CHECK(waitpid(process->pid, &status, 0) == process->pid);
  CHECK(WEXITSTATUS(status) == 3);
  CHECK(base::ReadFile(dir / "log") == "out\nerr\n");

  const auto missing = Spawn({"/no/such/program"}, dir / "log");
  REQUIRE(!missing);
  CHECK(missing.error().err == ENOENT);
  CHECK(missing.error().object == "/no/such/program");
}

TEST_CASE("a program dies with the thread that started it") {
  const TempDir dir;
  Process process;
  std::thread([&] {
    auto started = Spawn({"sleep", "60"}, dir / "log");
    REQUIRE(started);
    process = std::move(*started);
  }).join();
  CHECK(WaitFd(process.pidfd.get(), POLLIN, base::MonotonicNs() + (5 * base::kNsPerSec), "wait"));
  int status = 0;
  CHECK(waitpid(process.pid, &status, 0) == process.pid);
  CHECK(WTERMSIG(status) == SIGKILL);
}

TEST_CASE("an initrd archive is what cpio reads") {
  const TempDir dir;
  Cpio cpio;
  cpio.AddDirectory("etc");
  cpio.AddFile("etc/one", "1", 0644);
  cpio.AddFile("init", std::string(5000, 'x'), 0755);
  REQUIRE(cpio.WriteTo(dir / "initrd"));
  const std::string out = dir / "out";
  REQUIRE(std::filesystem::create_directory(out));
  REQUIRE(system(("cd " + out + " && cpio -i --quiet < ../initrd").c_str()) == 0);
  CHECK(base::ReadFile(out + "/etc/one") == "1");
  CHECK(base::ReadFile(out + "/init")->size() == 5000);
  CHECK((std::filesystem::status(out + "/init").permissions() & std::filesystem::perms::owner_exec) !=
        std::filesystem::perms::none);
}

}  // namespace gcs::host
