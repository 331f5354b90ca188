// SPDX-License-Identifier: Apache-2.0
//
// One program under several names: what a Windows host (hcsshim) runs in the utility VM by name, where an
// image with a distribution would have e2fsprogs and coreutils; and the first process of a pod.
#include <array>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "tools/applets.h"

namespace gcs::tools {

namespace {

constexpr int kUsage = 2;

struct Applet {
  std::string_view name;
  int (*run)(Arguments);
};
constexpr std::array kApplets{
    Applet{"ls", Ls},       Applet{"mke2fs", MkfsExt4}, Applet{"mkfs.ext4", MkfsExt4},
    Applet{"pause", Pause}, Applet{"test", Test},
};

const Applet* Find(std::string_view name) {
  for (const auto& applet : kApplets) {
    if (applet.name == name) return &applet;
  }
  return nullptr;
}

std::string_view BaseName(std::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

// `words` as main got them: the name comes first, or follows the program's own.
int Main(const std::vector<std::string>& words) {
  size_t at = 0;
  const Applet* applet = words.empty() ? nullptr : Find(BaseName(words[0]));
  if (applet == nullptr && words.size() > 1) applet = Find(words[at = 1]);
  if (applet != nullptr) return applet->run(Arguments(words).subspan(at + 1));
  std::string text = words.size() > 1 ? "no applet \"" + words[1] + "\"; there are:"
                                      : "use: gcs-tools APPLET [ARGS]; there are:";
  for (const auto& known : kApplets) text += " " + std::string(known.name);
  Complain("gcs-tools", text);
  return kUsage;
}

}  // namespace

void Complain(std::string_view applet, std::string_view text) {
  fprintf(stderr, "%.*s: %.*s\n", static_cast<int>(applet.size()), applet.data(),
          static_cast<int>(text.size()), text.data());
}

}  // namespace gcs::tools

int main(int argc, char** argv) { return gcs::tools::Main({argv, argv + argc}); }
