// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "bench/machine.h"
#include "host/client/client.h"
#include "host/client/oci_config.h"
#include "host/vm/vm.h"

namespace gcs::bench {

inline double MsSince(int64_t begin_ns) { return static_cast<double>(base::MonotonicNs() - begin_ns) / 1e6; }

// The product's image in a virtual machine, with a disk of the containers' programs: /exit0, /pause, /guest
// (guest.cc), /bin/busybox with sh and cat.
class BenchVm {
 public:
  // GCS_IMAGE_DIR names the image. `zeros_mib` is the size of /zeros.
  static base::Result<std::unique_ptr<BenchVm>> Boot(uint32_t memory_mib, int zeros_mib = 0);

  host::Client& client() { return *client_; }
  host::Vm& vm() { return *vm_; }

  // What gcsctl would write for these arguments, on the disk's root.
  [[nodiscard]] host::ContainerSettings Settings(std::vector<std::string> args) const;
  static base::Result<std::string> Config(const host::ContainerSettings& settings);

  template <typename Request>
  base::Result<typename host::Method<Request>::Response> Call(const Request& request) {
    auto response = client_->Call(request, {.timeout_ms = 120'000});
    if (!response) return std::unexpected(base::Error(response.error()));
    return std::move(*response);
  }
  base::Result<> Create(const std::string& id, const std::string& config, const v1::StdioSpec& stdio = {},
                        bool allow_vsock = false);
  base::Result<> Start(const std::string& id);
  base::Result<int> Wait(const std::string& id);
  base::Result<> Delete(const std::string& id);
  // Runs a container to its end; what it wrote to stdout. An exit code other than 0 is an error.
  base::Result<std::string> Output(const std::string& id, const std::string& config);
  // The raw vsock server, see guest.cc.
  base::Result<> StartRawServer();
  // A blocking connection.
  base::Result<base::Fd> Connect(uint32_t port) const;

 private:
  TempDir dir_;
  std::unique_ptr<host::Vm> vm_;
  std::unique_ptr<host::Client> client_;
  std::string root_;
};

base::Result<> SendAll(int fd, const void* data, size_t size);
base::Result<> ReceiveAll(int fd, void* data, size_t size);

struct VmBenchOptions {
  int boots = 11;
  int calls = 2000;
  int containers = 200;
  int mebibytes = 256;
  int idle = 100;
  int many = 500;
};
base::Result<> BenchBoot(const VmBenchOptions& options);
base::Result<> BenchRpc(const VmBenchOptions& options);
base::Result<> BenchStdio(const VmBenchOptions& options);
base::Result<> BenchScale(const VmBenchOptions& options);

}  // namespace gcs::bench
