// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

// Container images on the host: reading (OCI image layout 1.1, `docker save` archives) and conversion of
// their layers to ext4 disks that a utility VM mounts read-only and stacks with overlayfs. Nothing of an
// image is ever extracted to a file system of the host; no function needs root. Functions are safe to call
// from several threads and processes.
namespace gcs::host {

// What a conversion refuses to exceed (E2BIG, EFBIG, ENAMETOOLONG). All per layer.
struct ImageLimits {
  uint64_t blob_bytes = 16ULL << 30;       // the blob as stored
  uint64_t stream_bytes = 64ULL << 30;     // the tar stream after decompression
  uint64_t content_bytes = 64ULL << 30;    // sum of the logical sizes of regular files
  uint64_t entries = 1'000'000;            // archive entries, and inodes made from them
  uint32_t path_bytes = 4096;              // a path or link target in the archive
  uint32_t depth = 128;                    // directories above an entry
  uint32_t xattr_bytes = 4000;             // names and values of one inode; the format ends near 4 KiB
  uint64_t metadata_bytes = 256ULL << 20;  // sum of names, link targets, attributes: kept in memory
  uint32_t ratio = 200;  // tar bytes per blob byte, counted after the first ratio_free_bytes
  uint64_t ratio_free_bytes = 64ULL << 20;

  // Whether a stream that has grown from `in` to `out` bytes is a decompression bomb.
  [[nodiscard]] bool IsBomb(uint64_t in, uint64_t out) const {
    return out > ratio_free_bytes && (out - ratio_free_bytes) / ratio > in;
  }
};

struct Platform {
  std::string os = "linux";
  std::string architecture = "amd64";
};

// The part of an image config that says how to run it (image-spec config.md, "config").
struct ImageConfig {
  std::string os;
  std::string architecture;
  std::string created;  // RFC 3339, may be empty
  std::vector<std::string> entrypoint;
  std::vector<std::string> cmd;
  std::vector<std::string> env;  // "NAME=value"
  std::string working_dir;       // empty: "/"
  std::string user;              // "user[:group]", names or numbers; empty: root
  std::string stop_signal;       // "SIGTERM", "15"; empty: default
  std::map<std::string, std::string> labels;
  std::vector<std::string> volumes;
  std::vector<std::string> exposed_ports;  // "80/tcp"
  std::string json;                        // the whole config blob, as verified
};

struct ImageLayer {
  std::string diff_id;     // digest of the tar stream, "sha256:<hex>" or "sha512:<hex>"
  std::string chain_id;    // of this layer on all below (image-spec config.md, "Layer ChainID")
  std::string digest;      // of the blob as stored; empty in a docker archive, which has none
  std::string media_type;  // as in the manifest; empty in a docker archive
  uint64_t size = 0;       // of the blob, bytes
  std::string location;    // where an archive without digests keeps it
};

class BlobStore;

struct Image {
  std::string name;             // the reference that was chosen; may be empty
  std::string manifest_digest;  // empty in a docker archive
  std::string config_digest;
  ImageConfig config;
  std::vector<ImageLayer> layers;  // lowest first
  std::shared_ptr<BlobStore> store;
};

// Opens `reference`: [oci:|oci-archive:|docker-archive:]PATH[:NAME]. PATH is an OCI layout directory, a tar
// of one, or a `docker save` tar; the archives may be compressed as a whole. NAME is a tag, an image name or
// a manifest digest; without it the archive must hold one image for `platform`. Manifest and config are
// verified here, layers when converted. Errors: ENOENT (path, name or blob), EBADMSG (malformed or digest
// mismatch), ENOTSUP (media type, platform), EEXIST (several images and no NAME), ELOOP (indexes nested too
// deep).
base::Result<Image> OpenImage(std::string_view reference, const Platform& platform = {});

struct LayerProgress {
  enum class Phase : uint8_t { kWaiting, kVerifying, kReading, kWriting, kDone, kCached };
  size_t index = 0;  // 0 is the lowest layer
  size_t count = 0;
  std::string diff_id;
  Phase phase = Phase::kWaiting;
  uint64_t done = 0;   // bytes of the blob (kVerifying, kReading) or of the disk (kWriting)
  uint64_t total = 0;  // 0: unknown
};
std::string_view PhaseName(LayerProgress::Phase phase);
// Called from the converting thread, at most some dozen times a second per layer; may be empty.
using ProgressFn = std::function<void(const LayerProgress&)>;

struct LayerDisk {
  std::string
      path;  // <cache>/layers/<alg>-<hex>.v<format>.ext4: an ext4 image without journal, mount ro,noload
  std::string diff_id;  // also decides the file system's UUID
  uint64_t bytes = 0;   // apparent size, a multiple of 4096
  bool cached = false;  // it was there already
  // Things the archive asked for that a layer must not carry: trusted.overlay.* attributes, aufs metadata. 0
  // when cached.
  uint64_t dropped = 0;
};

// Converts the layers that the cache lacks; the result is lowest first, ready for "lowerdir" in reverse
// order. A layer that an image repeats appears once, at its highest place: overlayfs refuses it twice and the
// lower one has no effect. The same tar stream gives the same bytes. A layer that fails leaves nothing in the
// cache; one that was not used for 30 days is removed.
base::Result<std::vector<LayerDisk>> ConvertLayers(const Image& image, const std::string& cache_root,
                                                   const ProgressFn& progress = {},
                                                   const ImageLimits& limits = {});

// The arguments of the container's process: entrypoint, then `args`, or the config's cmd when `args` is
// empty.
std::vector<std::string> CommandLine(const ImageConfig& config, const std::vector<std::string>& args);

}  // namespace gcs::host
