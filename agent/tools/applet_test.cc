// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>
#include <unistd.h>

#include "tools/applets.h"

namespace gcs::tools {

namespace {
constexpr int kTrue = 0;
constexpr int kFalse = 1;
constexpr int kError = 2;
}  // namespace

// test -X FILE, the file tests of POSIX test(1) that need no user database.
int Test(Arguments arguments) {
  if (arguments.size() != 2 || arguments[0].size() != 2 || arguments[0][0] != '-') {
    Complain("test", "only \"test -X FILE\" is built, with X one of b c d e f L s");
    return kError;
  }
  const char kind = arguments[0][1];
  const std::string& path = arguments[1];
  struct stat st;
  const bool link = kind == 'L' || kind == 'h';
  if (std::string_view("bcdefhLs").find(kind) == std::string_view::npos) {
    Complain("test", "unknown test " + arguments[0]);
    return kError;
  }
  if ((link ? lstat(path.c_str(), &st) : stat(path.c_str(), &st)) != 0) return kFalse;
  switch (kind) {
    case 'b':
      return S_ISBLK(st.st_mode) ? kTrue : kFalse;
    case 'c':
      return S_ISCHR(st.st_mode) ? kTrue : kFalse;
    case 'd':
      return S_ISDIR(st.st_mode) ? kTrue : kFalse;
    case 'e':
      return kTrue;
    case 'f':
      return S_ISREG(st.st_mode) ? kTrue : kFalse;
    case 'h':
    case 'L':
      return S_ISLNK(st.st_mode) ? kTrue : kFalse;
    default:  // 's': the list above has no other
      return st.st_size > 0 ? kTrue : kFalse;
  }
}

}  // namespace gcs::tools
