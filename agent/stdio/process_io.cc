// SPDX-License-Identifier: Apache-2.0
#include "stdio/process_io.h"

#include <cerrno>

#include "stdio/core.h"

namespace gcs::stdio {
namespace {

base::Result<> CheckStream(const Config& config, Stream stream, const StreamConfig& spec) {
  if (spec.mode == Mode::kSocket && !spec.socket.valid()) {
    return base::MakeError(EINVAL, "make streams", config.name,
                           std::string(StreamName(stream)) + " has no socket");
  }
  return {};
}

base::Result<> Check(const Config& config) {
  GCS_TRY(CheckStream(config, Stream::kStdin, config.in));
  GCS_TRY(CheckStream(config, Stream::kStdout, config.out));
  GCS_TRY(CheckStream(config, Stream::kStderr, config.err));
  if (config.terminal && config.err.mode != Mode::kNull) {
    return base::MakeError(EINVAL, "make streams", config.name, "a terminal has no stderr of its own");
  }
  if (config.ring_bytes != 0 && (config.ring_bytes < kMinRingBytes || config.ring_bytes > kMaxRingBytes)) {
    return base::MakeError(
        EINVAL, "make streams", config.name,
        "ring size " + std::to_string(config.ring_bytes) + " is not within 4096 and 67108864");
  }
  return {};
}

}  // namespace

std::string_view StreamName(Stream stream) {
  switch (stream) {
    case Stream::kStdin:
      return "stdin";
    case Stream::kStdout:
      return "stdout";
    case Stream::kStderr:
      return "stderr";
  }
  return "?";
}

base::Result<ProcessIo::Created> ProcessIo::Create(base::Loop* loop, Config config) {
  GCS_TRY(Check(config));
  auto core = std::make_shared<Core>(loop, config);
  GCS_ASSIGN(ChildFds child, core->MakePipes(config));
  loop->Post([core] { core->Start(); });
  return Created{std::unique_ptr<ProcessIo>(new ProcessIo(std::move(core))), std::move(child)};
}

base::Result<std::unique_ptr<ProcessIo>> ProcessIo::Restore(base::Loop* loop, Config config,
                                                            std::map<Part, base::Fd> parts) {
  auto core = std::make_shared<Core>(loop, config);
  GCS_TRY(core->Restore(parts));
  loop->Post([core] { core->Resume(); });
  return std::unique_ptr<ProcessIo>(new ProcessIo(std::move(core)));
}

base::Result<std::vector<std::pair<Part, base::Fd>>> ProcessIo::Parts() const { return core_->Parts(); }

ProcessIo::~ProcessIo() {
  base::Loop* const loop = core_->loop();
  loop->Post([core = std::move(core_)] { core->Shutdown(); });
}

base::Result<> ProcessIo::AttachTerminal(base::Fd master) { return core_->AttachTerminal(std::move(master)); }

base::Result<> ProcessIo::Resize(uint32_t width, uint32_t height) { return core_->Resize(width, height); }

base::Result<std::unique_ptr<Session>> ProcessIo::Attach(AttachOptions options) {
  return core_->Attach(std::move(options));
}

void ProcessIo::ProcessExited(std::function<void()> drained) {
  core_->loop()->Post(
      [core = core_, drained = std::move(drained)]() mutable { core->ProcessExited(std::move(drained)); });
}

OutputState ProcessIo::Output(Stream stream) const { return core_->StateOf(stream); }
StdinState ProcessIo::Stdin() const { return core_->Stdin(); }

Session::~Session() { core_->Detach(id_); }

base::Result<OutputChunk> Session::Read(Stream stream, size_t max) { return core_->Read(id_, stream, max); }

base::Result<> Session::Ack(Stream stream, uint64_t offset) { return core_->Ack(id_, stream, offset); }

base::Result<uint64_t> Session::WriteStdin(uint64_t offset, std::string_view data, bool close) {
  return core_->WriteStdin(id_, offset, data, close);
}

StdinState Session::Stdin() const { return core_->Stdin(); }

bool Session::terminal() const { return core_->terminal(); }

}  // namespace gcs::stdio
