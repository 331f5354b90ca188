// SPDX-License-Identifier: Apache-2.0
#include "engine/cgroup.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>

#include "base/paths.h"
#include "engine/cgroup_open.h"

namespace gcs::engine {

namespace {

// Everything that may stand among a v1 mount's options: what is not one of these is an option of the mount.
constexpr std::array<std::string_view, 14> kControllersV1{
    "cpu",   "cpuacct", "cpuset",  "memory",   "devices",    "freezer", "pids",
    "blkio", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma",    "misc"};

// Undoes the octal escapes of mountinfo.
std::string Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

std::vector<CgroupHierarchy> ParseHierarchies(const std::string& mountinfo, const std::string& mount_point) {
  std::vector<CgroupHierarchy> found;
  for (const std::string_view line : Split(mountinfo, '\n')) {
    // "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu", see
    // proc_pid_mountinfo(5).
    const auto words = Split(line, ' ');
    const auto dash = std::ranges::find(words, "-");
    if (words.size() < 5 || words.end() - dash < 4) continue;
    const bool v1 = dash[1] == "cgroup";
    if (!v1 && dash[1] != "cgroup2") continue;
    CgroupHierarchy hierarchy{
        .name = {}, .mount_point = Unescape(words[4]), .controllers = {}, .unified = !v1};
    if (!hierarchy.mount_point.starts_with(mount_point + "/")) continue;
    hierarchy.name = hierarchy.mount_point.substr(mount_point.size() + 1);
    if (hierarchy.name.empty() || hierarchy.name.find('/') != std::string::npos) continue;
    if (v1) {
      for (const std::string_view option : Split(dash[3], ',')) {
        const bool named = option.starts_with("name=");
        if (named || std::ranges::find(kControllersV1, option) != kControllersV1.end()) {
          hierarchy.controllers.emplace_back(option);
        }
      }
    }
    // The last mount at a place is the one that is seen.
    std::erase_if(found, [&](const CgroupHierarchy& h) { return h.name == hierarchy.name; });
    found.push_back(std::move(hierarchy));
  }
  return found;
}

base::Result<std::unique_ptr<CgroupRoot>> CgroupRoot::Open(const std::string& mount_point) {
  GCS_ASSIGN(base::Fd fd, base::OpenFile(mount_point, O_RDONLY | O_DIRECTORY));
  struct statfs fs;
  if (fstatfs(fd.get(), &fs) != 0) return base::ErrnoError("fstatfs", mount_point);
  if (fs.f_type == CGROUP2_SUPER_MAGIC) return OpenCgroupV2(std::move(fd));
  GCS_ASSIGN(const std::string mountinfo, base::ReadFile("/proc/self/mountinfo", 16 << 20));
  std::vector<CgroupHierarchy> hierarchies = ParseHierarchies(mountinfo, mount_point);
  const bool any = std::ranges::any_of(hierarchies, [](const CgroupHierarchy& h) { return !h.unified; });
  if (!any) return base::MakeError(EINVAL, "open cgroup root", mount_point, "has neither cgroup v2 nor v1");
  return OpenCgroupV1(std::move(hierarchies));
}

}  // namespace gcs::engine
