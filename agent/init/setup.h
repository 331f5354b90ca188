// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "base/error.h"
#include "init/table.h"

namespace gcs::init {

// The rows of a table, applied. An error is that of the first fatal row; everything else is logged.
base::Result<> ApplyMounts(std::span<const MountRow> rows);
base::Result<> ApplyDirectories(std::span<const DirectoryRow> rows);
base::Result<> ApplyLinks(std::span<const LinkRow> rows);
void ApplyLimits(std::span<const LimitRow> rows);
base::Result<> ApplySettings(std::span<const SettingRow> rows);

// The kernel must not choose init or, by inheritance, the agent when memory runs out.
void ProtectFromOom();
base::Result<> SetHostname(const std::string& name);
base::Result<> BringUpLoopback();

// Where the root is the initramfs (anything in memory, that is), puts a second mount of it on top, so that
// pivot_root(2) works as on any root. Before all other mounts: what is there already stays below.
base::Result<> LeaveInitramfsRoot();
// Makes the root's file system read-only for every mount of it: no process of a container that gets hold of
// /proc/PID/exe of the agent can write to it (CVE-2019-5736), and nothing can fill the guest's memory through
// it.
base::Result<> SealRoot();

}  // namespace gcs::init
