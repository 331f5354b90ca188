// SPDX-License-Identifier: Apache-2.0
#include "init/modules.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <string_view>

#include "base/fd.h"
#include "base/paths.h"

namespace gcs::init {

namespace {

bool OnHyperV() {
  DIR* devices = opendir("/sys/bus/vmbus/devices");
  if (devices == nullptr) return false;
  bool any = false;
  while (const dirent* entry = readdir(devices)) any = any || entry->d_name[0] != '.';
  closedir(devices);
  return any;
}

base::Result<> LoadModule(const std::string& path) {
  GCS_ASSIGN(const base::Fd module, base::OpenFile(path, O_RDONLY));
  if (syscall(SYS_finit_module, module.get(), "", 0) != 0 && errno != EEXIST)
    return base::ErrnoError("finit_module", path);
  return {};
}

}  // namespace

base::Result<int> LoadModules(const std::string& base) {
  utsname name{};
  if (uname(&name) != 0) return base::ErrnoError("uname");
  const std::string directory = base + "/" + name.release + "/";
  const auto list = base::ReadFile(directory + "modules.load");
  if (!list && list.error().err == ENOENT) return 0;
  if (!list) return std::unexpected(list.error());
  if (OnHyperV()) return 0;

  int loaded = 0;
  std::string_view rest = *list;
  while (!rest.empty()) {
    const size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    if (!line.empty()) {
      GCS_TRY(LoadModule(directory + std::string(line)));
      ++loaded;
    }
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  }
  return loaded;
}

}  // namespace gcs::init
