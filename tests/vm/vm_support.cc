// SPDX-License-Identifier: Apache-2.0
#include "vm/vm_support.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "host/image/image.h"
#include "host/image/pack.h"

namespace gcs::test {

namespace {

constexpr uint32_t kAgentPort = 1024;
constexpr uint32_t kReadyPort = 1025;

void AddLayers(const std::string& image_dir, const std::string& cache, std::vector<std::string>& layers) {
  const auto image = host::OpenImage(image_dir);
  REQUIRE_MESSAGE(image, Why(image));
  const auto disks = host::ConvertLayers(*image, cache);
  REQUIRE_MESSAGE(disks, Why(disks));
  for (const host::LayerDisk& disk : *disks) layers.push_back(disk.path);
}

}  // namespace

TestVm& TestVm::Get() {
  // Ended with the program; a test that fails to boot leaves it to the next to try again.
  static std::unique_ptr<TestVm> vm;
  if (vm == nullptr) vm = std::make_unique<TestVm>(host::Machine::kMicrovm);
  return *vm;
}

TestVm::TestVm(host::Machine machine) {
  const char* image = getenv("GCS_IMAGE_DIR");
  REQUIRE_MESSAGE(image != nullptr, "GCS_IMAGE_DIR is not set");
  const auto made = host::MakeDefaultImage(dir_ / "default");
  REQUIRE_MESSAGE(made, Why(made));
  AddLayers(dir_ / "default", dir_ / "cache", layers_);

  host::PackLayer probe;
  probe.files.push_back({.path = "opt", .mode = S_IFDIR | 0755});
  probe.files.push_back({.path = "opt/probe", .mode = S_IFREG | 0755, .source = GUEST_PROBE});
  probe.files.push_back({.path = "opt/gone", .mode = S_IFREG | 0644, .content = "below"});
  probe.files.push_back({.path = "opt/dir", .mode = S_IFDIR | 0755});
  probe.files.push_back({.path = "opt/dir/old", .mode = S_IFREG | 0644, .content = "old"});
  probe.files.push_back({.path = "srv", .mode = S_IFDIR | 0755});
  probe.files.push_back({.path = "srv/garbage", .mode = S_IFREG | 0755, .content = "no program"});
  host::PackLayer above;
  above.files.push_back({.path = "opt", .mode = S_IFDIR | 0755});
  above.files.push_back({.path = "opt/.wh.gone", .mode = S_IFREG | 0644});
  above.files.push_back({.path = "opt/dir", .mode = S_IFDIR | 0755});
  above.files.push_back({.path = "opt/dir/.wh..wh..opq", .mode = S_IFREG | 0644});
  above.files.push_back({.path = "opt/dir/new", .mode = S_IFREG | 0644, .content = "new"});
  const auto packed = host::PackImage(dir_ / "probe", {probe, above}, {.config = {}, .name = "probe"});
  REQUIRE_MESSAGE(packed, Why(packed));
  AddLayers(dir_ / "probe", dir_ / "cache", layers_);

  host::VmOptions options;
  options.kernel = std::string(image) + "/vmlinux";
  options.initrd = std::string(image) + "/initrd.img";
  options.machine = machine;
  options.accel = host::Accel::kAuto;
  options.ready_port = kReadyPort;
  if (machine == host::Machine::kMicrovm) options.command_line = "gcs.poweroff=reboot";
  const std::string bus = machine == host::Machine::kQ35 ? "-pci" : "-device";
  for (const char* mac : kMacs) {
    const std::string id = std::string("wire") + mac[strlen(mac) - 1];
    for (const std::string& word :
         {std::string("-netdev"), "hubport,hubid=0,id=" + id, std::string("-device"),
          "virtio-net" + bus + ",netdev=" + id + ",mac=" + mac})
      options.extra_args.push_back(word);
  }
  auto vm = host::Vm::Start(options);
  REQUIRE_MESSAGE(vm, Why(vm));
  vm_ = std::move(*vm);
  printf("%s ready after %lld ms\n", machine == host::Machine::kQ35 ? "q35" : "microvm",
         static_cast<long long>((vm_->ready_ns() - vm_->started_ns()) / base::kNsPerMs));
  client_ = std::make_unique<host::Client>([this]() -> base::Result<base::Fd> {
    auto fd = vm_->Connect(kAgentPort);
    if (fd) {
      const std::lock_guard lock(mutex_);
      connections_.emplace_back(fcntl(fd->get(), F_DUPFD_CLOEXEC, 0));
    }
    return fd;
  });
  storage_ = std::make_unique<host::GuestStorage>(*client_, vm_->control(), dir_.path());
}

TestVm::~TestVm() = default;

void TestVm::BreakConnections() {
  const std::lock_guard lock(mutex_);
  for (const base::Fd& fd : connections_) shutdown(fd.get(), SHUT_RDWR);
  connections_.clear();
}

TestContainer::Options TestContainer::Make(std::vector<std::string> args) {
  Options options;
  options.settings.args = std::move(args);
  options.settings.hostname = "test";
  options.stdio.mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  options.stdio.mutable_stderr()->set_mode(v1::StreamSpec::MODE_STREAM);
  return options;
}

TestContainer::TestContainer(Options options) {
  static std::atomic<int> next = 0;
  id_ = "t" + std::to_string(++next);
  TestVm& vm = TestVm::Get();
  const auto root = vm.storage().MountRoot(id_, vm.layers(), options.scratch_bytes);
  REQUIRE_MESSAGE(root, Why(root));
  owned_ = root->mount_ids;
  options.settings.root_path = root->path;
  auto config = host::MakeOciConfig({}, options.settings);
  REQUIRE_MESSAGE(config, Why(config));
  if (options.edit) options.edit(*config);
  v1::CreateContainerRequest request;
  request.set_container_id(id_);
  request.set_config_json(*config);
  *request.mutable_stdio() = options.stdio;
  request.set_allow_vsock(options.allow_vsock);
  request.set_pod_id(options.pod_id);
  for (const std::string& mount : owned_) request.add_owned_mounts(mount);
  created_ = vm.client().Call(request);
}

TestContainer::~TestContainer() {
  if (!deleted_) {
    const auto gone = Delete();
    WARN_MESSAGE(gone, Why(gone));
  }
}

host::CallResult<> TestContainer::Delete() {
  deleted_ = true;
  host::Client& client = TestVm::Get().client();
  if (!created_) {
    // Nothing of a failed Create is left, so that its mounts are still ours.
    for (auto id = owned_.rbegin(); id != owned_.rend(); ++id) {
      v1::UnmountRequest request;
      request.set_mount_id(*id);
      GCS_TRY(client.Call(request));
    }
    return {};
  }
  v1::DeleteContainerRequest request;
  request.set_container_id(id_);
  request.set_force(true);
  GCS_TRY(client.Call(request));
  return {};
}

host::CallResult<v1::StartContainerResponse> TestContainer::TryStart() {
  REQUIRE_MESSAGE(created_, Why(created_));
  v1::StartContainerRequest request;
  request.set_container_id(id_);
  return TestVm::Get().client().Call(request);
}

void TestContainer::Start() {
  const auto started = TryStart();
  REQUIRE_MESSAGE(started, Why(started));
}

v1::ExitStatus TestContainer::Wait(int64_t timeout_ms) {
  v1::WaitContainerRequest request;
  request.set_container_id(id_);
  const auto ended = TestVm::Get().client().Call(request, {.timeout_ms = timeout_ms});
  REQUIRE_MESSAGE(ended, Why(ended));
  return ended->exit();
}

host::CallResult<> TestContainer::Signal(int signal, bool all) {
  v1::SignalContainerRequest request;
  request.set_container_id(id_);
  request.set_signal(signal);
  request.set_all(all);
  GCS_TRY(TestVm::Get().client().Call(request));
  return {};
}

Output::Output(const std::string& container_id, const std::string& process_id, bool in, bool err) {
  host::AttachOptions options;
  options.container_id = container_id;
  options.process_id = process_id;
  options.in = in;
  options.err = err;
  options.on_output = [text = text_](v1::Stream stream, std::string_view data) {
    const std::lock_guard lock(text->mutex);
    (stream == v1::STREAM_STDERR ? text->err : text->out) += data;
  };
  auto session = host::AttachSession::Open(TestVm::Get().client(), std::move(options));
  REQUIRE_MESSAGE(session, Why(session));
  session_ = std::move(*session);
}

void Output::Finish(int64_t timeout_ms) {
  const auto ended = session_->WaitOutputs(timeout_ms);
  REQUIRE_MESSAGE(ended, Why(ended));
}

bool Output::WaitFor(const std::string& text, int64_t timeout_ms) {
  const int64_t deadline = base::MonotonicNs() + (timeout_ms * base::kNsPerMs);
  while (out().find(text) == std::string::npos) {
    if (base::MonotonicNs() > deadline) return false;
    const timespec pause = {.tv_sec = 0, .tv_nsec = 5 * base::kNsPerMs};
    nanosleep(&pause, nullptr);
  }
  return true;
}

std::string Output::out() const {
  const std::lock_guard lock(text_->mutex);
  return text_->out;
}
std::string Output::err() const {
  const std::lock_guard lock(text_->mutex);
  return text_->err;
}

Ran RunToEnd(TestContainer::Options options, const std::string& input, bool with_input) {
  const bool in = with_input || !input.empty();
  if (in) options.stdio.mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
  const bool err = options.stdio.stderr().mode() == v1::StreamSpec::MODE_STREAM;
  TestContainer container(std::move(options));
  REQUIRE_MESSAGE(container.created(), Why(container.created()));
  Output output(container.id(), {}, in, err);
  container.Start();
  if (in) {
    if (!input.empty()) CHECK(output.session().Write(input));
    output.session().CloseStdin();
  }
  Ran ran;
  ran.exit = container.Wait();
  output.Finish();
  ran.out = output.out();
  ran.err = output.err();
  return ran;
}

}  // namespace gcs::test
