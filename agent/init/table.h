// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <cstdint>
#include <span>

namespace gcs::init {

// What init sets up, as data. A row that is `fatal` ends the boot when it fails; the others are logged.
enum class OnFailure { kFatal, kLog, kIgnore };  // kIgnore: a kernel without the feature is fine

struct MountRow {
  const char* source;
  const char* target;
  const char* type;
  unsigned long flags;
  const char* data;
  mode_t make;  // mode of the directory to make first; 0: the image has it
  OnFailure on_failure;
};

struct DirectoryRow {
  const char* path;
  mode_t mode;
};

struct LinkRow {
  const char* path;
  const char* target;
  OnFailure on_failure;
};

struct LimitRow {
  __rlimit_resource_t resource;
  const char* name;
  rlim_t soft;
  rlim_t hard;
};

struct SettingRow {
  const char* path;  // a file of procfs or sysfs
  const char* value;
  OnFailure on_failure;
};

// Everything that differs between the utility VM and a test in private namespaces.
struct Table {
  const char* kernel_log;
  std::span<const MountRow> mounts;  // the first is /proc, which init reads its words from
  std::span<const DirectoryRow> directories;
  std::span<const LinkRow> links;
  std::span<const LimitRow> limits;
  std::span<const SettingRow> settings;
  const char* cgroup_root;    // mounted by a row above; nullptr: no cgroups
  uint64_t agent_memory_min;  // bytes
  const char* modules;        // directory of <release>/modules.load; nullptr: none
  const char* boot_record;    // file for the boot phases
  const char* agent;          // the default agent program
  int64_t teardown_ns;        // most time for sync and unmount at the end
  bool detach_devices;        // loop and device-mapper devices, which no namespace separates, at the end
};

extern const Table kUtilityVm;

}  // namespace gcs::init
