// SPDX-License-Identifier: Apache-2.0
// Texts of /proc: any bytes are read without fault, and a name or path of any bytes is read back from what
// the kernel makes of it.
#include <cstdio>
#include <string>

#include "base/procfs.h"
#include "fuzz/require.h"

namespace {

using namespace gcs::base;

// As show_mountinfo of fs/proc_namespace.c writes a path.
std::string Escape(std::string_view path) {
  std::string out;
  for (const char c : path) {
    char octal[8];
    snprintf(octal, sizeof octal, "\\%03o", static_cast<unsigned char>(c));
    if (c == ' ' || c == '\t' || c == '\n' || c == '\\') {
      out += octal;
    } else {
      out += c;
    }
  }
  return out;
}

void CheckMount(std::string_view bytes) {
  const std::string target = "/" + std::string(bytes.substr(0, bytes.find('\0')));
  const std::string odd = Escape(target);
  // The root, the source and an option have the same bytes; the source may be empty, too.
  const std::string line = "7 3 0:1 " + odd + " " + odd + " rw shared:1 - tmpfs " +
                           (bytes.size() % 2 != 0 ? odd : "") + " rw," + odd;
  const auto mounts = ParseMountInfo("1 0 0:1 / / rw - rootfs rootfs rw\n" + line + "\nnone\n");
  REQUIRE(mounts.size() == 2);
  REQUIRE(mounts[1].id == 7 && mounts[1].parent == 3 && mounts[1].target == target &&
          mounts[1].type == "tmpfs");
  REQUIRE(mounts[1].options == "rw," + odd);
}

void CheckStat(std::string_view bytes) {
  // The kernel cuts a name at 15 bytes and escapes nothing in it.
  const std::string name(bytes.substr(0, 15));
  const std::string text = "42 (" + name + ") S 1 2 3 4 5 6 7 8 9 10 11 12 -13 -14 -15 -16 17 18 19 20\n";
  const auto stat = ParseProcessStat(text);
  REQUIRE(stat && stat->state == 'S' && stat->user_ticks == 11 && stat->system_ticks == 12 &&
          stat->start_ticks == 19);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const MountInfo& mount : ParseMountInfo(text))
    REQUIRE(mount.target.starts_with('/') && !mount.type.empty());
  (void)ParseProcessStat(text);
  (void)ParseStatusNumber(text, "Uid");
  const std::string_view cgroup = ParseUnifiedCgroup(text);
  REQUIRE(cgroup.find('\n') == std::string_view::npos);
  CheckMount(text);
  CheckStat(text);
  return 0;
}
