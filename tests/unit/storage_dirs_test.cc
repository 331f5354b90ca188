// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "storage/mount_dirs.h"
#include "support/temp.h"

namespace gcs::storage {
namespace {

namespace fs = std::filesystem;

TEST_CASE("a target below a root is made with its parents, and both go again") {
  const test::TempDir root;
  MountDirs dirs({root.path()});
  REQUIRE(dirs.Make(root / "a/b/c"));
  struct stat st;
  REQUIRE(stat((root / "a/b/c").c_str(), &st) == 0);
  CHECK((st.st_mode & 07777) == 0755);
  dirs.Remove(root / "a/b/c");
  CHECK_FALSE(fs::exists(root / "a"));
  CHECK(fs::exists(root.path()));
}

TEST_CASE("a parent stays while another target needs it and goes with the last") {
  const test::TempDir root;
  MountDirs dirs({root.path()});
  REQUIRE(dirs.Make(root / "a/one"));
  REQUIRE(dirs.Make(root / "a/two"));
  dirs.Remove(root / "a/one");
  CHECK(fs::exists(root / "a/two"));
  dirs.Remove(root / "a/two");
  CHECK_FALSE(fs::exists(root / "a"));
}

TEST_CASE("directories that were there before stay") {
  const test::TempDir root;
  fs::create_directories(root / "kept/target");
  MountDirs dirs({root.path()});
  REQUIRE(dirs.Make(root / "kept/target"));
  REQUIRE(dirs.Make(root / "kept/new"));
  dirs.Remove(root / "kept/target");
  dirs.Remove(root / "kept/new");
  CHECK(fs::exists(root / "kept/target"));
  CHECK_FALSE(fs::exists(root / "kept/new"));
}

TEST_CASE("a symbolic link or a file in the way is refused, and what was made before it is removed") {
  const test::TempDir root;
  const test::TempDir outside;
  fs::create_directory_symlink(outside.path(), root / "link");
  fs::create_directory(root / "real");
  fs::create_directory_symlink("real", root / "inner");
  std::ofstream(root / "file") << "x";
  MountDirs dirs({root.path()});
  for (const char* path : {"link", "link/x", "inner/x", "file", "file/x"}) {
    CAPTURE(path);
    const auto made = dirs.Make(root / path);
    REQUIRE_FALSE(made);
    CHECK((made.error().err == ELOOP || made.error().err == ENOTDIR));
  }
  CHECK(fs::is_empty(outside.path()));
  CHECK(fs::is_empty(root / "real"));
}

TEST_CASE("targets that are not plainly below a root are refused") {
  const test::TempDir root;
  const MountDirs dirs({root.path(), "/run/other"});
  CHECK(dirs.Check(root / "x"));
  CHECK(dirs.Check("/run/other/x"));
  for (const std::string& path :
       {std::string(), std::string("x"), root.path(), root.path() + "x/y", root.path() + "/", root / "a//b",
        root / "./a", root / "a/..", root / "../x", std::string("/"), std::string("/etc"),
        root / std::string("a\0b", 3), root / std::string(256, 'n'), root / std::string(5000, '/')}) {
    CAPTURE(path);
    CHECK_FALSE(dirs.Check(path));
  }
}

TEST_CASE("a tree is removed without following its links") {
  const test::TempDir root;
  const test::TempDir outside;
  std::ofstream(outside / "keep") << "x";
  fs::create_directories(root / "tree/a/b");
  std::ofstream(root / "tree/a/file") << "x";
  fs::create_directory_symlink(outside.path(), root / "tree/a/link");
  fs::create_directory_symlink(outside.path(), root / "top");
  const base::Fd dir(open(root.path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  REQUIRE(RemoveTree(dir.get(), "tree"));
  CHECK_FALSE(fs::exists(root / "tree"));
  CHECK_FALSE(RemoveTree(dir.get(), "top"));
  CHECK(fs::exists(outside / "keep"));
  CHECK(RemoveTree(dir.get(), "never-was"));
}

TEST_CASE("directories made for a failed operation are taken back, others stay") {
  const test::TempDir root;
  fs::create_directories(root / "old");
  const base::Fd dir(open(root.path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  bool made = false;
  {
    MadeDirs failed;
    REQUIRE(failed.OpenOrMake(dir.get(), "old", 0755, &made));
    CHECK_FALSE(made);
    const auto fresh = failed.OpenOrMake(dir.get(), "fresh", 0700, &made);
    REQUIRE(fresh);
    CHECK(made);
    REQUIRE(failed.OpenOrMake(fresh->get(), "inner", 0700, &made));
  }
  CHECK(fs::exists(root / "old"));
  CHECK_FALSE(fs::exists(root / "fresh"));
  {
    MadeDirs kept;
    REQUIRE(kept.OpenOrMake(dir.get(), "fresh", 0711, &made));
    kept.Keep();
  }
  struct stat st;
  REQUIRE(stat((root / "fresh").c_str(), &st) == 0);
  CHECK((st.st_mode & 07777) == 0711);
}

}  // namespace
}  // namespace gcs::storage
