// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "guest/containers.h"
#include "guest/keep.h"
#include "stdio/process_io.h"

namespace gcs::guest {

// Keys in the Keep. A container exists from the moment on in which its own entry is put; the others come
// before it.
std::string ConfigKey(const std::string& container_id);     // its configuration, as given
std::string ContainerKey(const std::string& container_id);  // a ContainerRecord
std::string ProcessKey(const std::string& container_id, const std::string& process_id);  // a ProcessRecord

struct ContainerRecord {
  std::string cgroup_path;
  int64_t created_at_ns = 0;
  std::vector<std::pair<std::string, std::string>> labels;
  std::vector<std::string> owned_mounts;
  std::string pod_id;
  bool deleting = false;  // Delete has begun, and is to be finished
};
std::string Encode(const ContainerRecord& record);
base::Result<ContainerRecord> DecodeContainer(std::string_view text);

// Descriptors of its entry: pidfd, the socket that it waits on for its start, the parts of its streams.
struct ProcessRecord {
  int pid = 0;
  bool terminal = false;
  StdioRequest stdio;
  std::vector<stdio::Part> parts;
  bool starting = false;  // has been asked to execute its program
  int64_t started_at_ns = 0;
  uint64_t oom_kills_before = 0;
  std::optional<ExitStatus> exit;
};
std::string Encode(const ProcessRecord& record);
base::Result<ProcessRecord> DecodeProcess(std::string_view text);
inline constexpr size_t kPidfdIndex = 0;
inline constexpr size_t kSyncIndex = 1;
inline constexpr size_t kPartsIndex = 2;

// A process in the Keep. Any thread. Without a Keep it does nothing.
class KeptProcess {
 public:
  KeptProcess(Keep* keep, std::string key) : keep_(keep), key_(std::move(key)) {}

  // With all of its descriptors. `record.parts` is filled in.
  base::Result<> Put(ProcessRecord record, int pidfd, int sync, const stdio::ProcessIo& io);
  // For one that is in the Keep already.
  void Adopt(const ProcessRecord& record);
  // Changes the record; a failure is logged: the process then comes back in the state before.
  void Change(const std::function<void(ProcessRecord&)>& change);
  // It waits for its start no more.
  void DropSync();
  // How a process ended that is no child of this agent, but of the one before.
  base::Result<std::optional<ExitStatus>> ExitOfInherited(int pidfd);
  // See stdio::Config.
  void Closed(stdio::Part part);
  void Remove();

 private:
  void DropPart(stdio::Part part);  // with mutex_ held

  Keep* const keep_;
  const std::string key_;
  std::mutex mutex_;
  bool there_ = false;
  ProcessRecord record_;
  std::set<stdio::Part> closed_;  // before Put knew of it
};

}  // namespace gcs::guest
