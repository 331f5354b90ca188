// SPDX-License-Identifier: Apache-2.0
#include "bench/vm.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/json.h"
#include "base/paths.h"
#include "host/client/attach.h"

namespace gcs::bench {

using base::ErrnoError;
using base::MakeError;
using base::Result;

namespace {

constexpr uint32_t kAgentPort = 1024;
constexpr uint32_t kReadyPort = 1025;

// An ext4 disk with the containers' root file system.
Result<std::string> MakeDisk(const TempDir& dir, int zeros_mib) {
  namespace fs = std::filesystem;
  const std::string root = dir / "root";
  for (const char* sub : {"", "/bin", "/dev", "/proc", "/sys", "/tmp", "/etc"})
    fs::create_directory(root + sub);
  fs::copy_file(BENCH_EXIT0, root + "/exit0");
  fs::copy_file(BENCH_PAUSE, root + "/pause");
  fs::copy_file(BENCH_GUEST, root + "/guest");
  fs::copy_file("/bin/busybox", root + "/bin/busybox");
  for (const char* applet : {"sh", "cat", "dd", "grep"})
    fs::create_symlink("busybox", root + "/bin/" + applet);
  GCS_TRY(base::ReplaceFile(root + "/zeros", "", 0644));
  std::error_code error;
  fs::resize_file(root + "/zeros", static_cast<uintmax_t>(zeros_mib) << 20, error);  // a hole
  if (error) return MakeError(error.value(), "resize", root + "/zeros");
  const std::string disk = dir / "disk.ext4";
  GCS_ASSIGN(const int code,
             RunProgram({"mke2fs", "-q", "-F", "-t", "ext4", "-d", root, "-O", "^has_journal", disk, "16M"}));
  if (code != 0) return MakeError(EIO, "run", "mke2fs", "exit code " + std::to_string(code));
  return disk;
}

}  // namespace

Result<std::unique_ptr<BenchVm>> BenchVm::Boot(uint32_t memory_mib, int zeros_mib) {
  const char* image = getenv("GCS_IMAGE_DIR");
  if (image == nullptr)
    return MakeError(EINVAL, "boot", "GCS_IMAGE_DIR", "is not set; scripts/bench sets it");
  std::unique_ptr<BenchVm> made(new BenchVm);
  GCS_ASSIGN(made->dir_, TempDir::Make());
  GCS_ASSIGN(const std::string disk, MakeDisk(made->dir_, zeros_mib));
  host::VmOptions options;
  options.kernel = std::string(image) + "/vmlinux";
  options.initrd = std::string(image) + "/initrd.img";
  options.memory_mib = memory_mib;
  options.command_line = "gcs.poweroff=reboot";
  options.disks = {{.path = disk}};
  options.ready_port = kReadyPort;
  GCS_ASSIGN(made->vm_, host::Vm::Start(options));
  made->client_ = std::make_unique<host::Client>([vm = made->vm_.get()] { return vm->Connect(kAgentPort); });
  v1::MountDiskRequest mount;
  mount.set_mount_id("bench");
  mount.mutable_disk()->mutable_scsi()->set_lun(0);
  mount.set_read_only(true);
  GCS_ASSIGN(const v1::MountDiskResponse mounted, made->Call(mount));
  made->root_ = mounted.path();
  return made;
}

host::ContainerSettings BenchVm::Settings(std::vector<std::string> args) const {
  host::ContainerSettings settings;
  settings.root_path = root_;
  settings.args = std::move(args);
  settings.hostname = "bench";
  settings.read_only = true;
  return settings;
}

Result<std::string> BenchVm::Config(const host::ContainerSettings& settings) {
  return host::MakeOciConfig({}, settings);
}

Result<> BenchVm::Create(const std::string& id, const std::string& config, const v1::StdioSpec& stdio,
                         bool allow_vsock) {
  v1::CreateContainerRequest request;
  request.set_container_id(id);
  request.set_config_json(config);
  *request.mutable_stdio() = stdio;
  request.set_allow_vsock(allow_vsock);
  GCS_TRY(Call(request));
  return {};
}

Result<> BenchVm::Start(const std::string& id) {
  v1::StartContainerRequest request;
  request.set_container_id(id);
  GCS_TRY(Call(request));
  return {};
}

Result<int> BenchVm::Wait(const std::string& id) {
  v1::WaitContainerRequest request;
  request.set_container_id(id);
  GCS_ASSIGN(const v1::WaitContainerResponse response, Call(request));
  return response.exit().exit_code();
}

Result<> BenchVm::Delete(const std::string& id) {
  v1::DeleteContainerRequest request;
  request.set_container_id(id);
  request.set_force(true);
  GCS_TRY(Call(request));
  return {};
}

Result<std::string> BenchVm::Output(const std::string& id, const std::string& config) {
  v1::StdioSpec stdio;
  stdio.mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  GCS_TRY(Create(id, config, stdio));
  std::string text;
  auto session = host::AttachSession::Open(
      *client_, {.container_id = id,
                 .process_id = "",
                 .err = false,
                 .on_output = [&](v1::Stream, std::string_view data) { text.append(data); }});
  if (!session) return std::unexpected(base::Error(session.error()));
  GCS_TRY(Start(id));
  GCS_ASSIGN(const int code, Wait(id));
  if (const auto ended = (*session)->WaitOutputs(30'000); !ended)
    return std::unexpected(base::Error(ended.error()));
  session->reset();
  GCS_TRY(Delete(id));
  if (code != 0) return MakeError(EIO, "run container", id, "exit code " + std::to_string(code));
  return text;
}

Result<base::Fd> BenchVm::Connect(uint32_t port) const {
  GCS_ASSIGN(base::Fd fd, vm_->Connect(port));
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0 || fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK) != 0) return ErrnoError("fcntl", "vsock");
  return fd;
}

Result<> BenchVm::StartRawServer() {
  GCS_ASSIGN(const std::string config, Config(Settings({"/guest"})));
  GCS_TRY(Create("raw", config, {}, true));
  GCS_TRY(Start("raw"));
  constexpr int kTries = 100;
  for (int i = 0; i < kTries; ++i) {
    if (Connect(50019)) return {};
    usleep(50'000);
  }
  return MakeError(ETIMEDOUT, "start", "raw vsock server");
}

Result<> SendAll(int fd, const void* data, size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = send(fd, at, size, MSG_NOSIGNAL);
    if (n < 0) return ErrnoError("send", "vsock");
    at += n;
    size -= static_cast<size_t>(n);
  }
  return {};
}

Result<> ReceiveAll(int fd, void* data, size_t size) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t n = recv(fd, at, size, 0);
    if (n < 0) return ErrnoError("recv", "vsock");
    if (n == 0) return MakeError(ECONNRESET, "recv", "vsock", "the other end closed early");
    at += n;
    size -= static_cast<size_t>(n);
  }
  return {};
}

}  // namespace gcs::bench
