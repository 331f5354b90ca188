// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "host/client/client.h"
#include "host/client/oci_config.h"
#include "host/vm/control.h"

// From an image's layer disks to a container's root in the guest, and back to nothing.
namespace gcs::host {

// The layers, scratches and disks of one VM, for any number of client processes: they keep out of each
// other's way by a lock file. Layers are mounted once however many containers use them, under the id
// "layer-<first 32 characters of the file's name>".
class GuestStorage {
 public:
  // `state_dir`: where the lock and the scratch files are; one for all clients of the VM.
  GuestStorage(Client& client, const VmControl& vm, std::string state_dir);

  struct Root {
    std::string path;                    // for root.path
    std::vector<std::string> mount_ids;  // what the container is to own, in order of mounting
    int64_t attach_ns = 0, mount_ns = 0, scratch_ns = 0, overlay_ns = 0;
  };
  // The stack of `layers` (files, lowest first) with a scratch of its own. `scratch_bytes` 0: a tmpfs that
  // half of the guest's memory bounds; else a sparse disk of this size, which the guest formats.
  CallResult<Root> MountRoot(const std::string& container_id, const std::vector<std::string>& layers,
                             uint64_t scratch_bytes);
  // Takes away what no container uses: layers, scratches, their disks. To be called after a container's end.
  CallResult<> Sweep();

 private:
  CallResult<base::Fd> Lock();
  [[nodiscard]] bool IsScratch(const std::string& path) const;
  CallResult<> EnsureLayers(const std::vector<std::string>& layers, std::vector<std::string>& ids,
                            Root& root);
  CallResult<std::string> PlugScratch(const std::string& container_id, uint64_t bytes);

  Client& client_;
  const VmControl& vm_;
  const std::string state_dir_;
};

// The id under which a layer disk is mounted.
std::string LayerMountId(const std::string& path);

}  // namespace gcs::host
