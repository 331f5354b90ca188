// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "base/fd.h"
#include "base/paths.h"
#include "support/temp.h"

namespace gcs::base {
namespace {

namespace fs = std::filesystem;

// A root that belongs to a container, beside a directory of the host that nothing may reach.
class Tree {
 public:
  Tree() {
    REQUIRE(mkdir((temp_ / "root").c_str(), 0755) == 0);
    REQUIRE(mkdir((temp_ / "host").c_str(), 0755) == 0);
    std::ofstream(temp_ / "host/secret") << "host";
    root_.Reset(open((temp_ / "root").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    REQUIRE(root_.valid());
  }
  [[nodiscard]] int root() const { return root_.get(); }
  [[nodiscard]] std::string In(const std::string& name) const { return temp_ / ("root/" + name); }
  [[nodiscard]] std::string Host(const std::string& name) const { return temp_ / ("host/" + name); }
  void Link(const std::string& target, const std::string& name) const {
    REQUIRE(symlink(target.c_str(), In(name).c_str()) == 0);
  }
  void Dir(const std::string& name) const { fs::create_directories(In(name)); }
  void File(const std::string& name, const std::string& content) const { std::ofstream(In(name)) << content; }
  // What the host's directory holds: the one file of the constructor unless somebody broke out.
  [[nodiscard]] size_t HostEntries() const {
    size_t n = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(temp_ / "host")) ++n;
    return n;
  }

 private:
  test::TempDir temp_;
  Fd root_;
};

std::string PathOf(int fd) { return fs::read_symlink("/proc/self/fd/" + std::to_string(fd)); }

std::string Content(int fd) {
  const auto content = ReadFd(fd, "test", 1000);
  REQUIRE(content.has_value());
  return *content;
}

TEST_CASE("absolute links, dot-dot and links of links resolve inside the root") {
  const Tree tree;
  tree.Dir("etc");
  tree.File("etc/passwd", "inside");
  tree.Link("/etc", "abs");
  tree.Link("../../../../../../etc", "up");
  tree.Link("abs", "again");
  for (const char* path : {"etc/passwd", "/etc/passwd", "///etc//passwd", "abs/passwd", "up/passwd",
                           "again/passwd", "../../../etc/passwd", "/abs/../../../etc/passwd"}) {
    CAPTURE(std::string(path));
    const Fd fd(OpenInRoot(tree.root(), path, O_RDONLY));
    REQUIRE(fd.get() >= 0);
    CHECK(Content(fd.get()) == "inside");
  }
}

TEST_CASE("no path leaves the root") {
  const Tree tree;
  tree.Link(tree.Host("secret"), "secret");
  tree.Link("../host", "up");
  tree.Link("/proc/self/root" + tree.Host("secret"), "magic");
  for (const char* path : {"secret", "up/secret", "../host/secret", "/../host/secret", "magic"}) {
    CAPTURE(std::string(path));
    CHECK(OpenInRoot(tree.root(), path, O_RDONLY) == -ENOENT);
  }
}

TEST_CASE("magic links of procfs are refused") {
  const Fd proc(open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  REQUIRE(proc.valid());
  CHECK(OpenInRoot(proc.get(), "self/root/etc", O_PATH) == -ELOOP);
  CHECK(OpenInRoot(proc.get(), "self/exe", O_RDONLY) == -ELOOP);
  const Fd plain(OpenInRoot(proc.get(), "self/status", O_RDONLY));
  CHECK(plain.get() >= 0);
}

TEST_CASE("the root itself is /, the empty path and dot") {
  const Tree tree;
  for (const char* path : {"", "/", "//", ".", "..", "./..", "/."}) {
    CAPTURE(std::string(path));
    const Fd fd(OpenInRoot(tree.root(), path, O_PATH | O_DIRECTORY));
    REQUIRE(fd.get() >= 0);
    CHECK(PathOf(fd.get()) == PathOf(tree.root()));
  }
}

TEST_CASE("a loop of links is ELOOP, not a hang") {
  const Tree tree;
  tree.Link("b", "a");
  tree.Link("a", "b");
  CHECK(OpenInRoot(tree.root(), "a", O_PATH | O_DIRECTORY) == -ELOOP);
  CHECK(MkdirAllInRoot(tree.root(), "a/x", 0755) == -ELOOP);
  CHECK(CreateFileInRoot(tree.root(), "a/x", 0644) == -ELOOP);
}

TEST_CASE("directories are made along links that stay inside") {
  const Tree tree;
  tree.Dir("real");
  tree.Link("/real", "link");
  const Fd fd(MkdirAllInRoot(tree.root(), "/link/a/b/c", 0755));
  REQUIRE(fd.get() >= 0);
  CHECK(PathOf(fd.get()) == tree.In("real/a/b/c"));
  const Fd again(MkdirAllInRoot(tree.root(), "/link/a/b/c", 0755));
  REQUIRE(again.get() >= 0);
  CHECK(PathOf(again.get()) == tree.In("real/a/b/c"));
}

TEST_CASE("new directories get the mode asked for") {
  const Tree tree;
  const mode_t before = umask(0);
  const Fd fd(MkdirAllInRoot(tree.root(), "a/b", 0750));
  umask(before);
  REQUIRE(fd.get() >= 0);
  struct stat st{};
  REQUIRE(stat(tree.In("a").c_str(), &st) == 0);
  CHECK((st.st_mode & 07777) == 0750);
}

TEST_CASE("nothing is made outside through links that point there") {
  const Tree tree;
  tree.Link("../host", "up");
  tree.Link(tree.Host("new"), "abs");
  // Inside the root the links dangle; what they point at is made there, as it is for /var/lock -> /run/lock
  // or /etc/resolv.conf -> ../run/resolv.conf of an image.
  const Fd up(MkdirAllInRoot(tree.root(), "up/x", 0755));
  REQUIRE(up.get() >= 0);
  CHECK(PathOf(up.get()) == tree.In("host/x"));
  const Fd file(CreateFileInRoot(tree.root(), "up/y", 0644));
  REQUIRE(file.get() >= 0);
  CHECK(PathOf(file.get()) == tree.In("host/y"));
  const Fd leaf(CreateFileInRoot(tree.root(), "abs", 0644));
  REQUIRE(leaf.get() >= 0);
  CHECK(PathOf(leaf.get()) == tree.In("") + tree.Host("new").substr(1));
  tree.Link("loop2", "loop1");
  tree.Link("loop1", "loop2");
  CHECK(MkdirAllInRoot(tree.root(), "loop1/x", 0755) == -ELOOP);
  CHECK(CreateFileInRoot(tree.root(), "loop1", 0644) == -ELOOP);
  const Fd fd(MkdirAllInRoot(tree.root(), "../host/x", 0755));
  REQUIRE(fd.get() >= 0);
  CHECK(PathOf(fd.get()) == tree.In("host/x"));
  CHECK(tree.HostEntries() == 1);
}

TEST_CASE("dot-dot below a directory that was just made is refused") {
  const Tree tree;
  CHECK(MkdirAllInRoot(tree.root(), "new/../other", 0755) == -EINVAL);
  CHECK(!fs::exists(tree.In("other")));
}

TEST_CASE("a file in the middle of a path is ENOTDIR") {
  const Tree tree;
  tree.File("file", "x");
  CHECK(MkdirAllInRoot(tree.root(), "file/a", 0755) == -ENOTDIR);
  CHECK(MkdirAllInRoot(tree.root(), "file", 0755) == -ENOTDIR);
  CHECK(CreateFileInRoot(tree.root(), "file/a", 0644) == -ENOTDIR);
}

TEST_CASE("paths and names that are too long are refused") {
  const Tree tree;
  const std::string name(NAME_MAX + 1, 'n');
  std::string path;
  while (path.size() < PATH_MAX) path += "/d";
  char leaf[NAME_MAX + 1];
  CHECK(MkdirAllInRoot(tree.root(), path.c_str(), 0755) == -ENAMETOOLONG);
  CHECK(MkdirAllInRoot(tree.root(), name.c_str(), 0755) == -ENAMETOOLONG);
  CHECK(OpenParentInRoot(tree.root(), name.c_str(), 0, leaf) == -ENAMETOOLONG);
  CHECK(OpenParentInRoot(tree.root(), path.c_str(), 0755, leaf) == -ENAMETOOLONG);
}

TEST_CASE("a parent and its leaf are told apart, links of the parent followed") {
  const Tree tree;
  tree.Dir("dir");
  tree.Link("/dir", "link");
  char leaf[NAME_MAX + 1];
  const Fd parent(OpenParentInRoot(tree.root(), "/link/name//", 0, leaf));
  REQUIRE(parent.get() >= 0);
  CHECK(std::string(leaf) == "name");
  CHECK(PathOf(parent.get()) == tree.In("dir"));
  const Fd top(OpenParentInRoot(tree.root(), "name", 0, leaf));
  REQUIRE(top.get() >= 0);
  CHECK(PathOf(top.get()) == PathOf(tree.root()));
  CHECK(OpenParentInRoot(tree.root(), "none/name", 0, leaf) == -ENOENT);
  const Fd made(OpenParentInRoot(tree.root(), "none/name", 0755, leaf));
  CHECK(made.get() >= 0);
  for (const char* path : {"", "/", ".", "..", "a/..", "a/."}) {
    CAPTURE(std::string(path));
    CHECK(OpenParentInRoot(tree.root(), path, 0, leaf) == -EINVAL);
  }
}

TEST_CASE("a file is made with its parents and an existing one is kept") {
  const Tree tree;
  const Fd made(CreateFileInRoot(tree.root(), "a/b/file", 0640));
  REQUIRE(made.get() >= 0);
  struct stat st{};
  REQUIRE(stat(tree.In("a/b/file").c_str(), &st) == 0);
  CHECK(S_ISREG(st.st_mode));
  tree.File("kept", "content");
  const Fd kept(CreateFileInRoot(tree.root(), "kept", 0644));
  REQUIRE(kept.get() >= 0);
  CHECK(fs::file_size(tree.In("kept")) == 7);
  tree.Dir("dir");
  CHECK(CreateFileInRoot(tree.root(), "dir", 0644) == -EISDIR);
  CHECK(CreateFileInRoot(tree.root(), "/", 0644) == -EISDIR);
}

TEST_CASE("a root that swaps a directory for a link while we work in it never lets us out") {
  const Tree tree;
  tree.Dir("swap");
  tree.Link(tree.Host(""), "evil");
  std::atomic<bool> stop = false;
  std::jthread attacker([&] {
    const std::string one = tree.In("swap");
    const std::string two = tree.In("evil");
    while (!stop) renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, two.c_str(), RENAME_EXCHANGE);
  });
  int opened = 0;
  const int rounds = getenv("GCS_TEST_FULL") != nullptr ? 10'000 : 1'000;
  for (int i = 0; i < rounds; ++i) {
    const Fd secret(OpenInRoot(tree.root(), "swap/secret", O_RDONLY));
    if (secret.valid()) ++opened;
    const Fd dir(MkdirAllInRoot(tree.root(), ("swap/d" + std::to_string(i)).c_str(), 0755));
    const Fd file(CreateFileInRoot(tree.root(), ("evil/f" + std::to_string(i)).c_str(), 0644));
  }
  stop = true;
  attacker.join();
  CHECK(opened == 0);
  CHECK(tree.HostEntries() == 1);
}

TEST_CASE("no InRoot function leaks a descriptor, whether it succeeds or fails") {
  const Tree tree;
  tree.File("file", "x");
  tree.Link("loop", "loop");
  const int before = dup(0);
  close(before);
  char leaf[NAME_MAX + 1];
  for (int i = 0; i < 20; ++i) {
    for (const char* path : {"file", "file/x", "loop/x", "a/b/../c", "a/b/c", "n/../../x", "/", ""}) {
      Fd(MkdirAllInRoot(tree.root(), path, 0755)).Reset();
      Fd(CreateFileInRoot(tree.root(), path, 0644)).Reset();
      Fd(OpenParentInRoot(tree.root(), path, 0755, leaf)).Reset();
    }
  }
  const int after = dup(0);
  close(after);
  CHECK(after == before);
}

TEST_CASE("descriptors are close-on-exec") {
  const Tree tree;
  const Fd one(OpenInRoot(tree.root(), "/", O_PATH));
  const Fd two(MkdirAllInRoot(tree.root(), "x", 0755));
  const Fd three(CreateFileInRoot(tree.root(), "y", 0644));
  const auto four = OpenFile(tree.In("y"), O_RDONLY);
  REQUIRE(four.has_value());
  for (const int fd : {one.get(), two.get(), three.get(), four->get()})
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("reading a file stops at the limit and names what failed") {
  const Tree tree;
  tree.File("file", std::string(10'000, 'x'));
  CHECK(ReadFile(tree.In("file"))->size() == 10'000);
  CHECK(ReadFile(tree.In("file"), 10'000)->size() == 10'000);
  const auto big = ReadFile(tree.In("file"), 9'999);
  REQUIRE(!big);
  CHECK(big.error().err == EFBIG);
  const auto none = ReadFile(tree.In("none"));
  REQUIRE(!none);
  CHECK(none.error().err == ENOENT);
  CHECK(none.error().step == "open");
  CHECK(none.error().object == tree.In("none"));
  const auto dir = ReadFile(tree.In(""));
  REQUIRE(!dir);
  CHECK(dir.error().err == EISDIR);
}

TEST_CASE("writing goes to files that exist only") {
  const Tree tree;
  const auto none = WriteFile(tree.In("none"), "x");
  REQUIRE(!none);
  CHECK(none.error().err == ENOENT);
  CHECK(!fs::exists(tree.In("none")));
  tree.File("file", "");
  REQUIRE(WriteFile(tree.In("file"), "value"));
  CHECK(*ReadFile(tree.In("file")) == "value");
}

TEST_CASE("replacing a file is whole, has the mode asked for and leaves no temporary file") {
  const Tree tree;
  tree.File("file", "a long old content");
  REQUIRE(ReplaceFile(tree.In("file"), "new", 0600, true));
  CHECK(*ReadFile(tree.In("file")) == "new");
  struct stat st{};
  REQUIRE(stat(tree.In("file").c_str(), &st) == 0);
  CHECK((st.st_mode & 07777) == 0600);
  tree.Dir("dir");
  const auto onto_directory = ReplaceFile(tree.In("dir"), "x", 0600);
  REQUIRE(!onto_directory);
  CHECK(onto_directory.error().err == EISDIR);
  size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(tree.In(""))) ++entries;
  CHECK(entries == 2);
}

TEST_CASE("MakeDirs makes all missing directories and takes existing ones") {
  const Tree tree;
  REQUIRE(MakeDirs(tree.In("a/b/c"), 0755));
  CHECK(fs::is_directory(tree.In("a/b/c")));
  REQUIRE(MakeDirs(tree.In("a/b/c"), 0755));
  tree.File("file", "x");
  const auto bad = MakeDirs(tree.In("file/x"), 0755);
  REQUIRE(!bad);
  CHECK(bad.error().err == ENOTDIR);
}

}  // namespace
}  // namespace gcs::base
