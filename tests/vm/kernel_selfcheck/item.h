// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::selfcheck {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

// On which of the two machines (selfcheck.machine= on the command line) an item makes sense.
enum class Where { kBoth, kMicrovm, kQ35 };

// One promise about the kernel. It runs as root in a process and mount namespace of its own with / private,
// and may leave mounts and descriptors behind, but neither cgroups, devices nor processes.
struct Item {
  const char* name;
  std::function<Result<>()> run;
  Where where = Where::kBoth;
};

std::span<const Item> NamespaceItems();
std::span<const Item> CgroupItems();
std::span<const Item> FilesystemItems();
std::span<const Item> BlockItems();
std::span<const Item> CryptoItems();
std::span<const Item> VsockItems();
std::span<const Item> NetworkItems();
std::span<const Item> SyscallItems();
std::span<const Item> HardeningItems();
std::span<const Item> MachineItems();

// Runs fn in a forked child and gives its result; a child that dies or takes longer than timeout_ms is an
// error, and is killed. Errors of the child come back whole.
Result<> InChild(const std::function<Result<>()>& fn, int timeout_ms = 10000);

// InChild with uid, gid 1000 and no groups or capabilities.
Result<> AsUser(const std::function<Result<>()>& fn);

// The whole of a file of procfs or the like.
Result<std::string> ReadFile(const std::string& path);
Result<> WriteFile(const std::string& path, std::string_view data);

// Calls probe until it succeeds or timeout_ms have passed; then its last error.
Result<> Eventually(const std::function<Result<>()>& probe, int timeout_ms = 5000);

// Mounts a tmpfs over /tmp, which thereby belongs to the calling item.
Result<> FreshTmp();

// The act must fail with `expected`: value is its return value, errno is read. Success or another errno is
// the error.
Result<> MustFail(long value, int expected, std::string_view step, std::string_view object = {});

// value if the words of text contain word.
bool HasWord(const std::string& text, std::string_view word);

}  // namespace gcs::selfcheck
