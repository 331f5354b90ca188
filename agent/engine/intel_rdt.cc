// SPDX-License-Identifier: Apache-2.0
#include "engine/intel_rdt.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <vector>

#include "base/paths.h"
#include "engine/cgroup_files.h"

namespace gcs::engine {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

namespace {

constexpr std::string_view kPath = "linux.intelRdt";
constexpr const char* kMonitors = "mon_groups";

// "L3:0=7f0;1=1f" as numbers by their domain. Caches have bit masks, in hexadecimal digits; leading zeros
// don't count.
struct Schema {
  std::string resource;
  std::map<std::string, std::string> values;
};

std::string Trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return std::string(text.substr(first, text.find_last_not_of(" \t") - first + 1));
}

Schema ParseSchema(std::string_view line) {
  Schema schema;
  const size_t colon = std::min(line.find(':'), line.size());
  schema.resource = Trim(line.substr(0, colon));
  if (colon == line.size()) return schema;
  for (const std::string_view domain : Split(line.substr(colon + 1), ';')) {
    const size_t equals = domain.find('=');
    if (equals == std::string_view::npos) continue;
    std::string value = Trim(domain.substr(equals + 1));
    value.erase(0, std::min(value.find_first_not_of('0'), value.size()));
    std::ranges::transform(value, value.begin(), [](unsigned char c) { return std::tolower(c); });
    schema.values[Trim(domain.substr(0, equals))] = value;
  }
  return schema;
}

// Whether the group's schemata say all that `wanted` does.
bool Covers(const std::string& schemata, const std::string& wanted) {
  const Schema want = ParseSchema(wanted);
  for (const std::string_view line : Split(schemata, '\n')) {
    const Schema have = ParseSchema(line);
    if (have.resource != want.resource) continue;
    return !want.values.empty() && std::ranges::all_of(want.values, [&](const auto& value) {
      const auto found = have.values.find(value.first);
      return found != have.values.end() && found->second == value.second;
    });
  }
  return false;
}

// A write that fails is explained in there.
std::string LastStatus(int root) {
  std::string text = base::ReadFileAt(root, "info/last_cmd_status").value_or("");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text == "ok" ? "" : text;
}

// Names that are the file system's own.
bool Reserved(const std::string& name) {
  return name == "info" || name == kMonitors || name == "mon_data" || name == "." || name == "..";
}

}  // namespace

std::string FindResctrl(std::string_view mountinfo) {
  std::string found;
  for (const std::string_view line : Split(mountinfo, '\n')) {
    const size_t dash = line.find(" - ");
    if (dash == std::string_view::npos || !line.substr(dash + 3).starts_with("resctrl ")) continue;
    const std::vector<std::string_view> fields = Split(line.substr(0, dash), ' ');
    if (fields.size() < 5) continue;
    const std::string path(fields[4]);
    if (found.empty() || path == "/sys/fs/resctrl") found = path;
  }
  return found;
}

Result<std::shared_ptr<Resctrl>> Resctrl::Open(const std::string& path) {
  std::string root = path;
  if (root.empty()) {
    GCS_ASSIGN(const std::string mountinfo, base::ReadFile("/proc/self/mountinfo", 16 << 20));
    root = FindResctrl(mountinfo);
  }
  if (root.empty()) return MakeError(EOPNOTSUPP, "find resctrl", kPath, "no resctrl file system is mounted");
  GCS_ASSIGN(Fd fd, base::OpenFile(root, O_PATH | O_DIRECTORY));
  return std::make_shared<Resctrl>(std::move(fd));
}

Result<> Resctrl::MakeGroup(int parent, const std::string& name) {
  if (mkdirat(parent, name.c_str(), 0755) != 0) return ErrnoError("make resctrl group", name);
  return {};
}

Result<> Resctrl::EndGroup(int parent, const std::string& name) {
  if (unlinkat(parent, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
    return ErrnoError("remove resctrl group", name);
  }
  return {};
}

RdtGroup RdtGroup::Find(std::shared_ptr<Resctrl> resctrl, const IntelRdt& config,
                        const std::string& container_id, bool made) {
  RdtGroup group;
  group.resctrl_ = std::move(resctrl);
  group.own_ = config.clos_id.empty();
  group.group_ = group.own_ ? container_id : config.clos_id;
  if (group.group_ == "/") group.group_.clear();
  if (config.enable_monitoring) group.monitor_ = container_id;
  group.made_ = made || group.own_;
  return group;
}

Result<RdtGroup> RdtGroup::Create(std::shared_ptr<Resctrl> resctrl, const IntelRdt& config,
                                  const std::string& container_id) {
  RdtGroup group = Find(std::move(resctrl), config, container_id, false);
  if (Reserved(group.group_) || (config.enable_monitoring && Reserved(container_id))) {
    return MakeError(EINVAL, "make resctrl group", kPath, container_id + " is a name of resctrl's own");
  }
  if (auto prepared = group.Prepare(config); !prepared) {
    [[maybe_unused]] const auto removed = group.Remove();
    return std::unexpected(prepared.error());
  }
  return group;
}

Result<Fd> RdtGroup::OpenGroup() const {
  if (!group_.empty()) return base::OpenFileAt(resctrl_->root(), group_, O_PATH | O_DIRECTORY | O_NOFOLLOW);
  return base::OpenFileAt(resctrl_->root(), ".", O_PATH | O_DIRECTORY);
}

Result<> RdtGroup::Prepare(const IntelRdt& config) {
  const auto fail = [&](const base::Error& error, const char* key) {
    const std::string status = LastStatus(resctrl_->root());
    return MakeError(error.err, error.step, std::string(kPath) + key,
                     group_ + (status.empty() ? "" : ": " + status));
  };
  made_ = false;
  bool exists = true;
  if (!OpenGroup()) {
    if (!own_ && config.schemata.empty()) {
      return MakeError(ENOENT, "find resctrl group", "linux.intelRdt.closID",
                       group_ + " must exist if there are no schemata for it");
    }
    auto made = resctrl_->MakeGroup(resctrl_->root(), group_);
    // EEXIST: another container may make the same one.
    if (!made && (made.error().err != EEXIST || own_)) return fail(made.error(), ".closID");
    exists = !made;
    made_ = made.has_value();
  } else if (own_) {
    // Somebody else's: it must not be ended with the container.
    return MakeError(EEXIST, "make resctrl group", "linux.intelRdt.closID", group_);
  }
  GCS_ASSIGN(const Fd dir, OpenGroup());
  if (exists && !config.schemata.empty()) {
    GCS_ASSIGN(const std::string schemata, base::ReadFileAt(dir.get(), "schemata"));
    for (const std::string& line : config.schemata) {
      if (Covers(schemata, line)) continue;
      return MakeError(EINVAL, "use resctrl group", "linux.intelRdt.closID",
                       group_ + " exists with other schemata than " + line);
    }
  } else if (!config.schemata.empty()) {
    std::string text;
    for (const std::string& line : config.schemata) text += line + "\n";
    if (auto written = base::WriteFileAt(dir.get(), "schemata", text); !written) {
      return fail({"write schemata", written.error().err, {}, {}}, ".schemata");
    }
  }
  if (monitor_.empty()) return {};
  auto monitors = base::OpenFileAt(dir.get(), kMonitors, O_PATH | O_DIRECTORY);
  if (!monitors) {
    monitor_.clear();  // nothing to remove
    return fail(monitors.error(), ".enableMonitoring");
  }
  auto made = resctrl_->MakeGroup(monitors->get(), monitor_);
  if (!made && made.error().err != EEXIST) {
    monitor_.clear();
    return fail(made.error(), ".enableMonitoring");
  }
  return {};
}

Result<> RdtGroup::Enter(int pid) const {
  GCS_ASSIGN(const Fd dir, OpenGroup());
  const std::string number = std::to_string(pid);
  // The group before its monitoring group, which takes only who is in the group.
  std::vector<std::string> files{"tasks"};
  if (!monitor_.empty()) files.push_back(std::string(kMonitors) + "/" + monitor_ + "/tasks");
  for (const std::string& file : files) {
    if (auto entered = base::WriteFileAt(dir.get(), file, number); !entered) {
      return MakeError(entered.error().err, "enter resctrl group", kPath,
                       group_ + "/" + file + ": " + LastStatus(resctrl_->root()));
    }
  }
  return {};
}

Result<> RdtGroup::Remove() {
  const auto dir = OpenGroup();
  if (!dir) return dir.error().err == ENOENT ? Result<>() : std::unexpected(dir.error());
  if (!monitor_.empty()) {
    if (const auto monitors = base::OpenFileAt(dir->get(), kMonitors, O_PATH | O_DIRECTORY)) {
      GCS_TRY(resctrl_->EndGroup(monitors->get(), monitor_));
    }
  }
  if (!made_ || group_.empty()) return {};
  if (!own_) {
    // The kernel would put those who are in it into the root group.
    GCS_ASSIGN(const std::string tasks, base::ReadFileAt(dir->get(), "tasks"));
    if (!tasks.empty()) return {};
    const std::string path = "/proc/self/fd/" + std::to_string(dir->get()) + "/" + kMonitors;
    const auto others = base::ListDir(path);
    if (others && !others->empty()) return {};
  }
  return resctrl_->EndGroup(resctrl_->root(), group_);
}

}  // namespace gcs::engine
