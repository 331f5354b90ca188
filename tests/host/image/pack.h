// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "host/image/image.h"

namespace gcs::host {

// Writing images: small and reproducible, for the default image, the images that linuxkit.yml names, and
// tests. The same input gives the same bytes (with the same libarchive and compression libraries).

// An entry of a layer to be written, in the order given.
struct PackFile {
  std::string path;   // relative, without ".."; the packer writes what it is told otherwise
  uint32_t mode = 0;  // with S_IFMT
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::string content;         // of a regular file
  std::string source = {};     // or the host's file to take it from
  std::string link = {};       // target of a symbolic link
  std::string hard_link = {};  // path of an earlier entry
  uint32_t rdev_major = 0;
  uint32_t rdev_minor = 0;
  int64_t mtime = 0;  // seconds
  std::vector<std::pair<std::string, std::string>> xattrs = {};
};

enum class PackCompression : uint8_t { kNone, kGzip, kZstd };

// A layer: entries, or a tar file that is stored as it is (compressed).
struct PackLayer {
  std::vector<PackFile> files;
  std::string tar = {};
};

struct PackOptions {
  ImageConfig config;  // os and architecture default to linux/amd64; `json` is ignored
  // "docker.io/lcow/agent:dev" goes into io.containerd.image.name and its tag into
  // org.opencontainers.image.ref.name; a bare "dev" is only the latter. Empty: none.
  std::string name = {};
  PackCompression compression = PackCompression::kGzip;
};

// Makes the OCI layout directory `out`, which must not exist or be an empty directory. Returns the manifest's
// digest. A failed call leaves what it wrote: the caller owns `out`.
base::Result<std::string> PackImage(const std::string& out, const std::vector<PackLayer>& layers,
                                    const PackOptions& options);

struct TreeOptions {
  bool keep_owners = false;  // otherwise all belongs to root
  int64_t mtime = 0;         // of every entry
};
// A host directory as entries: names in byte order, hard links and user./security./trusted. attributes kept,
// sockets refused.
base::Result<std::vector<PackFile>> ListTree(const std::string& dir, const TreeOptions& options);

// The image that runs when nobody names one: Debian's static busybox with its applets, two layers, Cmd
// /bin/sh.
base::Result<std::string> MakeDefaultImage(const std::string& out,
                                           const std::string& busybox = "/bin/busybox");

}  // namespace gcs::host
