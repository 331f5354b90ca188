// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "base/fd.h"
#include "storage/storage.h"

namespace gcs::storage {

// One mount in the table; guarded by the Storage's mutex.
struct Storage::Entry {
  enum class State : uint8_t { kMounting, kMounted, kUnmounting };

  State state = State::kMounting;
  uint64_t sequence = 0;
  MountInfo info;
  std::set<std::string> users;
  uint64_t kernel_id = 0;
  std::string scratch;  // overlays: mount id, path and directory of the upper layer
  std::string scratch_path;
  std::string scratch_dir;
  bool discard = false;
  bool restored = false;                 // made by an agent that crashed
  std::shared_ptr<base::Fd> connection;  // shares: to the file server
};

}  // namespace gcs::storage
