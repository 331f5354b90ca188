// SPDX-License-Identifier: Apache-2.0
#include "engine/cgroup_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "base/fd.h"
#include "base/paths.h"

namespace gcs::engine {

using base::Fd;
using base::Result;

namespace {

struct OldValue {
  int dir;
  std::string file;
  std::string text;
};

// Writes the first choice whose file is there. The errno; ENOENT: none is.
int WriteChoice(const CgroupWrite& write, bool restore, std::vector<OldValue>& old, std::string& file) {
  for (const auto& choice : write.setting.choices) {
    file = choice.file;
    const std::string path = write.prefix + choice.file;
    std::string before;
    if (restore || choice.value.starts_with("-")) {
      auto text = base::ReadFileAt(write.dir, path);
      if (!text && text.error().err == ENOENT) continue;
      before = text.value_or("");
    }
    std::string value = choice.value;
    if (choice.file == "cpu.max" && value.starts_with("-")) {
      value = before.substr(0, before.find(' ')) + value.substr(1);
    }
    const auto written = base::WriteFileAt(write.dir, path, value);
    if (written) {
      if (restore) old.push_back({write.dir, path, std::move(before)});
      return 0;
    }
    if (written.error().err != ENOENT) return written.error().err;
  }
  return ENOENT;
}

// Best effort: the error that led here is the one to tell. Files with one line per device take them one by
// one.
void WriteBack(const std::vector<OldValue>& old) {
  for (auto it = old.rbegin(); it != old.rend(); ++it) {
    for (const std::string_view line : Split(it->text, '\n')) {
      [[maybe_unused]] const auto written = base::WriteFileAt(it->dir, it->file, line);
    }
  }
}

}  // namespace

KeyedValues ReadKeyed(int dir, const char* name) {
  const auto text = base::ReadFileAt(dir, name);
  return text ? ParseKeyed(*text) : KeyedValues();
}

uint64_t ReadNumber(int dir, const char* name) {
  const auto text = base::ReadFileAt(dir, name);
  return text ? ParseNumber(*text) : 0;
}

Result<> WriteSettings(std::vector<CgroupWrite> writes, bool restore) {
  std::vector<OldValue> old;
  while (!writes.empty()) {
    std::vector<CgroupWrite> refused;
    std::optional<base::Error> error;
    for (CgroupWrite& write : writes) {
      std::string file;
      const int err = WriteChoice(write, restore, old, file);
      if (err == 0 || (err == ENOENT && write.setting.optional)) continue;
      const std::string object = write.where + "/" + file;
      if (!error) {
        error = err == ENOENT
                    ? base::Error{"set limit", EOPNOTSUPP, object, "the controller is not available"}
                    : base::Error{"set limit", err, object, {}};
      }
      if (err != EINVAL && err != EBUSY) {
        WriteBack(old);
        return std::unexpected(*error);
      }
      refused.push_back(std::move(write));
    }
    if (error && refused.size() == writes.size()) {
      WriteBack(old);
      return std::unexpected(*error);
    }
    writes = std::move(refused);
  }
  return {};
}

Result<> CollectPids(int dir, int depth, std::vector<int>& pids) {
  const auto procs = base::ReadFileAt(dir, "cgroup.procs", 16 << 20);
  if (!procs) {
    // A cgroup that is removed meanwhile has nobody in it; a threaded one (EOPNOTSUPP) shows its processes
    // further up.
    const int err = procs.error().err;
    if (err == ENOENT || err == ENODEV || err == EOPNOTSUPP) return {};
    return std::unexpected(procs.error());
  }
  const std::vector<int> found = ParsePids(*procs);
  pids.insert(pids.end(), found.begin(), found.end());
  if (depth == 0) return {};
  const int copy = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* entries = copy < 0 ? nullptr : fdopendir(copy);
  if (entries == nullptr) {
    const int err = errno;
    if (copy >= 0) close(copy);
    if (err == ENOENT) return {};
    return base::MakeError(err, "list cgroup");
  }
  Result<> done;
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(entries);
    if (entry == nullptr && errno != 0 && errno != ENOENT) done = base::ErrnoError("list cgroup");
    if (entry == nullptr) break;
    if (entry->d_type != DT_DIR || entry->d_name[0] == '.') continue;
    const auto child = base::OpenFileAt(dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (child) {
      done = CollectPids(child->get(), depth - 1, pids);
    } else if (child.error().err != ENOENT) {
      done = std::unexpected(child.error());
    }
    if (!done) break;
  }
  closedir(entries);
  return done;
}

namespace {

// kernfs keeps such attributes for both versions; only a privileged process outside of user namespaces can
// set them.
constexpr char kMadeMark[] = "trusted.gcs.made";

}  // namespace

void MarkMade(int dir) { [[maybe_unused]] const int rc = fsetxattr(dir, kMadeMark, "1", 1, 0); }

std::vector<std::string> MarkedParents(int root, const std::string& path) {
  std::vector<std::string> marked;
  for (size_t end = path.rfind('/'); end != std::string::npos && end > 0; end = path.rfind('/', end - 1)) {
    const std::string parent = path.substr(0, end);
    const auto dir = base::OpenFileAt(root, parent, O_RDONLY | O_DIRECTORY);
    if (!dir || fgetxattr(dir->get(), kMadeMark, nullptr, 0) < 0) break;
    marked.insert(marked.begin(), parent);
  }
  return marked;
}

int RemoveTree(int dir, const char* name, int depth) {
  if (unlinkat(dir, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
  if (errno != EBUSY || depth == 0) return errno;
  const Fd self(openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!self.valid()) return errno;
  const int copy = openat(self.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* entries = copy < 0 ? nullptr : fdopendir(copy);
  if (entries == nullptr) {
    if (copy >= 0) close(copy);
    return EBUSY;
  }
  while (const dirent* entry = readdir(entries)) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') RemoveTree(self.get(), entry->d_name, depth - 1);
  }
  closedir(entries);
  return unlinkat(dir, name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : errno;
}

}  // namespace gcs::engine
