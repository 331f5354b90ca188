// SPDX-License-Identifier: Apache-2.0
// Tar streams into and out of a root that a container controls, against GNU tar.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "base/fd.h"
#include "guest/pack.h"
#include "guest/tar.h"
#include "guest/unpack.h"
#include "support/temp.h"

namespace gcs::test {
namespace {

namespace fs = std::filesystem;
using guest::Packer;
using guest::TarEntry;
using guest::TarType;
using guest::Unpacker;

std::string Shell(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string out;
  char buffer[65536];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
  REQUIRE_MESSAGE(pclose(pipe) == 0, command);
  return out;
}

void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

std::string Read(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

base::Fd Root(const std::string& path) {
  return base::Fd(open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
}

base::Result<> Unpack(const std::string& root, const std::string& path, const std::string& stream,
                      size_t piece = 4096) {
  GCS_ASSIGN(const std::unique_ptr<Unpacker> unpacker, Unpacker::Create(Root(root), path));
  for (size_t at = 0; at < stream.size(); at += piece) {
    GCS_TRY(unpacker->Push(std::string_view(stream).substr(at, piece)));
  }
  return unpacker->Finish();
}

base::Result<std::string> Pack(const std::string& root, const std::string& path, size_t piece = 4096) {
  GCS_ASSIGN(const std::unique_ptr<Packer> packer, Packer::Create(Root(root), path));
  std::string stream;
  for (;;) {
    GCS_ASSIGN(const std::string next, packer->Next(piece));
    if (next.empty()) return stream;
    CHECK(next.size() <= piece + 4096);  // and the headers of what the piece ends with
    stream += next;
  }
}

// A stream of one entry for each, files with their path as content.
std::string Stream(const std::vector<TarEntry>& entries) {
  std::string stream;
  for (TarEntry entry : entries) {
    if (entry.type == TarType::kFile) entry.size = entry.path.size();
    guest::AppendTarHeader(stream, entry);
    if (entry.type == TarType::kFile) stream += entry.path + std::string(guest::TarPadding(entry.size), '\0');
  }
  guest::AppendTarEnd(stream);
  return stream;
}

// All that a tree holds: names, kinds, modes, owners, links, times, contents.
std::string Listing(const std::string& dir) {
  return Shell(
      "cd " + dir +
      " && find . -mindepth 1 -printf '%P %y %m %U %G %n %l %T@ %s\\n' | sed '/ d /s/ [0-9]*$//' | sort && "
      "find . -type f -print0 | sort -z | xargs -0r sha256sum && find . -type c -exec stat -c '%n %t %T' {} "
      "+ | sort");
}

void MakeTree(const std::string& dir) {
  fs::create_directories(dir + "/sub/deeper/" + std::string(120, 'd') + "/" + std::string(120, 'e'));
  Write(dir + "/file", "content\n");
  Write(dir + "/empty", "");
  Write(dir + "/large", std::string(300'000, 'x'));
  Write(dir + "/sub/deeper/" + std::string(120, 'd') + "/" + std::string(120, 'e') + "/f", "deep");
  Write(dir + "/caf\xc3\xa9 \xff", "bytes");
  fs::create_hard_link(dir + "/file", dir + "/sub/hard");
  fs::create_symlink("/etc/passwd", dir + "/absolute");
  fs::create_symlink("../../../../" + std::string(150, 'u'), dir + "/sub/up");
  REQUIRE(mkfifo((dir + "/fifo").c_str(), 0640) == 0);
  REQUIRE(mknod((dir + "/null").c_str(), S_IFCHR | 0666, makedev(1, 3)) == 0);
  REQUIRE(chown((dir + "/file").c_str(), 1234567890, 3000000) == 0);
  REQUIRE(chmod((dir + "/file").c_str(), 04751) == 0);
  REQUIRE(lchown((dir + "/absolute").c_str(), 5, 6) == 0);
  REQUIRE(chmod((dir + "/sub").c_str(), 01700) == 0);
  for (const char* name : {"file", "absolute", "sub/deeper", "fifo"}) {
    const timespec times[2] = {{1'000'000'000, 123'456'789}, {1'234'567'890, 987'654'321}};
    REQUIRE(utimensat(AT_FDCWD, (dir + "/" + name).c_str(), times, AT_SYMLINK_NOFOLLOW) == 0);
  }
}

TEST_CASE("what GNU tar packs is unpacked as GNU tar would do it") {
  const TempDir dir;
  MakeTree(dir / "from");
  for (const char* format : {"pax", "gnu"}) {
    CAPTURE(format);
    const std::string stream = Shell("tar -C " + (dir / "from") + " --format=" + format + " -c .");
    for (const size_t piece : {1000, 512, 1 << 20}) {
      CAPTURE(piece);
      const std::string to = dir / "to";
      fs::create_directories(to + "/srv");
      const auto unpacked = Unpack(to, "/srv", stream, piece);
      REQUIRE_MESSAGE(unpacked, unpacked.error().ToString());
      fs::create_directories(dir / "peer");
      Shell("tar -C " + (dir / "from") + " --format=" + format + " -c . | tar -C " + (dir / "peer") + " -xp");
      CHECK(Listing(to + "/srv") == Listing(dir / "peer"));
      fs::remove_all(to);
      fs::remove_all(dir / "peer");
    }
  }
}

TEST_CASE("what is packed is unpacked by GNU tar, and by ourselves, as it was") {
  const TempDir dir;
  MakeTree(dir / "root/from");
  const bool xattrs = setxattr((dir / "root/from/file").c_str(), "user.note", "a\0b", 3, 0) == 0;
  const sockaddr_un address = [&] {
    sockaddr_un made{};
    made.sun_family = AF_UNIX;
    snprintf(made.sun_path, sizeof made.sun_path, "%s", (dir / "root/from/socket").c_str());
    return made;
  }();
  const base::Fd socket_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(bind(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  for (const size_t piece : {512, 1 << 20}) {
    const auto stream = Pack(dir / "root", "/from", piece);
    REQUIRE_MESSAGE(stream, stream.error().ToString());
    Write(dir / "stream", *stream);
    fs::create_directories(dir / "gnu");
    fs::create_directories(dir / "own");
    Shell("tar -C " + (dir / "gnu") + " --xattrs --xattrs-include='*' -xpf " + (dir / "stream") + " 2>&1");
    const auto unpacked = Unpack(dir / "own", "/", *stream);
    REQUIRE_MESSAGE(unpacked, unpacked.error().ToString());
    fs::remove(dir / "root/from/socket");  // which a tar has no place for
    CHECK(Listing(dir / "gnu/from") == Listing(dir / "root/from"));
    CHECK(Listing(dir / "own/from") == Listing(dir / "root/from"));
    if (xattrs) {
      char value[8];
      CHECK(getxattr((dir / "gnu/from/file").c_str(), "user.note", value, sizeof value) == 3);
      CHECK(getxattr((dir / "own/from/file").c_str(), "user.note", value, sizeof value) == 3);
    }
    fs::remove_all(dir / "gnu");
    fs::remove_all(dir / "own");
  }
  CHECK(Shell("tar -tf " + (dir / "stream") + " | head -n1") == "from/\n");
}

TEST_CASE("one file, a link and the root are packed under their last name") {
  const TempDir dir;
  fs::create_directories(dir / "root/a");
  Write(dir / "root/a/f", "x");
  fs::create_symlink("a", dir / "root/l");
  const auto names = [&](const std::string& path) {
    const auto stream = Pack(dir / "root", path);
    REQUIRE_MESSAGE(stream, stream.error().ToString());
    Write(dir / "stream", *stream);
    return Shell("tar -tf " + (dir / "stream") + " | sort | tr '\\n' ' '");
  };
  CHECK(names("/a/f") == "f ");
  CHECK(names("l") == "l ");
  CHECK(names("/l/") == "l/ l/f ");
  CHECK(names("/a/../l/f") == "f ");
  CHECK(names("/") == "./ ./a/ ./a/f ./l ");
  CHECK(Pack(dir / "root", "/none").error().err == ENOENT);
}

// Root "root" beside "outside", which no stream may reach.
struct Confined {
  TempDir dir;
  std::string root = dir / "root";
  std::string outside = dir / "outside";
  std::string before;
  Confined() {
    fs::create_directories(root + "/d");
    fs::create_directories(outside);
    Write(outside + "/secret", "nobody reads this");
    fs::create_symlink(outside, root + "/d/absolute");
    fs::create_symlink("../../../../../../../../.." + outside, root + "/d/up");
    fs::create_symlink(outside + "/secret", root + "/d/file");
    before = Listing(outside);
  }
  ~Confined() {
    CHECK(Listing(outside) == before);
    CHECK(Shell("find " + root + " -name '.gcs-copy*'").empty());
  }
};

TEST_CASE("escape 20: no name and no link of a stream or a container leads out of the root") {
  Confined box;
  const auto unpack = [&](const std::vector<TarEntry>& entries) {
    return Unpack(box.root, "/d", Stream(entries));
  };
  for (const char* name : {"../x", "a/../../x", "..", "/../x"}) {
    CAPTURE(name);
    CHECK(unpack({{.path = name}}).error().err == EINVAL);
  }
  // Links of the container: what they name is looked for, and made, inside its root.
  CHECK(unpack({{.path = "absolute/x"}, {.path = "up/y"}, {.path = "absolute/secret"}}));
  CHECK(Read(box.root + box.outside + "/x") == "absolute/x");
  CHECK(Read(box.root + box.outside + "/y") == "up/y");
  // A link in a file's place is replaced, not written through.
  CHECK(unpack({{.path = "file"}}));
  CHECK(Read(box.root + "/d/file") == "file");
  CHECK_FALSE(fs::is_symlink(box.root + "/d/file"));
  // Links of the stream.
  CHECK(unpack({{.path = "out", .link = box.outside, .type = TarType::kSymlink}, {.path = "out/z"}}));
  CHECK(fs::read_symlink(box.root + "/d/out") == box.outside);
  CHECK(Read(box.root + box.outside + "/z") == "out/z");
  CHECK(unpack({{.path = "/absolute-name"}}));
  CHECK(Read(box.root + "/d/absolute-name") == "/absolute-name");
  // Other names of files outside.
  CHECK(unpack({{.path = "h", .link = "../../outside/secret", .type = TarType::kHardLink}}).error().err ==
        EINVAL);
  fs::remove_all(box.root + box.outside);
  fs::create_symlink(box.outside + "/secret", box.root + "/d/again");
  CHECK(unpack({{.path = "h", .link = "up/secret", .type = TarType::kHardLink}}).error().err == ENOENT);
  // Of a link itself, not of what it names.
  CHECK(unpack({{.path = "h", .link = "again", .type = TarType::kHardLink}}));
  CHECK(fs::is_symlink(box.root + "/d/h"));
  // The way out.
  CHECK(Pack(box.root, "/d/up/secret").error().err == ENOENT);
  CHECK(Pack(box.root, "/../../outside/secret").error().err == ENOENT);
  CHECK(Pack(box.root, "/d")->find("nobody reads") == std::string::npos);
}

TEST_CASE("a directory of the path is there or the copy fails") {
  Confined box;
  CHECK(Unpack(box.root, "/none", Stream({{.path = "x"}})).error().err == ENOENT);
  CHECK(Unpack(box.root, "/d/file", Stream({{.path = "x"}})).error().err == ENOENT);
  CHECK(Unpack(box.root, "/d/absolute", Stream({{.path = "x"}})).error().err == ENOENT);
  Write(box.root + "/regular", "");
  CHECK(Unpack(box.root, "/regular", Stream({{.path = "x"}})).error().err == ENOTDIR);
}

TEST_CASE("devices and pipes are made and packed, never opened") {
  Confined box;
  REQUIRE(mkfifo((box.root + "/d/pipe").c_str(), 0600) == 0);  // to open it would wait for a peer
  REQUIRE(mknod((box.root + "/d/full").c_str(), S_IFCHR | 0600, makedev(1, 7)) == 0);  // ENOSPC to a write
  const auto packed = Pack(box.root, "/d");
  REQUIRE_MESSAGE(packed, packed.error().ToString());
  CHECK(packed->size() < 20'000);
  const auto unpacked = Unpack(
      box.root, "/d",
      Stream(
          {{.path = "pipe"},
           {.path = "full"},
           {.path = "zero", .type = TarType::kCharDevice, .mode = 0606, .uid = 3, .major = 1, .minor = 5}}));
  REQUIRE_MESSAGE(unpacked, unpacked.error().ToString());
  CHECK(Read(box.root + "/d/pipe") == "pipe");
  CHECK(Read(box.root + "/d/full") == "full");
  struct stat st{};
  REQUIRE(stat((box.root + "/d/zero").c_str(), &st) == 0);
  CHECK(st.st_mode == (S_IFCHR | 0606));
  CHECK(st.st_uid == 3);
  CHECK(st.st_rdev == makedev(1, 5));
}

TEST_CASE("a stream that breaks off leaves what was complete and nothing else") {
  Confined box;
  Write(box.root + "/d/second", "old");
  const std::string stream = Stream({{.path = "first"}, {.path = "new/second"}, {.path = "second"}});
  for (size_t length = 0; length < stream.size() - 1024; length += 100) {
    CAPTURE(length);
    CHECK_FALSE(Unpack(box.root, "/d", stream.substr(0, length)));
    CHECK(Shell("find " + box.root + " -name '.gcs-copy*'").empty());
    CHECK(fs::exists(box.root + "/d/first") == (length > 512));
    CHECK(Read(box.root + "/d/second") == (length > 512 * 5 ? "second" : "old"));
  }
}

TEST_CASE("a file in a directory's place and the other way round are errors that change nothing") {
  Confined box;
  fs::create_directories(box.root + "/d/dir/full");
  CHECK(Unpack(box.root, "/d", Stream({{.path = "dir"}})).error().err == EISDIR);
  Write(box.root + "/d/plain", "old");
  CHECK(Unpack(box.root, "/d", Stream({{.path = "plain/", .type = TarType::kDirectory}})).error().err ==
        ENOTDIR);
  CHECK(Read(box.root + "/d/plain") == "old");
  CHECK(fs::is_directory(box.root + "/d/dir/full"));
}

TEST_CASE("escape 20: a container that swaps directories and links meanwhile gains nothing") {
  Confined box;
  const std::string outside = Listing(box.outside);
  fs::create_directories(box.root + "/d/swap");
  fs::create_symlink(box.outside, box.root + "/d/swap2");
  std::atomic<bool> stop = false;
  std::thread container([&] {
    const std::string a = box.root + "/d/swap";
    const std::string b = box.root + "/d/swap2";
    while (!stop) renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE);
  });
  std::vector<TarEntry> entries;
  for (int i = 0; i < 200; ++i) {
    entries.push_back(
        {.path = "swap", .type = TarType::kDirectory, .mode = 0700 + static_cast<uint32_t>(i % 8)});
    entries.back().path += "/in";
    entries.push_back({.path = "swap/f" + std::to_string(i)});
    entries.push_back({.path = "swap/n" + std::to_string(i), .type = TarType::kFifo, .mode = 0666});
  }
  const int rounds = getenv("GCS_TEST_FULL") != nullptr ? 20 : 10;  // of 600 entries
  for (int round = 0; round < rounds; ++round) {
    // A link in the middle of a look-up is a failure that the container has brought about.
    const auto unpacked = Unpack(box.root, "/d", Stream(entries));
    CHECK_MESSAGE((unpacked || unpacked.error().err == ENOTDIR || unpacked.error().err == ENOENT),
                  (unpacked ? "" : unpacked.error().ToString()));
    const auto packed = Pack(box.root, "/d");
    CHECK_MESSAGE(packed, (packed ? "" : packed.error().ToString()));
    if (packed) CHECK(packed->find("nobody reads") == std::string::npos);
  }
  stop = true;
  container.join();
  CHECK(Listing(box.outside) == outside);
}

TEST_CASE("directories deeper than the limit are refused both ways") {
  const TempDir dir;
  std::string path;
  std::vector<TarEntry> entries;
  for (int i = 0; i < 300; ++i) {
    path += "d/";
    entries.push_back({.path = path, .type = TarType::kDirectory, .mode = 0755});
  }
  fs::create_directories(dir / "root");
  CHECK(Unpack(dir / "root", "/", Stream(entries)).error().err == EINVAL);
  fs::create_directories(dir / "root/" + path);
  CHECK(Pack(dir / "root", "/").error().err == EINVAL);
}

}  // namespace
}  // namespace gcs::test
