// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/spec.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

// What the files that read parts of config.json share.
namespace gcs::engine {

inline constexpr int64_t kIdMax = 0xfffffffe;  // 4294967295 is "no id" to setresuid(2)
inline constexpr size_t kMaxMounts = 1000;
// Nodes, and rules; privileged containers list all that a machine has.
inline constexpr size_t kMaxDevices = 10'000;

struct NamedNumber {
  std::string_view name;
  int64_t number;
};

// The number of the value below `key`; an error naming the value if the table doesn't have it.
std::optional<int64_t> ReadNamed(base::JsonReader& reader, const char* key,
                                 std::span<const NamedNumber> names);
// The numbers of the strings below `key`, or'ed.
uint64_t ReadFlags(base::JsonReader& reader, const char* key, std::span<const NamedNumber> names);
// Refuses (EOPNOTSUPP) what is there and not empty.
void Refuse(base::JsonReader& reader, std::initializer_list<const char*> keys);
// A list like "0-3,7", as in cpuset(7); empty if absent.
BitMask ReadBitList(base::JsonReader& reader, const char* key);

Process ReadProcess(base::JsonReader reader, Process process);
Resources ReadResources(base::JsonReader reader);
std::vector<IdMapping> ReadIdMappings(base::JsonReader& reader, const char* key);
void ReadLinux(base::JsonReader reader, Spec& spec);
// Only sysctls that belong to a namespace which the container has for itself: all others would change the
// whole VM.
void CheckSysctls(base::JsonReader& reader, Spec& spec);

}  // namespace gcs::engine
