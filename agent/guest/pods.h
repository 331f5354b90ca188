// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "engine/engine.h"
#include "engine/spec.h"
#include "guest/keep.h"
#include "guest/pod_dir.h"

namespace gcs::guest {

struct CreatePod {
  std::string pod_id;
  PodSettings settings;
  bool share_pid = false;
  std::vector<std::pair<std::string, std::string>> labels;
};

struct PodInfo {
  std::string pod_id;
  std::string hostname;
  std::vector<std::string> container_ids;  // sorted
  int64_t created_at_ns = 0;
  bool share_pid = false;
  std::vector<std::pair<std::string, std::string>> labels;
};

// Pods: network, ipc and uts namespaces, /dev/shm and files of /etc that several containers share, and with
// share_pid a pid namespace, in which a process of the agent's is the first: it reaps what containers leave.
// They outlive the agent. Any thread; calls take as long as their work.
//
// Errors: ENOENT "find pod"; EEXIST id in use; EINVAL bad id, name, sysctl; EBUSY containers are in it
// (object: one of them) or it is being made or deleted; else what the kernel says.
class Pods {
 public:
  struct Options {
    std::string dir = "/run/gcs/pods";             // the agent's own
    std::string cgroup_parent = "/pods";           // of the first processes of share_pid
    std::string pause_program = "/bin/gcs-tools";  // static, has the applet "pause"
  };
  Pods(Options options, engine::Engine* engine, Keep* keep);
  ~Pods();  // deletes what is left
  Pods(const Pods&) = delete;
  Pods& operator=(const Pods&) = delete;

  // Takes over what an agent that crashed has left; removes those that it was in the middle of making or
  // deleting. Takes its entries out. Before anything else is called, and before containers are restored.
  void Restore(std::vector<Keep::Entry>& entries);
  // cgroups of their first processes.
  [[nodiscard]] std::vector<std::string> CgroupPaths() const;

  base::Result<> Create(const CreatePod& request, int64_t deadline_ns);
  // Network devices go back to the guest's own namespace.
  base::Result<> Delete(const std::string& pod_id, int64_t deadline_ns);
  [[nodiscard]] std::vector<PodInfo> List() const;  // oldest first

  // Makes a container's configuration one of the pod's: it joins the pod's namespaces, gets its files of /etc
  // where it has no mounts of its own, and its /dev/shm instead of a tmpfs. From then on the pod can't be
  // deleted. EINVAL if it asks for what is the pod's to say.
  base::Result<> Join(const std::string& pod_id, const std::string& container_id, engine::Spec& spec);
  void Leave(const std::string& pod_id, const std::string& container_id);

  base::Result<base::Fd> NetworkNamespace(const std::string& pod_id) const;
  // Under the containers that have it mounted.
  base::Result<> SetResolvConf(const std::string& pod_id, const std::string& text) const;

 private:
  struct Pod;
  base::Result<std::shared_ptr<Pod>> Find(const std::string& pod_id) const;  // with mutex_ held
  [[nodiscard]] std::string Dir(const std::string& pod_id) const { return options_.dir + "/" + pod_id; }
  base::Result<engine::Spec> PauseSpec(const std::string& pod_id) const;
  base::Result<> StartPause(Pod& pod, int64_t deadline_ns);
  base::Result<> KeepPod(const Pod& pod) const;
  base::Result<> TakeDown(Pod& pod, int64_t deadline_ns);
  base::Result<> RestorePod(Keep::Entry& entry);

  const Options options_;
  engine::Engine* const engine_;
  Keep* const keep_;
  mutable std::mutex mutex_;  // guards the table and what is in it but a busy pod's own affairs
  std::map<std::string, std::shared_ptr<Pod>> pods_;
};

}  // namespace gcs::guest
