// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"

namespace gcs::oci {

// A process by its number and its start in clock ticks since boot, which tells a number that is used again.
struct ProcessId {
  int pid = 0;
  uint64_t start_time = 0;
};

// What is kept of a container between two calls, in ROOT/ID/state.json beside config.json, its copy of the
// configuration (later edits of the bundle don't matter), and start.sock, where its first process waits.
struct Record {
  std::string id;
  std::string bundle;
  std::string cgroup_path;
  std::string rootfs;
  int pid = 0;              // 0: not created yet
  uint64_t start_time = 0;  // of the process, as ProcessId has it
  ProcessId creator;        // the call that makes it, or has made it
  std::string created;      // RFC 3339
  std::string owner;
  bool made_rdt = false;  // the resctrl group of linux.intelRdt.closID was made for it
};

enum class Status : uint8_t { kCreating, kCreated, kRunning, kPaused, kStopped };
std::string_view StatusName(Status status);

// Changing calls wait for each other; one that reads, kills or executes waits for nobody.
enum class Access : uint8_t { kRead, kChange };

// The directory of one container, locked against other calls that change it.
class Store {
 public:
  // EEXIST if there is one.
  static base::Result<Store> Create(const std::string& root, const std::string& id);
  // ENOENT if there is no such directory; what a killed create left may be in it.
  // EWOULDBLOCK if another call is changing it at the deadline (CLOCK_MONOTONIC ns; 0: now).
  static base::Result<Store> Open(const std::string& root, const std::string& id, Access access,
                                  int64_t deadline_ns);
  static base::Result<std::vector<std::string>> List(const std::string& root);

  base::Result<> Save(const Record& record);
  base::Result<> SaveConfig(const std::string& config_json);
  // ENOENT if there is no state (any more).
  [[nodiscard]] base::Result<Record> Load() const;
  [[nodiscard]] base::Result<std::string> Config() const;
  base::Result<> Remove();
  void Unlock() { lock_.Reset(); }
  // Whether another call is changing it.
  [[nodiscard]] bool Busy() const;

  // A listening socket for the start, and a connection to it: ECONNREFUSED or ENOENT if nobody waits.
  base::Result<base::Fd> Listen();
  [[nodiscard]] base::Result<base::Fd> Connect() const;

 private:
  Store(std::string path, base::Fd dir, base::Fd lock)
      : path_(std::move(path)), dir_(std::move(dir)), lock_(std::move(lock)) {}
  std::string path_;
  base::Fd dir_;
  base::Fd lock_;
};

// A pidfd of a process of container `id`; ESRCH if it has ended.
base::Result<base::Fd> OpenProcess(const ProcessId& process, const std::string& id);
// Of a process that lives; 0 if it doesn't.
uint64_t StartTime(int pid);

}  // namespace gcs::oci
