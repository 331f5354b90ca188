// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::guest {

// The file below /proc/sys of a parameter's name, by the rules of sysctl(8): the first "." or "/" of a name
// is what separates its components, the other one stands for the first within them. EINVAL: a name that is
// too long, has another character than letters, digits and "_./-", or a component that is empty, "." or "..".
base::Result<std::string> SysctlPath(std::string_view name);

// The kernel's parameters, by way of a procfs that is attached nowhere: what a container mounts over or makes
// a link of is not on the way. Any thread; those of namespaces are the calling thread's.
class Sysctls {
 public:
  // `network_changed` is called after a parameter of the network was written, even if it was written back.
  explicit Sysctls(std::function<void()> network_changed) : network_changed_(std::move(network_changed)) {}

  // Sets values by name, in the order of the names, then reads. All or nothing: before the first is set,
  // everything is opened and the former values are read; after a failure they are written back, last first.
  // What is write-only acts at once and has no former value. Errors have the name as their object; those of
  // a former value that could not be written back are in the message.
  base::Result<std::map<std::string, std::string>> Apply(const std::map<std::string, std::string>& set,
                                                         const std::vector<std::string>& get);

 private:
  base::Result<> Open();

  const std::function<void()> network_changed_;
  std::mutex mutex_;  // one Apply at a time, or one would write back what another has set
  base::Fd directory_;
};

}  // namespace gcs::guest
