// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <ftw.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

// After sys/socket.h, whose types it uses.
#include <linux/vm_sockets.h>

#include <string>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

constexpr char kModule[] = "vmw_vsock_virtio_transport";

// nftw takes no argument for its callback.
std::string found_module;

Result<std::string> FindModule() {
  found_module.clear();
  const auto visit = [](const char* path, const struct stat*, int type, FTW*) {
    if (type == FTW_F && std::string_view(path).ends_with(std::string("/") + kModule + ".ko"))
      found_module = path;
    return 0;
  };
  if (nftw("/lib/modules", visit, 8, FTW_PHYS) != 0) return ErrnoError("walk", "/lib/modules");
  if (found_module.empty()) return MakeError(ENOENT, "find module", kModule);
  return found_module;
}

bool Loaded() {
  const Result<std::string> modules = ReadFile("/proc/modules");
  return modules && HasWord(*modules, kModule);
}

// Loads the one module the image has; its common part is built in for the loopback.
Result<> VirtioTransportLoads() {
  if (Loaded())
    return MakeError(EEXIST, "load module", kModule, "it is loaded already, hv_sock had no chance");
  GCS_ASSIGN(const std::string path, FindModule());
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return ErrnoError("open", path);
  if (syscall(SYS_finit_module, file.get(), "", 0) != 0) return ErrnoError("finit_module", path);
  if (!Loaded()) return MakeError(ENOENT, "read /proc/modules", kModule);
  return {};
}

Result<> LoopbackEchoes() {
  const Fd listener(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener) return ErrnoError("socket", "AF_VSOCK");
  sockaddr_vm address = {};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_LOCAL;
  address.svm_port = 1024;
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return ErrnoError("bind", "1:1024");
  if (listen(listener.get(), 1) != 0) return ErrnoError("listen", "1:1024");
  const Fd client(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!client) return ErrnoError("socket", "AF_VSOCK");
  if (connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoError("connect", "1:1024");
  }
  const Fd server(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!server) return ErrnoError("accept", "1:1024");
  char buffer[5] = {};
  if (write(client.get(), "hello", 5) != 5) return ErrnoError("write", "1:1024");
  if (read(server.get(), buffer, 5) != 5) return ErrnoError("read", "1:1024");
  if (std::string_view(buffer, 5) != "hello") return MakeError(EBADMSG, "compare", "1:1024");
  return {};
}

const Item kItems[] = {
    {"module-virtio-vsock", VirtioTransportLoads},
    {"vsock-loopback", LoopbackEchoes},
};

}  // namespace

std::span<const Item> VsockItems() { return kItems; }

}  // namespace gcs::selfcheck
