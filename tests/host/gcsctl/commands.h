// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host/gcsctl/machine.h"

// The commands that ask or tell a running VM one thing. Each returns the program's exit code.
namespace gcs::gcsctl {

int VmStart(const StartOptions& options, bool json);
int VmStop(const std::string& name, bool force, uint32_t grace_ms);
int VmStatus(const std::string& name, bool json);

int Info(const Machine& machine, bool json);
int ListContainers(const Machine& machine, bool json);
int ListProcesses(const Machine& machine, const std::string& container_id, bool json);
int Kill(const Machine& machine, const std::vector<std::string>& ids, const std::string& signal, bool all);
int Wait(const Machine& machine, const std::vector<std::string>& ids, bool json);
int Remove(const Machine& machine, const std::vector<std::string>& ids, bool force);
int Pause(const Machine& machine, const std::vector<std::string>& ids, bool resume);
int Stats(const Machine& machine, const std::vector<std::string>& ids, bool json);
int Events(const Machine& machine, uint64_t after, bool follow, bool json);
int Logs(const Machine& machine, uint64_t after, bool follow, bool json);
// One of the two is "CONTAINER:PATH", the other "-" (a tar stream).
int Copy(const Machine& machine, const std::string& from, const std::string& to);

}  // namespace gcs::gcsctl
