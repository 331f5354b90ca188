// SPDX-License-Identifier: Apache-2.0
#include <chrono>

#include "host/cache.h"
#include "host_image_fixture.h"

namespace gcs::host::testing {
namespace {

const char kIndexType[] = "application/vnd.oci.image.index.v1+json";

std::string SmallTar(const std::string& text = "x") { return RawTar().File("f", text).Bytes(); }

void WriteIndex(const std::string& dir, const std::vector<std::string>& descriptors) {
  Save(dir + "/index.json", Layout::Index(descriptors));
  Save(dir + "/oci-layout", R"({"imageLayoutVersion":"1.0.0"})");
}

std::string Named(const std::string& name) {
  return R"(,"annotations":{"org.opencontainers.image.ref.name":")" + name + R"("})";
}

std::string On(const std::string& architecture) {
  return R"(,"platform":{"os":"linux","architecture":")" + architecture + R"("})";
}

TEST_CASE("an image's config is read whole") {
  const TempDir dir;
  Layout layout(SmallTar());
  layout.run_config =
      R"({"Entrypoint":["/init","-x"],"Cmd":["serve"],"Env":["A=1","B=2"],"WorkingDir":"/srv","User":"1000:100",
          "StopSignal":"SIGQUIT","Labels":{"k":"v"},"Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}},"Healthcheck":null})";
  layout.Write(dir / "l");
  const auto image = OpenImage(dir / "l");
  REQUIRE_MESSAGE(image, (image ? "" : image.error().ToString()));
  CHECK(image->config.entrypoint == std::vector<std::string>{"/init", "-x"});
  CHECK(image->config.env == std::vector<std::string>{"A=1", "B=2"});
  CHECK(image->config.working_dir == "/srv");
  CHECK(image->config.user == "1000:100");
  CHECK(image->config.stop_signal == "SIGQUIT");
  CHECK(image->config.labels.at("k") == "v");
  CHECK(image->config.volumes == std::vector<std::string>{"/data"});
  CHECK(image->config.exposed_ports == std::vector<std::string>{"80/tcp"});
  CHECK(CommandLine(image->config, {}) == std::vector<std::string>{"/init", "-x", "serve"});
  CHECK(CommandLine(image->config, {"a"}) == std::vector<std::string>{"/init", "-x", "a"});
  CHECK(image->layers.at(0).chain_id == layout.diff_id);
}

TEST_CASE("the platform and the name choose among several images") {
  const TempDir dir;
  const std::string root = dir / "l";
  Layout amd(SmallTar("amd"));
  Layout arm(SmallTar("arm"));
  arm.architecture = "arm64";
  Layout other(SmallTar("other"));
  const std::string nested = Layout::Index(
      {arm.WriteBlobs(root, On("arm64")), amd.WriteBlobs(root, On("amd64")),
       DescriptorJson(kIndexType, "x").replace(14, sizeof kIndexType - 1, "application/x-signature")});
  SaveBlob(root, nested);
  WriteIndex(root, {DescriptorJson(kIndexType, nested, Named("1.0")),
                    other.WriteBlobs(root, Named("docker.io/lib/app:2.0"))});
  const auto by_tag = OpenImage(root + ":1.0");
  REQUIRE_MESSAGE(by_tag, (by_tag ? "" : by_tag.error().ToString()));
  CHECK(by_tag->layers[0].diff_id == amd.diff_id);
  CHECK(by_tag->name == "1.0");
  CHECK(OpenImage(root + ":1.0", {"linux", "arm64"})->layers[0].diff_id == arm.diff_id);
  for (const char* name : {":2.0", ":app:2.0", ":docker.io/lib/app:2.0"}) {
    const auto image = OpenImage("oci:" + root + name);
    REQUIRE_MESSAGE(image, name);
    CHECK(image->layers[0].diff_id == other.diff_id);
  }
  CHECK(OpenImage(root + ":" + Sha256(other.Manifest()))->layers[0].diff_id == other.diff_id);
  const auto ambiguous = OpenImage(root);
  REQUIRE_FALSE(ambiguous);
  CHECK(ambiguous.error().err == EEXIST);
  CHECK(Contains(ambiguous.error().message, "1.0"));
  const auto absent = OpenImage(root + ":3.0");
  REQUIRE_FALSE(absent);
  CHECK(absent.error().err == ENOENT);
  CHECK(OpenImage(root + ":1.0", {"linux", "s390x"}).error().err == ENOENT);
  CHECK(OpenImage(root + ":2.0", {"linux", "s390x"}).error().err == ENOTSUP);
}

TEST_CASE("archives of a layout and of docker save are read in place") {
  const TempDir dir;
  const Layout layout(SmallTar("archived"));
  layout.Write(dir / "l");
  REQUIRE(Shell("tar -C " + (dir / "l") + " -cf " + (dir / "a.tar") + " .").first == 0);
  REQUIRE(Shell("gzip -k " + (dir / "a.tar")).first == 0);
  for (const char* name : {"a.tar", "a.tar.gz"}) {
    const auto image = OpenImage(dir / name);
    REQUIRE_MESSAGE(image, (image ? name : image.error().ToString()));
    CHECK(image->layers[0].diff_id == layout.diff_id);
    CHECK(ConvertLayers(*image, dir / (std::string("cache-") + name)));
  }
  // Docker's own form: plain layers, the second name of one a symbolic link.
  const std::string config = layout.Config();
  const std::string two =
      R"({"os":"linux","architecture":"amd64","config":{"Cmd":["a"]},"rootfs":{"type":"layers","diff_ids":[")" +
      layout.diff_id + R"(",")" + layout.diff_id + R"("]}})";
  const auto docker = [&](const std::string& config_text, const std::string& config_name) {
    Save(dir / "docker.tar",
         RawTar()
             .File("manifest.json",
                   R"([{"Config":")" + config_name +
                       R"(","RepoTags":["app:1"],"Layers":["one/layer.tar","two/layer.tar"]}])")
             .File(config_name, config_text)
             .File("one/layer.tar", layout.blob)
             .Symlink("two/layer.tar", "../one/layer.tar")
             .Bytes());
    return OpenImage("docker-archive:" + (dir / "docker.tar") + ":app:1");
  };
  const auto image = docker(two, Sha256(two).substr(7, 64) + ".json");
  const std::string why = image ? "" : image.error().ToString();
  // The config's name is too long for a plain header: 69 bytes fit.
  REQUIRE_MESSAGE(image, why);
  CHECK(image->layers.size() == 2);
  const auto disks = ConvertLayers(*image, dir / "cache-docker");
  REQUIRE(disks);
  CHECK(disks->size() == 1);  // the repeated layer appears once
  const auto forged = docker(two, Sha256("other").substr(7, 64) + ".json");
  REQUIRE_FALSE(forged);
  CHECK(forged.error().step == "verify blob digest");
  CHECK_FALSE(docker(config, "config.json"));  // one diff_id, two layers
  const auto outside = [&] {
    Save(dir / "evil.tar", RawTar()
                               .File("manifest.json", R"([{"Config":"c","Layers":["l"]}])")
                               .Symlink("c", "../../etc/passwd")
                               .Bytes());
    return OpenImage(dir / "evil.tar");
  }();
  REQUIRE_FALSE(outside);
  CHECK(outside.error().err == EBADMSG);
}

TEST_CASE("malformed and hostile layouts are refused") {
  const TempDir dir;
  const std::string root = dir / "l";
  const auto open = [&](const std::string& index) {
    Save(root + "/index.json", index);
    Save(root + "/oci-layout", R"({"imageLayoutVersion":"1.0.0"})");
    const auto image = OpenImage(root);
    REQUIRE_FALSE(image);
    CHECK_FALSE(image.error().object.empty());
    return image.error();
  };
  SUBCASE("indexes in each other") {
    std::string index = Layout::Index({});
    for (int i = 0; i < 10; ++i) {
      SaveBlob(root, index);
      index = Layout::Index({DescriptorJson(kIndexType, index)});
    }
    CHECK(open(index).err == ELOOP);
  }
  SUBCASE("an index that names itself cannot have its own digest") {
    const std::string digest = Sha256("anything");
    const std::string self = R"({"manifests":[{"mediaType":")" + std::string(kIndexType) + R"(","digest":")" +
                             digest + R"(","size":)";
    const std::string index = self + "200}]}";
    const std::string padded = index + std::string(200 - index.size() % 200, ' ');
    Save(root + "/blobs/sha256/" + digest.substr(7), padded.substr(0, 200));
    CHECK(open(index).step == "verify blob digest");
  }
  SUBCASE("one index a hundred times over") {
    std::string leaf = Layout::Index({});
    SaveBlob(root, leaf);
    CHECK(open(Layout::Index(std::vector<std::string>(100, DescriptorJson(kIndexType, leaf)))).err == E2BIG);
  }
  SUBCASE("deep JSON") { CHECK(Contains(open(std::string(100'000, '[')).message, "deeper")); }
  SUBCASE("no JSON") { CHECK(open("{\"manifests\":").err == EBADMSG); }
  SUBCASE("wrong types") {
    CHECK(open(R"({"manifests":{}})").err == EBADMSG);
    CHECK(open(R"({"manifests":[7]})").err == EBADMSG);
    CHECK(open(R"({"manifests":[{"digest":5,"size":1}]})").err == EBADMSG);
    CHECK(open(R"({"manifests":[{"digest":")" + Sha256("x") + R"(","size":-1}]})").err == EBADMSG);
  }
  SUBCASE("digest with a path in it") {
    CHECK(open(R"({"manifests":[{"digest":"sha256:../../../../etc/passwd","size":1}]})").step ==
          "parse digest");
    CHECK(open(R"({"manifests":[{"digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":1}]})").step ==
          "parse digest");
  }
  SUBCASE("no image at all") { CHECK(open(Layout::Index({})).err == ENOENT); }
  SUBCASE("unknown layer type") {
    Layout layout(SmallTar());
    layout.media_type = "application/vnd.oci.image.layer.v1.tar+encrypted";
    const base::Error error = open(Layout::Index({layout.WriteBlobs(root)}));
    CHECK(error.err == ENOTSUP);
    CHECK(Contains(error.message, "encrypted"));
  }
  SUBCASE("config of another platform") {
    Layout layout(SmallTar());
    layout.architecture = "riscv64";
    CHECK(open(Layout::Index({layout.WriteBlobs(root)})).err == ENOTSUP);
  }
  SUBCASE("config with a wrong member") {
    Layout layout(SmallTar());
    layout.run_config = R"({"Env":"A=1"})";
    CHECK(Contains(open(Layout::Index({layout.WriteBlobs(root)})).message, "Env"));
  }
  SUBCASE("diff_ids and layers that differ in number") {
    Layout layout(SmallTar());
    layout.diff_id += "\",\"" + layout.diff_id;
    CHECK(Contains(open(Layout::Index({layout.WriteBlobs(root)})).message, "2 diff_ids for 1 layers"));
  }
}

TEST_CASE("what is no image is told apart from what is missing") {
  const TempDir dir;
  CHECK(OpenImage(dir / "none").error().err == ENOENT);
  CHECK(OpenImage(dir.path()).error().err == EBADMSG);
  Save(dir / "text", "hello");
  CHECK(OpenImage(dir / "text").error().err == EBADMSG);
  CHECK(OpenImage("/dev/null").error().err == EINVAL);
}

TEST_CASE("packing is reproducible and what it packs comes back") {
  const TempDir dir;
  for (const char* name : {"tree/etc", "tree/d"}) std::filesystem::create_directories(dir / name);
  Save(dir / "tree/etc/a", "A");
  std::filesystem::create_hard_link(dir / "tree/etc/a", dir / "tree/etc/b");
  std::filesystem::create_symlink("etc/a", dir / "tree/link");
  PackOptions options;
  options.name = "docker.io/lcow/agent:dev";
  const auto files = ListTree(dir / "tree", {.keep_owners = false, .mtime = 5});
  REQUIRE(files);
  const auto first = PackImage(dir / "one", {{.files = *files}}, options);
  const auto second = PackImage(dir / "two", {{.files = *files}}, options);
  REQUIRE(first);
  CHECK(*first == *second);
  CHECK(Load(dir / "one/index.json") == Load(dir / "two/index.json"));
  CHECK(Contains(Load(dir / "one/index.json"), R"("io.containerd.image.name":"docker.io/lcow/agent:dev")"));
  CHECK(Contains(Load(dir / "one/index.json"), R"("platform":{"architecture":"amd64","os":"linux"})"));
  const auto image = OpenImage((dir / "one") + ":dev");
  REQUIRE_MESSAGE(image, (image ? "" : image.error().ToString()));
  const auto disks = ConvertLayers(*image, dir / "cache");
  REQUIRE(disks);
  const std::string disk = (*disks)[0].path;
  CHECK(Shell("e2fsck -fn " + disk).first == 0);
  CHECK(Shell("debugfs -R 'cat /etc/b' " + disk + " 2>/dev/null").second == "A");
  CHECK(Contains(Shell("debugfs -R 'stat /etc/b' " + disk).second, "Links: 2"));
  CHECK_FALSE(PackImage(dir / "one", {{.files = *files}}, options));  // never into an existing layout
}

TEST_CASE("the default image holds a shell and is made the same twice") {
  const TempDir dir;
  const auto first = MakeDefaultImage(dir / "one");
  REQUIRE_MESSAGE(first, (first ? "" : first.error().ToString()));
  CHECK(*first == *MakeDefaultImage(dir / "two"));
  const auto image = OpenImage(dir / "one");
  REQUIRE(image);
  CHECK(image->config.cmd == std::vector<std::string>{"/bin/sh"});
  CHECK(image->layers.size() == 2);
  const auto disks = ConvertLayers(*image, dir / "cache");
  REQUIRE(disks);
  for (const LayerDisk& disk : *disks) CHECK(Shell("e2fsck -fn " + disk.path).first == 0);
  CHECK(Contains(Shell("debugfs -R 'stat /tmp' " + (*disks)[0].path).second, "Mode:  01777"));
  CHECK(Contains(Shell("debugfs -R 'stat /bin/sh' " + (*disks)[1].path).second,
                 "Fast link dest: \"/bin/busybox\""));
  CHECK(Contains(Shell("debugfs -R 'cat /etc/passwd' " + (*disks)[0].path).second, "root:x:0:0"));
}

TEST_CASE("the cache forgets layers that were not used for 30 days") {
  using std::chrono::hours;
  const TempDir dir;
  Layout(SmallTar()).Write(dir / "l");
  const auto first = ConvertLayers(*OpenImage(dir / "l"), dir / "cache");
  REQUIRE(first);
  const auto age = [](const std::string& path, int days) {
    std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - hours(24 * days));
  };
  const std::string old = dir / "cache/layers/old.ext4";
  const std::string recent = dir / "cache/layers/recent.ext4";
  Save(old, "x");
  Save(recent, "x");
  age(old, 31);
  age(recent, 29);
  age((*first)[0].path, 31);
  const auto second = ConvertLayers(*OpenImage(dir / "l"), dir / "cache");
  REQUIRE(second);
  CHECK((*second)[0].cached);
  CHECK(std::filesystem::last_write_time((*second)[0].path) >
        std::filesystem::file_time_type::clock::now() - hours(1));
  CHECK_FALSE(std::filesystem::exists(old));
  CHECK(std::filesystem::exists(recent));
}

TEST_CASE("the cache root comes from the environment, in order") {
  const char* old = getenv("GCS_CACHE");
  const std::string saved = old != nullptr ? old : "";
  setenv("GCS_CACHE", "/somewhere", 1);
  CHECK(*CacheRoot() == "/somewhere");
  setenv("GCS_CACHE", "relative", 1);
  CHECK_FALSE(CacheRoot());
  unsetenv("GCS_CACHE");
  const char* xdg = getenv("XDG_CACHE_HOME");
  CHECK(CacheRoot()->ends_with("/lcow-gcs"));
  if (xdg == nullptr) {
    const char* home = getenv("HOME");
    const std::string saved_home = home != nullptr ? home : "";
    setenv("HOME", "/home/somebody", 1);
    CHECK(*CacheRoot() == "/home/somebody/.cache/lcow-gcs");
    unsetenv("HOME");
    CHECK(*CacheRoot() == "/root/.cache/lcow-gcs");
    if (home != nullptr) setenv("HOME", saved_home.c_str(), 1);
  }
  if (old != nullptr) setenv("GCS_CACHE", saved.c_str(), 1);
}

}  // namespace
}  // namespace gcs::host::testing
