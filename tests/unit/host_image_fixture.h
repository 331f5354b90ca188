// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkdtemp

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "host/image/digest.h"
#include "host/image/image.h"
#include "host/image/pack.h"

// Archives made byte by byte, layouts around them, and eyes that are not the library's own: e2fsck and
// debugfs.
namespace gcs::host::testing {

class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/host_image_test.XXXXXX";
    REQUIRE(mkdtemp(name) != nullptr);
    path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void Save(const std::string& path, const std::string& content) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

inline std::string Load(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

// Output and exit status of a shell command.
inline std::pair<int, std::string> Shell(const std::string& command) {
  FILE* pipe = popen(("{ " + command + "; } 2>&1").c_str(), "re");
  REQUIRE(pipe != nullptr);
  std::string out;
  char buffer[4096];
  size_t got = 0;
  while ((got = fread(buffer, 1, sizeof buffer, pipe)) > 0) out.append(buffer, got);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128, out};
}

// A tar archive in raw blocks: says exactly what a test wants, sane or not.
class RawTar {
 public:
  struct Header {
    std::string name;
    char type = '0';
    std::string link = {};
    unsigned mode = 0644;
    unsigned uid = 0;
    unsigned gid = 0;
    unsigned long long mtime = 0;
    unsigned major = 0;
    unsigned minor = 0;
    long long declared = -1;  // size field when it differs from the content's
  };

  RawTar& Add(const Header& header, const std::string& content = {}) {
    std::string block(512, '\0');
    const auto octal = [&](size_t at, int width, unsigned long long value) {
      char text[32];
      snprintf(text, sizeof text, "%0*llo", width - 1, value);
      block.replace(at, static_cast<size_t>(width) - 1, text, static_cast<size_t>(width) - 1);
    };
    block.replace(0, header.name.size(), header.name);
    octal(100, 8, header.mode);
    octal(108, 8, header.uid);
    octal(116, 8, header.gid);
    octal(124, 12, header.declared >= 0 ? static_cast<unsigned long long>(header.declared) : content.size());
    octal(136, 12, header.mtime);
    block[156] = header.type;
    block.replace(157, header.link.size(), header.link);
    block.replace(257, 8, std::string("ustar\00000", 8));
    octal(329, 8, header.major);
    octal(337, 8, header.minor);
    block.replace(148, 8, "        ");
    unsigned sum = 0;
    for (const char c : block) sum += static_cast<unsigned char>(c);
    octal(148, 7, sum);
    bytes_ += block + content;
    bytes_.resize((bytes_.size() + 511) / 512 * 512, '\0');
    return *this;
  }
  RawTar& File(const std::string& name, const std::string& content = {}) {
    return Add({.name = name}, content);
  }
  RawTar& Dir(const std::string& name, unsigned mode = 0755) {
    return Add({.name = name, .type = '5', .mode = mode});
  }
  RawTar& Symlink(const std::string& name, const std::string& target) {
    return Add({.name = name, .type = '2', .link = target, .mode = 0777});
  }
  RawTar& HardLink(const std::string& name, const std::string& target) {
    return Add({.name = name, .type = '1', .link = target});
  }
  // A pax header for the entry that follows.
  RawTar& Pax(const std::vector<std::pair<std::string, std::string>>& records) {
    std::string body;
    for (const auto& [key, value] : records) {
      const std::string rest = " " + key + "=" + value + "\n";
      size_t length = rest.size() + 1;
      while (std::to_string(length).size() + rest.size() != length) ++length;
      body += std::to_string(length) + rest;
    }
    return Add({.name = "PaxHeaders/x", .type = 'x'}, body);
  }
  RawTar& Raw(const std::string& bytes) {
    bytes_ += bytes;
    return *this;
  }
  [[nodiscard]] std::string Bytes() const { return bytes_ + std::string(1024, '\0'); }
  [[nodiscard]] const std::string& Unfinished() const { return bytes_; }

 private:
  std::string bytes_;
};

inline std::string Sha256(const std::string& bytes) { return DigestOf("sha256", bytes)->ToString(); }

inline void SaveBlob(const std::string& layout, const std::string& bytes) {
  Save(layout + "/blobs/sha256/" + DigestOf("sha256", bytes)->hex, bytes);
}

inline std::string DescriptorJson(const std::string& type, const std::string& bytes,
                                  const std::string& more = {}) {
  return R"({"mediaType":")" + type + R"(","digest":")" + Sha256(bytes) + R"(","size":)" +
         std::to_string(bytes.size()) + more + "}";
}

// A layout of one layer whose parts a test may change before Write.
struct Layout {
  explicit Layout(const std::string& tar, const std::string& blob_bytes = {})
      : blob(blob_bytes.empty() ? tar : blob_bytes),
        diff_id(Sha256(tar)),
        digest(Sha256(blob)),
        size(blob.size()) {}

  std::string blob;
  std::string diff_id;
  std::string digest;
  size_t size;
  std::string media_type = "application/vnd.oci.image.layer.v1.tar";
  std::string architecture = "amd64";
  std::string run_config = R"({"Cmd":["/bin/sh"]})";

  [[nodiscard]] std::string Config() const {
    return R"({"os":"linux","architecture":")" + architecture + R"(","config":)" + run_config +
           R"(,"rootfs":{"type":"layers","diff_ids":[")" + diff_id + R"("]}})";
  }
  [[nodiscard]] std::string Manifest() const {
    return R"({"schemaVersion":2,"config":)" +
           DescriptorJson("application/vnd.oci.image.config.v1+json", Config()) +
           R"(,"layers":[{"mediaType":")" + media_type + R"(","digest":")" + digest + R"(","size":)" +
           std::to_string(size) + "}]}";
  }
  static std::string Index(const std::vector<std::string>& descriptors) {
    std::string out = R"({"schemaVersion":2,"manifests":[)";
    for (size_t i = 0; i < descriptors.size(); ++i) out += (i == 0 ? "" : ",") + descriptors[i];
    return out + "]}";
  }
  // Stores the blobs, returns the manifest's descriptor.
  [[nodiscard]] std::string WriteBlobs(const std::string& dir, const std::string& more = {}) const {
    Save(dir + "/blobs/sha256/" + digest.substr(7), blob);
    SaveBlob(dir, Config());
    SaveBlob(dir, Manifest());
    return DescriptorJson("application/vnd.oci.image.manifest.v1+json", Manifest(), more);
  }
  void Write(const std::string& dir) const {
    const std::string descriptor = WriteBlobs(dir);
    Save(dir + "/index.json", Index({descriptor}));
    Save(dir + "/oci-layout", R"({"imageLayoutVersion":"1.0.0"})");
  }
};

// The bytes of a compressed layer blob.
inline std::string Compress(const std::string& tar, PackCompression compression) {
  const TempDir dir;
  Save(dir / "in.tar", tar);
  PackOptions options;
  options.compression = compression;
  REQUIRE(PackImage(dir / "out", {{.files = {}, .tar = dir / "in.tar"}}, options));
  const auto image = OpenImage(dir / "out");
  REQUIRE(image);
  return Load(dir / ("out/blobs/sha256/" + image->layers[0].digest.substr(7)));
}

// Everything below a cache: what a failed conversion must not leave.
inline std::vector<std::string> FilesIn(const std::string& dir) {
  std::vector<std::string> out;
  std::error_code err;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir, err)) {
    if (!entry.is_directory()) out.push_back(entry.path());
  }
  return out;
}

// A converted single-layer image.
struct Converted {
  explicit Converted(const std::string& tar, const ImageLimits& limits = {}) {
    Layout(tar).Write(dir / "layout");
    const auto image = OpenImage(dir / "layout");
    REQUIRE_MESSAGE(image, (image ? "" : image.error().ToString()));
    auto disks = ConvertLayers(*image, dir / "cache", {}, limits);
    REQUIRE_MESSAGE(disks, (disks ? "" : disks.error().ToString()));
    disk = (*disks)[0];
    const auto [status, text] = Shell("e2fsck -fn " + disk.path);
    CHECK_MESSAGE(status == 0, text);
  }

  // debugfs' answer without its banner.
  [[nodiscard]] std::string Debugfs(const std::string& request) const {
    return Shell("debugfs -R '" + request + "' " + disk.path + " 2>/dev/null").second;
  }
  [[nodiscard]] std::string Stat(const std::string& path) const { return Debugfs("stat \"" + path + "\""); }
  [[nodiscard]] std::string Cat(const std::string& path) const { return Debugfs("cat \"" + path + "\""); }
  [[nodiscard]] bool Has(const std::string& path) const {
    return Stat(path).find("Inode:") != std::string::npos;
  }

  TempDir dir;
  LayerDisk disk;
};

inline bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace gcs::host::testing
