// SPDX-License-Identifier: Apache-2.0
// A container's cat, in and out, over dialled ports and over gRPC streams, against raw vsock.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <vector>

#include "bench/report.h"
#include "bench/vm.h"
#include "host/client/attach.h"

namespace gcs::bench {

using base::ErrnoError;
using base::MakeError;
using base::Result;

namespace {

constexpr size_t kPiece = 256 << 10;
constexpr uint32_t kStdioPort = 60'001;

Result<base::Fd> Accept(const base::Fd& listener) {
  pollfd entry = {.fd = listener.get(), .events = POLLIN, .revents = 0};
  if (poll(&entry, 1, 10'000) != 1) return MakeError(ETIMEDOUT, "accept", "stdio port");
  base::Fd fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd) return ErrnoError("accept", "stdio port");
  return fd;
}

class Bench {
 public:
  Bench(BenchVm& vm, uint64_t bytes) : vm_(vm), bytes_(bytes), buffer_(kPiece, 'x') {}

  // Each returns MiB/s.
  Result<double> RawIn() {
    GCS_ASSIGN(const base::Fd fd, vm_.Connect(50009));
    const int64_t begin = base::MonotonicNs();
    GCS_TRY(SendAll(fd.get(), &bytes_, sizeof bytes_));
    GCS_TRY(SendBytes(fd.get()));
    char done = 0;
    GCS_TRY(ReceiveAll(fd.get(), &done, 1));
    return Rate(begin);
  }
  Result<double> RawOut() {
    GCS_ASSIGN(const base::Fd fd, vm_.Connect(50019));
    const int64_t begin = base::MonotonicNs();
    GCS_TRY(SendAll(fd.get(), &bytes_, sizeof bytes_));
    GCS_TRY(ReceiveBytes(fd.get()));
    return Rate(begin);
  }
  // The clock runs from the first byte sent to the end of cat, which has then read all.
  Result<double> PortIn() {
    v1::StdioSpec stdio;
    stdio.mutable_stdin()->set_mode(v1::StreamSpec::MODE_VSOCK);
    stdio.mutable_stdin()->set_port(kStdioPort);
    GCS_ASSIGN(const std::string id, Create({"/bin/sh", "-c", "exec cat >/dev/null"}, stdio, true));
    const int64_t begin = base::MonotonicNs();
    GCS_TRY(SendBytes(stream_.get()));
    if (shutdown(stream_.get(), SHUT_WR) != 0) return ErrnoError("shutdown", "stdin");
    return Finish(id, begin);
  }
  Result<double> PortOut() {
    v1::StdioSpec stdio;
    stdio.mutable_stdout()->set_mode(v1::StreamSpec::MODE_VSOCK);
    stdio.mutable_stdout()->set_port(kStdioPort);
    GCS_ASSIGN(const std::string id, Create(OutCommand(), stdio, true));
    const int64_t begin = started_ns_;
    GCS_TRY(ReceiveBytes(stream_.get()));
    return Finish(id, begin);
  }
  Result<double> GrpcIn() {
    v1::StdioSpec stdio;
    stdio.mutable_stdin()->set_mode(v1::StreamSpec::MODE_STREAM);
    GCS_ASSIGN(const std::string id, Create({"/bin/sh", "-c", "exec cat >/dev/null"}, stdio, false));
    auto session = host::AttachSession::Open(
        vm_.client(),
        {.container_id = id, .process_id = "", .in = true, .out = false, .err = false, .on_output = {}});
    if (!session) return std::unexpected(base::Error(session.error()));
    const int64_t begin = base::MonotonicNs();
    for (uint64_t sent = 0; sent < bytes_; sent += kPiece) {
      if (!(*session)->Write({buffer_.data(), kPiece})) return MakeError(EPIPE, "write", "gRPC stdin");
    }
    (*session)->CloseStdin();
    return Finish(id, begin);
  }
  Result<double> GrpcOut() {
    v1::StdioSpec stdio;
    stdio.mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
    uint64_t received = 0;
    GCS_ASSIGN(const std::string id, Create(OutCommand(), stdio, false));
    const int64_t begin = started_ns_;
    auto session = host::AttachSession::Open(
        vm_.client(), {.container_id = id,
                       .process_id = "",
                       .err = false,
                       .on_output = [&](v1::Stream, std::string_view data) { received += data.size(); }});
    if (!session) return std::unexpected(base::Error(session.error()));
    if (const auto ended = (*session)->WaitOutputs(600'000); !ended)
      return std::unexpected(base::Error(ended.error()));
    if (received != bytes_)
      return MakeError(EIO, "receive", "gRPC stdout", std::to_string(received) + " bytes");
    return Finish(id, begin);
  }

 private:
  [[nodiscard]] static std::vector<std::string> OutCommand() { return {"/bin/cat", "/zeros"}; }
  [[nodiscard]] double Rate(int64_t begin) const {
    return static_cast<double>(bytes_) / (1 << 20) / (MsSince(begin) / 1000);
  }
  Result<> SendBytes(int fd) {
    for (uint64_t sent = 0; sent < bytes_; sent += kPiece) GCS_TRY(SendAll(fd, buffer_.data(), kPiece));
    return {};
  }
  Result<> ReceiveBytes(int fd) {
    for (uint64_t left = bytes_; left > 0;) {
      const ssize_t n = recv(fd, buffer_.data(), buffer_.size(), 0);
      if (n <= 0)
        return n < 0 ? ErrnoError("recv", "stream")
                     : MakeError(ECONNRESET, "recv", "stream", std::to_string(left) + " bytes are missing");
      left -= static_cast<uint64_t>(n);
    }
    return {};
  }
  // Creates and starts a container; with `dialled`, its stream is accepted.
  Result<std::string> Create(const std::vector<std::string>& args, const v1::StdioSpec& stdio, bool dialled) {
    std::string id = "s" + std::to_string(++number_);
    GCS_ASSIGN(const std::string config, vm_.Config(vm_.Settings(args)));
    base::Fd listener;
    if (dialled) {
      GCS_ASSIGN(listener, vm_.vm().Listen(kStdioPort));
    }
    GCS_TRY(vm_.Create(id, config, stdio));
    if (dialled) {
      GCS_ASSIGN(stream_, Accept(listener));
    }
    started_ns_ = base::MonotonicNs();
    GCS_TRY(vm_.Start(id));
    return id;
  }
  Result<double> Finish(const std::string& id, int64_t begin) {
    GCS_ASSIGN(const int code, vm_.Wait(id));
    const double rate = Rate(begin);
    stream_.Reset();
    GCS_TRY(vm_.Delete(id));
    if (code != 0) return MakeError(EIO, "run container", id, "exit code " + std::to_string(code));
    return rate;
  }

  BenchVm& vm_;
  const uint64_t bytes_;
  std::vector<char> buffer_;
  base::Fd stream_;
  int64_t started_ns_ = 0;  // just before the last container's start
  int number_ = 0;
};

}  // namespace

Result<> BenchStdio(const VmBenchOptions& options) {
  // Room for the file in the page cache, so that only its first reader waits for the disk.
  constexpr uint32_t kMemoryMib = 512;
  GCS_ASSIGN(const auto vm,
             BenchVm::Boot(kMemoryMib + static_cast<uint32_t>(options.mebibytes), options.mebibytes));
  GCS_ASSIGN(const std::string warm,
             BenchVm::Config(vm->Settings({"/bin/sh", "-c", "cat /zeros >/dev/null"})));
  GCS_TRY(vm->Output("warm", warm));
  GCS_TRY(vm->StartRawServer());
  Bench bench(*vm, static_cast<uint64_t>(options.mebibytes) << 20);
  constexpr int kRounds = 3;
  std::vector<double> raw_in;
  std::vector<double> raw_out;
  std::vector<double> port_in;
  std::vector<double> port_out;
  std::vector<double> grpc_in;
  std::vector<double> grpc_out;
  for (int i = 0; i < kRounds; ++i) {
    const auto take = [](std::vector<double>& rates, Result<double> rate) -> Result<> {
      if (!rate) return std::unexpected(rate.error());
      rates.push_back(*rate);
      return {};
    };
    GCS_TRY(take(raw_in, bench.RawIn()));
    GCS_TRY(take(port_in, bench.PortIn()));
    GCS_TRY(take(grpc_in, bench.GrpcIn()));
    GCS_TRY(take(raw_out, bench.RawOut()));
    GCS_TRY(take(port_out, bench.PortOut()));
    GCS_TRY(take(grpc_out, bench.GrpcOut()));
  }
  const double port = std::min(MedianRatio(port_in, raw_in), MedianRatio(port_out, raw_out));
  const double grpc = std::min(MedianRatio(grpc_in, raw_in), MedianRatio(grpc_out, raw_out));
  Head(("stdio (container's cat, " + std::to_string(options.mebibytes) + " MiB, TCG)").c_str());
  const auto row = [](const char* what, const std::vector<double>& in, const std::vector<double>& out) {
    Row(what, Number(Median(in), "MiB/s in", 0), Number(Median(out), "MiB/s out", 0));
  };
  row("raw vsock", raw_in, raw_out);
  row("dialled ports", port_in, port_out);
  row("gRPC streams", grpc_in, grpc_out);
  Row("x raw, dialled ports", Number(port, ""), "the worse direction", ">= 0.9");
  Row("x raw, gRPC streams", Number(grpc, ""), "the worse direction");
  Key("stdio_ratio", port);
  Key("stdio_grpc_ratio", grpc);
  return {};
}

}  // namespace gcs::bench
