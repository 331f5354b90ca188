// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "support/temp.h"

// gcs-tools as a Windows host calls it: by the names of other programs.
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int code = -1;
  std::string output;  // both streams
};

class Tools {
 public:
  Tools() {
    for (const char* name : {"mkfs.ext4", "test", "ls"}) fs::create_symlink(GCS_TOOLS, dir / name);
  }
  Outcome Run(const std::string& command) const {
    FILE* pipe = popen(("cd '" + dir.path() + "' && " + command + " 2>&1").c_str(), "r");
    REQUIRE(pipe != nullptr);
    Outcome outcome;
    std::array<char, 4096> buffer;
    for (size_t n = 0; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
      outcome.output.append(buffer.data(), n);
    const int status = pclose(pipe);
    if (WIFEXITED(status)) outcome.code = WEXITSTATUS(status);
    return outcome;
  }

  gcs::test::TempDir dir;
};

TEST_CASE_FIXTURE(Tools, "the host's mkfs.ext4 command makes a clean file system without a word") {
  fs::create_directory(dir / "d");
  std::ofstream(dir / "disk") << "";
  fs::resize_file(dir / "disk", 300 << 20);
  const auto made =
      Run("./mkfs.ext4 -q -E lazy_itable_init=0,nodiscard -O ^has_journal,sparse_super2,^resize_inode disk");
  CHECK(made.output.empty());
  CHECK(made.code == 0);
  const auto checked = Run("e2fsck -fn disk");
  INFO(checked.output);
  CHECK(checked.code == 0);
  const auto features = Run("dumpe2fs -h disk");
  CHECK(features.output.find("sparse_super2") != std::string::npos);
  CHECK(features.output.find("has_journal") == std::string::npos);
  CHECK(features.output.find("resize_inode") == std::string::npos);
}

TEST_CASE_FIXTURE(Tools, "mkfs.ext4 refuses what it can't do instead of doing something else") {
  std::ofstream(dir / "disk") << "";
  fs::resize_file(dir / "disk", 8 << 20);
  for (const char* arguments :
       {"", "disk", "-O has_journal disk", "-O ^has_journal,quota disk", "-O ^has_journal -E stride=4 disk",
        "-O ^has_journal -b 1024 disk", "-O ^has_journal -L label disk", "-O ^has_journal disk 1000", "-O",
        "-O ^has_journal none", "-O ^has_journal /dev/null", "-O ^has_journal -m 5x disk"}) {
    CAPTURE(arguments);
    const auto outcome = Run(std::string("./mkfs.ext4 ") + arguments);
    CHECK(outcome.code == 1);
    CHECK(outcome.output.starts_with("mkfs.ext4: "));
  }
  CHECK(Run("cmp -n 8388608 disk /dev/zero").code == 0);
}

TEST_CASE_FIXTURE(Tools, "test tells directories from others") {
  fs::create_directories(dir / "sys/block");
  CHECK(Run("./test -d sys/block").code == 0);
  CHECK(Run("./test -d sys/none").code == 1);
  CHECK(Run("./test -d test").code == 1);
  CHECK(Run("./test -L test").code == 0);
  CHECK(Run("./test -f test").code == 0);
  CHECK(Run("./test -c /dev/null").code == 0);
  CHECK(Run("./test -d").code == 2);
  CHECK(Run("./test -z x").code == 2);
  CHECK(Run("./test -x test").code == 2);
}

TEST_CASE_FIXTURE(Tools, "ls prints bare names, one a line") {
  fs::create_directories(dir / "block/sda");
  CHECK(Run("./ls block").output == "sda\n");
  fs::create_directories(dir / "block/sdb");
  fs::create_directories(dir / "block/.hidden");
  CHECK(Run("./ls block").output == "sda\nsdb\n");
  CHECK(Run("./ls -1a -- block").output == ".\n..\n.hidden\nsda\nsdb\n");
  const auto missing = Run("./ls none");
  CHECK(missing.code == 2);
  CHECK(missing.output == "ls: none: No such file or directory\n");
  CHECK(Run("./ls -l block").code == 2);
}

TEST_CASE_FIXTURE(Tools, "a name that is no applet is an error that lists those there are") {
  const auto unknown = Run(std::string(GCS_TOOLS) + " mkfs.xfs /dev/sda");
  CHECK(unknown.code == 2);
  CHECK(unknown.output.find("mkfs.xfs") != std::string::npos);
  CHECK(unknown.output.find("mkfs.ext4") != std::string::npos);
  CHECK(Run(std::string(GCS_TOOLS)).code == 2);
  CHECK(Run(std::string(GCS_TOOLS) + " ls .").code == 0);
}

}  // namespace
