// SPDX-License-Identifier: Apache-2.0
#include <functional>

#include "host_image_fixture.h"

namespace gcs::host::testing {
namespace {

// Converts and expects an error; checks that the cache has no file then.
base::Error Refused(const Layout& layout, const ImageLimits& limits = {}) {
  const TempDir dir;
  layout.Write(dir / "layout");
  const auto image = OpenImage(dir / "layout");
  REQUIRE_MESSAGE(image, (image ? "" : image.error().ToString()));
  const auto disks = ConvertLayers(*image, dir / "cache", {}, limits);
  REQUIRE_FALSE(disks);
  CHECK(FilesIn(dir / "cache").empty());
  CHECK_FALSE(disks.error().step.empty());
  CHECK_FALSE(disks.error().object.empty());
  return disks.error();
}

base::Error RefusedTar(const std::string& tar, const ImageLimits& limits = {}) {
  return Refused(Layout(tar), limits);
}

struct Case {
  const char* what;
  std::string tar;
  int err;
  const char* says;  // part of the error's text
};

RawTar Links(int count) {
  RawTar tar;
  tar.File("f", "x");
  for (int i = 0; i < count; ++i) tar.HardLink("l" + std::to_string(i), "f");
  return tar;
}

TEST_CASE("hostile entries are refused with their name") {
  const std::string deep = [] {
    std::string path;
    for (int i = 0; i < 200; ++i) path += "d/";
    return path;
  }();
  const std::vector<Case> cases = {
      {"parent traversal", RawTar().File("../../etc/passwd", "x").Bytes(), EINVAL, "../../etc/passwd"},
      {"traversal in the middle", RawTar().File("a/../../b", "x").Bytes(), EINVAL, "a/../../b"},
      {"traversal from the root", RawTar().File("/../b", "x").Bytes(), EINVAL, "/../b"},
      {"hard link outside", RawTar().HardLink("shadow", "../../etc/shadow").Bytes(), EINVAL, "shadow"},
      {"hard link to an absolute path of the host", RawTar().HardLink("shadow", "/etc/shadow").Bytes(),
       ENOENT, "shadow"},
      {"hard link to nothing", RawTar().HardLink("l", "f").Bytes(), ENOENT, "which is missing"},
      {"hard link to a whiteout", RawTar().File(".wh.f").HardLink("l", "f").Bytes(), ENOENT,
       "which is missing"},
      {"hard link to a directory", RawTar().Dir("d").HardLink("l", "d").Bytes(), EPERM, "directory"},
      {"hard link to the root", RawTar().HardLink("l", "/").Bytes(), EPERM, "root"},
      {"hard link with an empty target", RawTar().HardLink("l", "").Bytes(), EINVAL, "empty name"},
      {"hard link over a directory above its target", RawTar().File("d/f", "x").HardLink("d", "d/f").Bytes(),
       EINVAL, "above its target"},
      {"too many links", Links(65'000).Bytes(), EMLINK, "65000"},
      {"symbolic link loop", RawTar().Symlink("a", "b").Symlink("b", "a").File("a/x", "x").Bytes(), ELOOP,
       "a/x"},
      {"symbolic link to itself", RawTar().Symlink("a", "a").File("a/x", "x").Bytes(), ELOOP, "a/x"},
      {"symbolic link to nothing", RawTar().Symlink("a", "").Bytes(), EINVAL, "nothing"},
      {"file as a parent", RawTar().File("f", "x").File("f/x", "x").Bytes(), ENOTDIR, "f/x"},
      {"device as a parent",
       RawTar().Add({.name = "dev", .type = '3', .major = 1, .minor = 3}).File("dev/x").Bytes(), ENOTDIR,
       "dev/x"},
      {"root as a device", RawTar().Add({.name = "./", .type = '3', .major = 1, .minor = 3}).Bytes(), EINVAL,
       "root"},
      {"root as a symbolic link", RawTar().Symlink("/", "/etc").Bytes(), EINVAL, "root"},
      {"forged whiteout device", RawTar().Add({.name = "w", .type = '3'}).Bytes(), EINVAL, "whiteout"},
      {"device number too big", RawTar().Add({.name = "w", .type = '4', .major = 5000, .minor = 1}).Bytes(),
       EINVAL, "12:20"},
      {"empty name", RawTar().Add({.name = ""}).Bytes(), EINVAL, "empty name"},
      {"empty pax name", RawTar().Pax({{"path", ""}}).File("x").Bytes(), EINVAL, "empty name"},
      {"NUL in a pax name", RawTar().Pax({{"path", std::string("a\0b", 3)}}).File("x").Bytes(), EBADMSG,
       "NUL"},
      {"NUL in a pax link", RawTar().Pax({{"linkpath", std::string("a\0b", 3)}}).Symlink("x", "y").Bytes(),
       EBADMSG, "NUL"},
      {"NUL in a GNU name",
       RawTar().Add({.name = "@LongLink", .type = 'L'}, std::string("a\0b\0", 4)).File("x").Bytes(), EBADMSG,
       "NUL"},
      {"malformed pax record", RawTar().Add({.name = "p", .type = 'x'}, "99 path=x\n").File("x").Bytes(),
       EBADMSG, "tar"},
      {"component of 256 bytes", RawTar().Pax({{"path", std::string(256, 'n')}}).File("x").Bytes(),
       ENAMETOOLONG, "255"},
      {"path of 5000 bytes",
       RawTar().Pax({{"path", std::string(2500, '/') + std::string(2500, '/') + "x"}}).File("x").Bytes(),
       ENAMETOOLONG, "too long"},
      {"200 directories deep", RawTar().Pax({{"path", deep + "x"}}).File("x").Bytes(), ENAMETOOLONG,
       "deeper"},
      {"link target of 5000 bytes",
       RawTar().Pax({{"linkpath", std::string(5000, 't')}}).Symlink("x", "y").Bytes(), ENAMETOOLONG,
       "target"},
      {"whiteout of nothing", RawTar().File("d/.wh.").Bytes(), EINVAL, "whiteout"},
      {"whiteout of the parent", RawTar().File("d/.wh...").Bytes(), EINVAL, "whiteout"},
      {"content below a whiteout", RawTar().File(".wh.d/x", "x").Bytes(), EINVAL, "whiteout"},
      {"attribute of 5000 bytes",
       RawTar().Pax({{"SCHILY.xattr.user.a", std::string(5000, 'v')}}).File("x").Bytes(), E2BIG, "user.a"},
      {"attribute with a long name",
       RawTar().Pax({{"SCHILY.xattr.user." + std::string(256, 'n'), "v"}}).File("x").Bytes(), ENAMETOOLONG,
       "attribute name"},
      {"malformed ACL", RawTar().Pax({{"SCHILY.xattr.system.posix_acl_access", "garbage"}}).File("x").Bytes(),
       EBADMSG, "posix_acl_access"},
      {"owner beyond 32 bits", RawTar().Pax({{"uid", "4294967296"}}).File("x").Bytes(), EOVERFLOW, "owner"},
      {"huge declared size", RawTar().Add({.name = "f", .declared = 8'000'000'000}, "short").Bytes(), EBADMSG,
       "f"},
      {"size beyond the limit", RawTar().Pax({{"size", "999999999999999"}}).File("f").Bytes(), EFBIG, "f"},
      {"archive cut in a header",
       RawTar().File("f", "x").Unfinished().substr(0, 1024) + std::string(100, 'x'), EBADMSG, "tar"},
      {"archive cut in data", RawTar().File("f", std::string(5000, 'x')).Unfinished().substr(0, 2048),
       EBADMSG, "tar"},
      {"damaged checksum",
       [] {
         std::string bytes = RawTar().File("f", "x").File("g", "y").Bytes();
         bytes[1024] = 'X';
         return bytes;
       }(),
       EBADMSG, "tar"},
      {"no tar at all", std::string(4096, 'A'), EBADMSG, "tar"},
      {"unfinished sparse map",
       RawTar()
           .Pax({{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.realsize", "10"}})
           .File("f", "9999999\n1\n")
           .Bytes(),
       EBADMSG, ""},
  };
  for (const Case& test : cases) {
    CAPTURE(std::string(test.what));
    const base::Error error = RefusedTar(test.tar);
    CAPTURE(error.ToString());
    CHECK(error.err == test.err);
    CHECK(Contains(error.ToString(), test.says));
  }
}

TEST_CASE("a blob must be what its descriptor and the config say") {
  const std::string tar = RawTar().File("f", "content").Bytes();
  SUBCASE("another content under the digest") {
    Layout layout(tar);
    layout.blob[600] ^= 1;
    CHECK(Refused(layout).step == "verify blob digest");
  }
  SUBCASE("another size") {
    Layout layout(tar);
    layout.size += 1;
    CHECK(Refused(layout).step == "verify blob size");
  }
  SUBCASE("another diff_id") {
    Layout layout(tar);
    layout.diff_id = Sha256("else");
    CHECK(Refused(layout).step == "verify diff_id");
  }
  SUBCASE("the diff_id covers what follows the archive's end") {
    Layout layout(tar + "trailer");
    layout.diff_id = Sha256(tar);
    CHECK(Refused(layout).step == "verify diff_id");
  }
  SUBCASE("missing blob") {
    const TempDir dir;
    const Layout layout(tar);
    layout.Write(dir / "layout");
    std::filesystem::remove(dir / ("layout/blobs/sha256/" + layout.digest.substr(7)));
    const auto image = OpenImage(dir / "layout");
    REQUIRE(image);
    const auto disks = ConvertLayers(*image, dir / "cache");
    REQUIRE_FALSE(disks);
    CHECK(disks.error().err == ENOENT);
    CHECK(Contains(disks.error().object, layout.digest.substr(7)));
    CHECK(FilesIn(dir / "cache").empty());
  }
  SUBCASE("blob that is a symbolic link out of the layout") {
    const TempDir dir;
    const Layout layout(tar);
    layout.Write(dir / "layout");
    Save(dir / "outside", tar);
    const std::string blob = dir / ("layout/blobs/sha256/" + layout.digest.substr(7));
    std::filesystem::remove(blob);
    std::filesystem::create_symlink(dir / "outside", blob);
    const auto disks = ConvertLayers(*OpenImage(dir / "layout"), dir / "cache");
    REQUIRE_FALSE(disks);
    CHECK(disks.error().err == ENOENT);
  }
}

TEST_CASE("damaged and malicious compression is refused") {
  const std::string tar = RawTar().File("f", std::string(300'000, 'r')).Bytes();
  for (const PackCompression compression : {PackCompression::kGzip, PackCompression::kZstd}) {
    std::string blob = Compress(tar, compression);
    SUBCASE("truncated") { CHECK(Refused(Layout(tar, blob.substr(0, blob.size() / 2))).err == EBADMSG); }
    SUBCASE("garbled") {
      for (size_t i = 20; i < 40; ++i) blob[i] = static_cast<char>(blob[i] ^ 0x5a);
      CHECK(Refused(Layout(tar, blob)).err == EBADMSG);
    }
  }
  SUBCASE("bomb") {
    const std::string bomb = RawTar().File("zeros", std::string(96 << 20, '\0')).Bytes();
    const base::Error error = Refused(Layout(bomb, Compress(bomb, PackCompression::kGzip)));
    CHECK(error.err == EFBIG);
    CHECK(Contains(error.message, "bomb"));
  }
  SUBCASE("more than the stream may have") {
    ImageLimits limits;
    limits.stream_bytes = 100'000;
    CHECK(Refused(Layout(tar, Compress(tar, PackCompression::kGzip)), limits).err == EFBIG);
  }
}

TEST_CASE("limits hold: entries, inodes, content, blob") {
  RawTar tar;
  for (int i = 0; i < 100; ++i) tar.File("f" + std::to_string(i), "0123456789");
  ImageLimits limits;
  limits.entries = 99;
  CHECK(RefusedTar(tar.Bytes(), limits).err == E2BIG);
  limits = {};
  limits.content_bytes = 999;
  CHECK(RefusedTar(tar.Bytes(), limits).err == EFBIG);
  limits = {};
  limits.blob_bytes = 1000;
  CHECK(RefusedTar(tar.Bytes(), limits).err == EFBIG);
  // Parents that are made count too: 64 names of 60 directories each, in 64 entries.
  RawTar parents;
  for (int i = 0; i < 64; ++i) {
    std::string path = std::to_string(i);
    for (int d = 0; d < 60; ++d) path += "/d";
    parents.Pax({{"path", path}}).File("x");
  }
  limits = {};
  limits.entries = 1000;
  CHECK(RefusedTar(parents.Bytes(), limits).err == E2BIG);
}

TEST_CASE("what is held in memory has a limit: names, link targets, attributes") {
  ImageLimits limits;
  limits.metadata_bytes = 10'000;
  const std::string long_name(200, 'n');
  const auto refused = [&limits](const RawTar& tar) {
    const base::Error error = RefusedTar(tar.Bytes(), limits);
    CHECK(error.err == E2BIG);
    CHECK(Contains(error.message, "10000 bytes"));
  };
  RawTar names, links, targets, attributes, directories, whiteouts;
  links.File("f", "x");
  for (int i = 0; i < 60; ++i) {
    const std::string number = std::to_string(i);
    names.Pax({{"path", long_name + number}}).File("x");
    links.Pax({{"path", long_name + number}}).HardLink("x", "f");
    directories.Pax({{"path", long_name + number + "/x"}}).File("x");
    whiteouts.Pax({{"path", ".wh." + long_name + number}}).File("x");
    targets.Pax({{"linkpath", long_name}}).Symlink(number, "y");
    attributes.Pax({{"SCHILY.xattr.user.a", long_name}}).File(number);
  }
  for (const RawTar* tar : {&names, &links, &targets, &attributes, &directories, &whiteouts}) refused(*tar);
  limits.metadata_bytes = 60 * 300;
  const TempDir dir;
  Layout(attributes.Bytes()).Write(dir / "layout");
  CHECK(ConvertLayers(*OpenImage(dir / "layout"), dir / "cache", {}, limits));
}

TEST_CASE("a compressed archive around the blobs may be no bomb either") {
  const TempDir dir;
  const std::string bomb = RawTar().File("zeros", std::string(96 << 20, '\0')).Bytes();
  for (const PackCompression compression : {PackCompression::kGzip, PackCompression::kZstd}) {
    Save(dir / "bomb", Compress(bomb, compression));
    const auto image = OpenImage(dir / "bomb");
    REQUIRE_FALSE(image);
    CHECK(image.error().err == EFBIG);
    CHECK(Contains(image.error().message, "bomb"));
  }
}

TEST_CASE("a million entries are the default's end") {
  // One file a million times, the smallest archive that has them: a compressed piece of it a hundred times,
  // as the whole has 512 MB.
  RawTar piece;
  for (int i = 0; i < 10'000; ++i) piece.File("f");
  const std::string frame = Compress(piece.Unfinished(), PackCompression::kZstd);
  std::string blob;
  for (int i = 0; i < 100; ++i) blob += frame;
  const std::string last = RawTar().File("f").Bytes();
  ImageLimits limits;
  limits.ratio = 100'000;
  const base::Error error = Refused(Layout(last, blob + Compress(last, PackCompression::kZstd)), limits);
  CHECK(error.err == E2BIG);
  CHECK(Contains(error.message, "1000000"));
}

}  // namespace
}  // namespace gcs::host::testing
