// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::host {

// One connection to QEMU's monitor (QEMU docs/interop/qmp-spec.txt). QEMU serves one at a time: the next
// waits for its greeting until the first has gone. Not thread-safe.
class QmpClient {
 public:
  // Connects and negotiates. All waiting, also of later calls, ends `timeout_ms` from now.
  static base::Result<QmpClient> Connect(const std::string& path, int64_t timeout_ms);

  // Returns "return"; the error of a refusal is EREMOTEIO with QEMU's words in `message`.
  base::Result<nlohmann::json> Execute(const std::string& command, const nlohmann::json& arguments);
  // The data of the next event `name`, past or future, that `match` accepts.
  base::Result<nlohmann::json> WaitEvent(const std::string& name,
                                         const std::function<bool(const nlohmann::json& data)>& match);

 private:
  QmpClient(base::Fd socket, int64_t deadline_ns) : socket_(std::move(socket)), deadline_ns_(deadline_ns) {}
  base::Result<nlohmann::json> ReadObject();

  base::Fd socket_;
  int64_t deadline_ns_;
  std::string buffer_;
  std::vector<nlohmann::json> events_;
};

}  // namespace gcs::host
