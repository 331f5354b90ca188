// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <string>
#include <vector>

#include "host/client/users.h"
#include "host/image/image.h"
#include "host/image/pack.h"
#include "support/temp.h"

namespace gcs::host {
namespace {

constexpr char kPasswd[] =
    "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100:Ann:/home/ann:/bin/sh\nbroken:x:zz:0::/:/bin/sh\n"
    "short:x:5\n";
constexpr char kGroup[] = "root:x:0:\nusers:x:100:ann\nvideo:x:44:bob,ann\naudio:x:29:bob\n";

TEST_CASE("users and groups are found by name and number") {
  const auto root = ResolveUser("", kPasswd, kGroup);
  REQUIRE(root);
  CHECK(root->uid == 0);
  CHECK(root->home == "/root");
  const auto ann = ResolveUser("ann", kPasswd, kGroup);
  REQUIRE(ann);
  CHECK(ann->uid == 1000);
  CHECK(ann->gid == 100);
  CHECK(ann->home == "/home/ann");
  CHECK(ann->additional_gids == std::vector<uint32_t>{44});
  const auto by_number = ResolveUser("1000", kPasswd, kGroup);
  REQUIRE(by_number);
  CHECK(by_number->gid == 100);
  const auto grouped = ResolveUser("ann:video", kPasswd, kGroup);
  REQUIRE(grouped);
  CHECK(grouped->gid == 44);
  CHECK(grouped->additional_gids.empty());
  const auto stranger = ResolveUser("77:88", std::nullopt, std::nullopt);
  REQUIRE(stranger);
  CHECK(stranger->uid == 77);
  CHECK(stranger->gid == 88);
}

TEST_CASE("names that are not there, and broken lines, are errors") {
  CHECK(ResolveUser("bob", kPasswd, kGroup).error().err == ENOENT);
  CHECK(ResolveUser("ann", std::nullopt, kGroup).error().err == ENOENT);
  CHECK(ResolveUser("ann:staff", kPasswd, kGroup).error().err == ENOENT);
  CHECK(ResolveUser("broken", kPasswd, kGroup).error().err == EINVAL);
  CHECK(ResolveUser("short", kPasswd, kGroup).error().err == ENOENT);
  CHECK(ResolveUser("4294967296", kPasswd, kGroup).error().err == ENOENT);
}

TEST_CASE("files are read through layers as the stacked file system would show them") {
  const test::TempDir dir;
  const auto file = [](const char* path, const char* content) {
    return PackFile{.path = path, .mode = S_IFREG | 0644, .content = content};
  };
  const PackFile etc{.path = "etc", .mode = S_IFDIR | 0755, .content = ""};
  PackLayer low{
      .files = {etc, file("etc/passwd", "low"), file("etc/group", "low"), file("etc/other", "low")}};
  PackLayer middle{.files = {etc, file("etc/passwd", "middle"), file("etc/.wh.group", "")}};
  PackLayer high{.files = {PackFile{.path = "usr", .mode = S_IFDIR | 0755, .content = ""}}};
  REQUIRE(PackImage(dir / "image", {low, middle, high}, {.config = {}}));
  const auto image = OpenImage(dir / "image");
  REQUIRE(image);
  const auto disks = ConvertLayers(*image, dir / "cache");
  REQUIRE(disks);
  std::vector<std::string> paths;
  for (const LayerDisk& disk : *disks) paths.push_back(disk.path);
  const auto read = [&paths](const char* path) {
    auto content = ReadFromLayers(paths, path);
    REQUIRE(content);
    return *content;
  };
  CHECK(read("/etc/passwd") == "middle");
  CHECK(read("/etc/group") == std::nullopt);
  CHECK(read("/etc/other") == "low");
  CHECK(read("/etc/nothing") == std::nullopt);
  CHECK(read("/etc/passwd/below") == std::nullopt);
  CHECK_FALSE(ReadFromLayers({dir / "nothing"}, "/etc/passwd"));
}

}  // namespace
}  // namespace gcs::host
