// SPDX-License-Identifier: Apache-2.0
#include "init/cgroups.h"

#include <fcntl.h>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <vector>

#include "base/paths.h"
#include "init/klog.h"

namespace gcs::init {

namespace {

void LogFailure(const base::Result<>& result) {
  if (!result) LogError("set-up goes on", result.error());
}

// All in one write, which the kernel does as one change; one by one only where that fails, so that a
// controller that cannot be enabled costs none of the others.
base::Result<> EnableControllers(const std::string& directory) {
  GCS_ASSIGN(const std::string available, base::ReadFile(directory + "/cgroup.controllers"));
  const std::string file = directory + "/cgroup.subtree_control";
  std::vector<std::string> words;
  std::string all;
  std::string_view rest = available;
  while (!rest.empty()) {
    const size_t end = rest.find_first_of(" \n");
    if (end != 0) {
      words.push_back(std::string("+").append(rest.substr(0, end)));
      all.append(words.back()).append(" ");
    }
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  }
  if (words.empty() || base::WriteFile(file, all)) return {};
  for (const std::string& word : words) LogFailure(base::WriteFile(file, word));
  return {};
}

// All containers together stay below the machine's threads, so that a fork bomb leaves the agent, init and
// the kernel what they need to end it.
base::Result<> LimitProcesses(const std::string& directory) {
  constexpr uint64_t kReserve = 1024;
  constexpr const char* kThreadsMax = "/proc/sys/kernel/threads-max";
  GCS_ASSIGN(const std::string text, base::ReadFile(kThreadsMax));
  uint64_t all = 0;
  std::from_chars(text.data(), text.data() + text.size(), all);
  if (all == 0) return base::MakeError(EINVAL, "parse", kThreadsMax, text);
  return base::WriteFile(directory + "/pids.max", std::to_string(all - std::min(kReserve, all / 4)));
}

}  // namespace

base::Result<Cgroups> SetUpCgroups(const std::string& root, uint64_t memory_min) {
  for (const char* name : {"/init", "/gcs", "/containers"}) GCS_TRY(base::MakeDirs(root + name, 0755));
  // Out of the root first: only there are processes and controllers allowed together, and in a cgroup
  // namespace not even there.
  GCS_TRY(base::WriteFile(root + "/init/cgroup.procs", "0"));
  GCS_TRY(EnableControllers(root));
  GCS_TRY(EnableControllers(root + "/containers"));
  // Last: enabling controllers over groups that are empty moves nobody.
  GCS_TRY(base::WriteFile(root + "/init/cgroup.procs", "0"));
  LogFailure(base::WriteFile(root + "/gcs/memory.min", std::to_string(memory_min)));
  LogFailure(LimitProcesses(root + "/containers"));
  // Busy containers must not delay the agent's answers: ten times the default share.
  LogFailure(base::WriteFile(root + "/gcs/cpu.weight", "1000"));

  Cgroups cgroups;
  GCS_ASSIGN(cgroups.init, base::OpenFile(root + "/init", O_RDONLY | O_DIRECTORY));
  GCS_ASSIGN(cgroups.agent, base::OpenFile(root + "/gcs", O_RDONLY | O_DIRECTORY));
  return cgroups;
}

}  // namespace gcs::init
