// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "host_image_fixture.h"

namespace gcs::host::testing {
namespace {

TEST_CASE("a layer's files keep owner, mode, times and content") {
  const Converted layer(
      RawTar()
          .Dir("etc")
          .Add({.name = "etc/conf", .mode = 04751, .uid = 1000, .gid = 100, .mtime = 1'000'000'000},
               "hello\n")
          .Pax({{"mtime", "7000000000.123456789"}, {"uid", "3000000000"}, {"gid", "70000"}})
          .File("far", "x")
          .Bytes());
  CHECK(layer.Cat("/etc/conf") == "hello\n");
  const std::string stat = layer.Stat("/etc/conf");
  CHECK(Contains(stat, "Type: regular"));
  CHECK(Contains(stat, "Mode:  04751"));
  CHECK(Contains(stat, "User:  1000   Group:   100"));
  CHECK(Contains(stat, "Sep  9 01:46:40 2001"));
  const std::string far = layer.Stat("/far");
  CHECK(Contains(far, "User: -1294967296   Group: 70000"));  // debugfs prints the owner as signed
  // 7e9 needs the epoch bits; 123456789 << 2 | 2 in the extra field.
  CHECK(Contains(far, "mtime: 0xa13b8600:1d6f3456"));
}

TEST_CASE("parents that the archive leaves out are made as root's 0755") {
  const Converted layer(RawTar().File("a/b/c", "deep").Bytes());
  CHECK(layer.Cat("/a/b/c") == "deep");
  CHECK(Contains(layer.Stat("/a/b"), "Mode:  0755"));
}

TEST_CASE("whiteouts become character devices 0:0 and opaque directories get overlayfs' attribute") {
  const Converted layer(RawTar()
                            .Dir("d")
                            .File("d/.wh.gone")
                            .Dir("o")
                            .File("o/.wh..wh..opq")
                            .File("o/new", "n")
                            .File(".wh.both")
                            .File("both/child", "c")
                            .File("own", "kept")
                            .File(".wh.own")
                            .File(".wh..wh.plnk/123")
                            .Bytes());
  const std::string gone = layer.Stat("/d/gone");
  CHECK(Contains(gone, "Type: character special"));
  CHECK(Contains(gone, "Device major/minor number: 00:00"));
  CHECK_FALSE(layer.Has("/d/.wh.gone"));
  CHECK(Contains(layer.Debugfs("ea_get /o trusted.overlay.opaque"), "trusted.overlay.opaque (1) = \"y\""));
  CHECK(layer.Cat("/o/new") == "n");
  CHECK(Contains(layer.Debugfs("ea_list /both"), "trusted.overlay.opaque"));
  CHECK(layer.Cat("/both/child") == "c");
  CHECK(layer.Cat("/own") == "kept");
  CHECK_FALSE(Contains(layer.Debugfs("ea_list /d"), "opaque"));
  CHECK(layer.disk.dropped == 1);
}

TEST_CASE("attributes, capabilities and ACLs arrive; overlayfs' own are dropped") {
  const std::string capability("\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
  const std::string raw_acl(
      "\2\0\0\0\1\0\6\0\377\377\377\377\4\0\4\0\377\377\377\377\40\0\4\0\377\377\377\377", 28);
  const Converted layer(
      RawTar()
          .Pax({{"SCHILY.xattr.user.note", "hi there"},
                {"SCHILY.xattr.security.capability", capability},
                {"SCHILY.xattr.trusted.thing", "t"},
                {"SCHILY.xattr.trusted.overlay.redirect", "/etc"},
                {"SCHILY.xattr.com.apple.provenance", "x"},
                {"LIBARCHIVE.xattr.user.%62ase", "YmFzZTY0"}})
          .File("x", "x")
          .Pax({{"SCHILY.acl.access", "user::rw-,user:lisa:r--:1234,group::r--,mask::r--,other::---"}})
          .File("acl", "x")
          .Pax({{"SCHILY.xattr.system.posix_acl_access", raw_acl}})
          .File("raw", "x")
          .Pax({{"SCHILY.xattr.user.big", std::string(3000, 'b')}})
          .File("big", "x")
          .Bytes());
  const std::string list = layer.Debugfs("ea_list /x");
  CHECK(Contains(list, "user.note (8) = \"hi there\""));
  CHECK(Contains(list, "security.capability (20) = 01 00 00 02 00 04"));
  CHECK(Contains(list, "trusted.thing (1) = \"t\""));
  CHECK(Contains(list, "user.base (6) = \"base64\""));
  CHECK_FALSE(Contains(list, "overlay"));
  CHECK_FALSE(Contains(list, "apple"));
  CHECK(layer.disk.dropped == 2);
  CHECK(Contains(layer.Debugfs("ea_list /acl"),
                 "system.posix_acl_access (28) = 01 00 00 00 01 00 06 00 02 00 04 00 d2 04"));
  CHECK(Contains(layer.Debugfs("ea_list /raw"), "system.posix_acl_access (16)"));
  CHECK(Contains(layer.Debugfs("ea_list /big"), "user.big (3000)"));
}

TEST_CASE("links, devices and pipes are what they were") {
  const std::string long_target = "/" + std::string(90, 't');
  const Converted layer(RawTar()
                            .File("f", "data")
                            .HardLink("g", "./f")
                            .Symlink("short", "../../outside")
                            .Symlink("long", long_target)
                            .HardLink("long2", "long")
                            .Add({.name = "tty", .type = '3', .mode = 0620, .major = 5, .minor = 1})
                            .Add({.name = "big", .type = '4', .major = 259, .minor = 70000})
                            .Add({.name = "pipe", .type = '6'})
                            .Bytes());
  CHECK(layer.Cat("/g") == "data");
  CHECK(Contains(layer.Stat("/f"), "Links: 2"));
  CHECK(Contains(layer.Stat("/short"), "Fast link dest: \"../../outside\""));
  CHECK(Contains(layer.Stat("/long"), "Size: 91"));
  CHECK(Contains(layer.Stat("/long"), "Links: 2"));
  CHECK(layer.Cat("/long") == long_target);
  CHECK(Contains(layer.Stat("/tty"), "Device major/minor number: 05:01"));
  CHECK(Contains(layer.Stat("/big"), "Type: block special"));
  CHECK(Contains(layer.Stat("/big"), "Device major/minor number: 259:70000"));
  CHECK(Contains(layer.Stat("/pipe"), "Type: FIFO"));
}

TEST_CASE("later entries replace earlier ones, a directory only by another type") {
  const Converted layer(RawTar()
                            .File("a", "1")
                            .File("a", "2")
                            .File("d/kept", "k")
                            .Dir("d", 0700)
                            .File("e/lost", "l")
                            .File("e", "file")
                            .File("s", "file")
                            .File("s2", "x")
                            .Dir("s2")
                            .File("s2/in", "in")
                            .File("h", "old")
                            .File("target", "t")
                            .HardLink("h", "target")
                            .HardLink("h", "h")
                            .Bytes());
  CHECK(layer.Cat("/a") == "2");
  CHECK(layer.Cat("/d/kept") == "k");
  CHECK(Contains(layer.Stat("/d"), "Mode:  0700"));
  CHECK(layer.Cat("/e") == "file");
  CHECK(layer.Cat("/s2/in") == "in");
  CHECK(layer.Cat("/h") == "t");
  CHECK(Contains(layer.Stat("/target"), "Links: 2"));
}

TEST_CASE("links on the way are followed inside the layer and never out of it") {
  const Converted layer(RawTar()
                            .Symlink("abs", "/etc")
                            .File("abs/passwd", "inside")
                            .Symlink("up", "../../../../tmp")
                            .File("up/x", "clamped")
                            .Dir("usr/lib")
                            .Symlink("lib", "usr/lib")
                            .File("lib/libc", "c")
                            .HardLink("lib/libc2", "lib/libc")
                            .File("/rooted", "r")
                            .File("./dot//slash", "d")
                            .Bytes());
  CHECK(layer.Cat("/etc/passwd") == "inside");
  CHECK(layer.Cat("/tmp/x") == "clamped");
  CHECK(layer.Cat("/usr/lib/libc2") == "c");
  CHECK(Contains(layer.Stat("/abs"), "Type: symlink"));
  CHECK(layer.Cat("/rooted") == "r");
  CHECK(layer.Cat("/dot/slash") == "d");
}

TEST_CASE("sparse files and zeros take no blocks") {
  // GNU sparse 1.0: the map (one piece of 4 bytes at 8 GiB, and the end) is the first block of data.
  std::string map = "2\n8589934592\n4\n8589934600\n0\n";
  map.resize(512, '\0');
  const Converted layer(RawTar()
                            .Pax({{"GNU.sparse.major", "1"},
                                  {"GNU.sparse.minor", "0"},
                                  {"GNU.sparse.name", "huge"},
                                  {"GNU.sparse.realsize", "8589934600"}})
                            .Add({.name = "GNUSparseFile.0/huge"}, map + "tail")
                            .File("zeros", std::string(1 << 20, '\0') + "end")
                            .Bytes());
  const std::string huge = layer.Stat("/huge");
  CHECK(Contains(huge, "Size: 8589934600"));
  CHECK(Contains(huge, "Blockcount: 8\n"));
  CHECK(Contains(layer.Stat("/zeros"), "Size: 1048579"));
  CHECK(Contains(layer.Stat("/zeros"), "Blockcount: 8\n"));
  CHECK(layer.disk.bytes < 1 << 20);
  CHECK(layer.Cat("/zeros") == std::string(1 << 20, '\0') + "end");
}

TEST_CASE("names are bytes: 255 of them, no UTF-8, no normalisation") {
  const std::string longest(255, 'n');
  const std::string decomposed = "e\xcc\x81";
  const Converted layer(RawTar()
                            .Pax({{"path", "d/" + longest}})
                            .File("x", "long")
                            .Pax({{"path", decomposed}})
                            .File("x", "nfd")
                            .File("bad\xff\xfe", "bytes")
                            .Bytes());
  CHECK(layer.Cat("/d/" + longest) == "long");
  CHECK(layer.Cat("/" + decomposed) == "nfd");
  CHECK(layer.Cat("/bad\xff\xfe") == "bytes");
}

TEST_CASE("a directory of 20000 names has a hash tree that e2fsck accepts") {
  RawTar tar;
  for (int i = 0; i < 20'000; ++i)
    tar.Add({.name = "d/a-name-of-some-length-" + std::to_string(i), .type = '2', .link = "t"});
  const Converted layer(tar.Bytes());
  CHECK(Contains(layer.Debugfs("htree_dump /d"), "Number of entries (count):"));
  CHECK(layer.Has("/d/a-name-of-some-length-19999"));
}

TEST_CASE("a directory of long names needs and gets two levels of its hash tree") {
  RawTar tar;
  const std::string tail(90, 'x');  // 36 entries in a block: more than 508 leaves
  for (int i = 0; i < 22'000; ++i)
    tar.Add({.name = "d/" + std::to_string(100'000 + i) + tail, .type = '2', .link = "t"});
  const Converted layer(tar.Bytes());
  CHECK(Contains(layer.Debugfs("htree_dump /d"), "Indirect levels: 1"));
  CHECK(layer.Has("/d/121999" + tail));
}

TEST_CASE("a file in many pieces gets an extent tree") {
  std::string content;
  for (int i = 0; i < 1500; ++i) content += std::string(4096, 'a' + i % 26) + std::string(4096, '\0');
  const Converted layer(RawTar().File("f", content).Bytes());
  CHECK(Contains(layer.Stat("/f"), "(ETB0):"));
  CHECK(layer.Cat("/f") == content);
}

TEST_CASE("the same tar gives the same bytes, whatever its compression; another gives another identity") {
  RawTar tar;
  for (int i = 0; i < 300; ++i)
    tar.File("f" + std::to_string(i), std::string(static_cast<size_t>(i) * 40, 'q'));
  tar.Pax({{"SCHILY.xattr.user.a", "1"}, {"SCHILY.xattr.user.b", "2"}}).File("x", "x");
  std::vector<std::string> images;
  for (const PackCompression compression :
       {PackCompression::kNone, PackCompression::kGzip, PackCompression::kZstd}) {
    const TempDir dir;
    Layout layout(tar.Bytes(), Compress(tar.Bytes(), compression));
    layout.media_type =
        compression == PackCompression::kGzip   ? "application/vnd.docker.image.rootfs.diff.tar.gzip"
        : compression == PackCompression::kZstd ? "application/vnd.oci.image.layer.v1.tar+zstd"
                                                : "application/vnd.oci.image.layer.v1.tar";
    layout.Write(dir / "layout");
    const auto image = OpenImage(dir / "layout");
    REQUIRE(image);
    const auto disks = ConvertLayers(*image, dir / "cache");
    REQUIRE_MESSAGE(disks, (disks ? "" : disks.error().ToString()));
    images.push_back(Load((*disks)[0].path));
    sleep(1);  // a time of day in the image would show
  }
  CHECK(images[0] == images[1]);
  CHECK(images[0] == images[2]);
  const Converted other(tar.File("one-more").Bytes());
  CHECK(images[0].substr(1024 + 104, 16) != Load(other.disk.path).substr(1024 + 104, 16));
}

TEST_CASE("the second conversion comes from the cache, a damaged disk is made again") {
  const TempDir dir;
  Layout(RawTar().File("f", "x").Bytes()).Write(dir / "layout");
  const auto image = OpenImage(dir / "layout");
  REQUIRE(image);
  std::vector<LayerProgress::Phase> phases;
  const auto first =
      ConvertLayers(*image, dir / "cache", [&](const LayerProgress& p) { phases.push_back(p.phase); });
  REQUIRE(first);
  CHECK_FALSE((*first)[0].cached);
  CHECK(phases.front() == LayerProgress::Phase::kVerifying);
  CHECK(phases.back() == LayerProgress::Phase::kDone);
  CHECK((*first)[0].path == dir / ("cache/layers/sha256-" + image->layers[0].diff_id.substr(7) + ".v1.ext4"));
  const auto second = ConvertLayers(*image, dir / "cache");
  REQUIRE(second);
  CHECK((*second)[0].cached);
  CHECK(FilesIn(dir / "cache").size() == 1);
  std::filesystem::resize_file((*first)[0].path, 8192);
  const auto third = ConvertLayers(*image, dir / "cache");
  REQUIRE(third);
  CHECK_FALSE((*third)[0].cached);
  CHECK((*third)[0].bytes == (*first)[0].bytes);
}

TEST_CASE("conversions at the same time make the layer once and leave no lock behind") {
  const TempDir dir;
  RawTar tar;
  for (int i = 0; i < 2000; ++i) tar.File("f" + std::to_string(i), std::string(5000, 'z'));
  Layout(tar.Bytes()).Write(dir / "layout");
  const auto image = OpenImage(dir / "layout");
  REQUIRE(image);
  int made = 0;
  std::vector<base::Result<std::vector<LayerDisk>>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] { result = ConvertLayers(*image, dir / "cache"); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) {
    REQUIRE(result);
    made += (*result)[0].cached ? 0 : 1;
  }
  CHECK(made == 1);
  CHECK(FilesIn(dir / "cache").size() == 1);
}

}  // namespace
}  // namespace gcs::host::testing
