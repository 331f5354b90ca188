// SPDX-License-Identifier: Apache-2.0
#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tools/applets.h"

namespace gcs::tools {

namespace {

bool ListOne(const std::string& path, bool all) {
  struct stat st;
  if (stat(path.c_str(), &st) != 0) {
    Complain("ls", path + ": " + strerrordesc_np(errno));
    return false;
  }
  if (!S_ISDIR(st.st_mode)) {
    puts(path.c_str());
    return true;
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(path.c_str()), closedir);
  if (!dir) {
    Complain("ls", path + ": " + strerrordesc_np(errno));
    return false;
  }
  std::vector<std::string> names;
  errno = 0;
  for (const dirent* entry = readdir(dir.get()); entry != nullptr; entry = readdir(dir.get())) {
    if (all || entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  if (errno != 0) {
    Complain("ls", path + ": " + strerrordesc_np(errno));
    return false;
  }
  std::ranges::sort(names);
  for (const auto& name : names) puts(name.c_str());
  return true;
}

}  // namespace

// ls [-1] [-a] [PATH...]: names, one a line, sorted by byte: what coreutils prints to a pipe in the C locale.
int Ls(Arguments arguments) {
  constexpr int kTrouble = 2;
  bool all = false;
  bool options = true;
  std::vector<std::string> paths;
  for (const auto& word : arguments) {
    if (options && word == "--") {
      options = false;
    } else if (options && word.size() > 1 && word[0] == '-') {
      if (word.find_first_not_of("1a", 1) != std::string::npos) {
        Complain("ls", "unknown option " + word + "; there are -1 and -a");
        return kTrouble;
      }
      all |= word.find('a') != std::string::npos;
    } else {
      paths.push_back(word);
    }
  }
  if (paths.empty()) paths.emplace_back(".");
  bool good = true;
  for (size_t i = 0; i < paths.size(); ++i) {
    if (paths.size() > 1) printf("%s%s:\n", i == 0 ? "" : "\n", paths[i].c_str());
    good = ListOne(paths[i], all) && good;
  }
  return fflush(stdout) == 0 && good ? 0 : kTrouble;
}

}  // namespace gcs::tools
