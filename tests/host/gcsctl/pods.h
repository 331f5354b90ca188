// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host/gcsctl/machine.h"

// Pods, the network and kernel parameters of a running VM. Each returns the program's exit code.
namespace gcs::gcsctl {

struct PodOptions {
  std::string id;
  std::string hostname;  // empty: the id
  bool share_pid = false;
  std::string shm_size;              // "64m"; empty: the agent's default
  std::vector<std::string> sysctls;  // NAME=VALUE
};
int CreatePod(const Machine& machine, const PodOptions& options);
int ListPods(const Machine& machine, bool json);
int RemovePods(const Machine& machine, const std::vector<std::string>& ids);

struct InterfaceOptions {
  std::string interface;  // a name, or a MAC address
  std::string pod;        // empty: the VM itself, like below
  std::string name;
  uint32_t mtu = 0;
  std::vector<std::string> addresses;
  std::vector<std::string> routes;  // DESTINATION[@GATEWAY]
};
int ConfigureInterface(const Machine& machine, const InterfaceOptions& options, bool json);
int ListInterfaces(const Machine& machine, const std::string& pod, bool json);
int ConfigureDns(const Machine& machine, const std::string& pod, const std::vector<std::string>& servers,
                 const std::vector<std::string>& domains);

// Each word is NAME, to be printed, or NAME=VALUE, to be set before.
int Sysctl(const Machine& machine, const std::vector<std::string>& words, bool json);

}  // namespace gcs::gcsctl
