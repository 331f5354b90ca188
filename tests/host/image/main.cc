// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "host/cache.h"
#include "host/image/image.h"
#include "host/image/pack.h"

namespace gcs::host {
namespace {

using Json = nlohmann::json;

int Fail(const base::Error& error) {
  std::cerr << "oci-image: " << error.ToString() << "\n";
  return 1;
}

std::string Dump(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

int Inspect(const std::string& reference) {
  const auto image = OpenImage(reference);
  if (!image) return Fail(image.error());
  Json layers = Json::array();
  for (const ImageLayer& layer : image->layers) {
    layers.push_back({{"diff_id", layer.diff_id},
                      {"chain_id", layer.chain_id},
                      {"digest", layer.digest},
                      {"media_type", layer.media_type},
                      {"size", layer.size}});
  }
  const ImageConfig& config = image->config;
  std::cout << Dump({{"name", image->name},
                     {"manifest", image->manifest_digest},
                     {"config_digest", image->config_digest},
                     {"os", config.os},
                     {"architecture", config.architecture},
                     {"created", config.created},
                     {"entrypoint", config.entrypoint},
                     {"cmd", config.cmd},
                     {"env", config.env},
                     {"working_dir", config.working_dir},
                     {"user", config.user},
                     {"stop_signal", config.stop_signal},
                     {"labels", config.labels},
                     {"volumes", config.volumes},
                     {"exposed_ports", config.exposed_ports},
                     {"layers", layers}},
                    2)
            << "\n";
  return 0;
}

// One line per change of phase; on a terminal the line counts up in place.
void PrintProgress(const LayerProgress& progress) {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  static std::string last;
  const std::string head = "layer " + std::to_string(progress.index + 1) + "/" +
                           std::to_string(progress.count) + " " + progress.diff_id.substr(0, 19) + " " +
                           std::string(PhaseName(progress.phase));
  if (terminal) {
    std::cerr << "\r\033[K" << head << " " << (progress.done >> 20) << "/" << (progress.total >> 20)
              << " MiB";
    if (progress.phase == LayerProgress::Phase::kDone || progress.phase == LayerProgress::Phase::kCached) {
      std::cerr << "\n";
    }
  } else if (head != last) {
    std::cerr << head << "\n";
    last = head;
  }
}

int Convert(const std::string& reference, const std::string& cache, bool json, const ImageLimits& limits) {
  const auto image = OpenImage(reference);
  if (!image) return Fail(image.error());
  std::string root = cache;
  if (root.empty()) {
    auto found = CacheRoot();
    if (!found) return Fail(found.error());
    root = *std::move(found);
  }
  const auto disks = ConvertLayers(*image, root, PrintProgress, limits);
  if (!disks) {
    if (isatty(STDERR_FILENO) == 1) std::cerr << "\n";
    return Fail(disks.error());
  }
  Json out = Json::array();
  for (const LayerDisk& disk : *disks) {
    if (!json) std::cout << disk.path << "\n";
    out.push_back({{"path", disk.path},
                   {"diff_id", disk.diff_id},
                   {"bytes", disk.bytes},
                   {"cached", disk.cached},
                   {"dropped", disk.dropped}});
  }
  if (json) std::cout << Dump(out, 2) << "\n";
  return 0;
}

int Pack(const std::string& out, const std::vector<std::string>& inputs, const PackOptions& options,
         const TreeOptions& tree) {
  std::vector<PackLayer> layers;
  for (const std::string& input : inputs) {
    struct stat st{};
    if (stat(input.c_str(), &st) != 0) return Fail(base::Error{"stat", errno, input, {}});
    PackLayer layer;
    if (S_ISDIR(st.st_mode)) {
      auto files = ListTree(input, tree);
      if (!files) return Fail(files.error());
      layer.files = *std::move(files);
    } else {
      layer.tar = input;
    }
    layers.push_back(std::move(layer));
  }
  const auto digest = PackImage(out, layers, options);
  if (!digest) return Fail(digest.error());
  std::cout << *digest << "\n";
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app{"Reads, converts and makes container images"};
  app.require_subcommand(1);
  std::string reference, out, cache;
  bool json = false;
  ImageLimits limits;

  auto* inspect = app.add_subcommand("inspect", "Print what an image is, as JSON");
  inspect->add_option("REF", reference, "[oci:|oci-archive:|docker-archive:]PATH[:NAME]")->required();

  auto* convert =
      app.add_subcommand("convert", "Make ext4 disks of its layers; prints their paths, lowest first");
  convert->add_option("REF", reference, "[oci:|oci-archive:|docker-archive:]PATH[:NAME]")->required();
  convert->add_flag("--json", json, "Print an array of objects");
  convert->add_option("--cache", cache, "Cache directory (default: $GCS_CACHE or ~/.cache/lcow-gcs)");
  convert->add_option("--max-stream-bytes", limits.stream_bytes, "Limit of a layer's tar stream");
  convert->add_option("--max-content-bytes", limits.content_bytes, "Limit of a layer's files");
  convert->add_option("--max-entries", limits.entries, "Limit of a layer's entries");
  convert->add_option("--max-metadata-bytes", limits.metadata_bytes,
                      "Limit of a layer's names, link targets and attributes");
  convert->add_option("--max-ratio", limits.ratio, "Limit of a layer's compression ratio")
      ->check(CLI::PositiveNumber);

  std::string busybox = "/bin/busybox";
  auto* make_default =
      app.add_subcommand("make-default", "Make the default image (OCI layout) from a static busybox");
  make_default->add_option("OUT_DIR", out)->required();
  make_default->add_option("--busybox", busybox, "The program to take");

  PackOptions options;
  TreeOptions tree;
  std::vector<std::string> inputs;
  bool zstd = false, plain = false;
  auto* pack = app.add_subcommand(
      "pack", "Make an image (OCI layout) of directories and tar files, lowest layer first");
  pack->add_option("OUT_DIR", out)->required();
  pack->add_option("LAYER", inputs, "Directory or uncompressed tar file")->required();
  pack->add_option("--name", options.name, "Image name with tag, or a tag");
  pack->add_option("--cmd", options.config.cmd, "Default arguments")->expected(1, 64);
  pack->add_option("--entrypoint", options.config.entrypoint, "Entry point")->expected(1, 64);
  pack->add_option("--env", options.config.env, "NAME=value");
  pack->add_option("--workdir", options.config.working_dir);
  pack->add_option("--user", options.config.user);
  pack->add_option("--mtime", tree.mtime, "Seconds since the epoch for all files of a directory")
      ->envname("SOURCE_DATE_EPOCH");
  pack->add_flag("--keep-owners", tree.keep_owners, "Keep a directory's owners instead of root");
  pack->add_flag("--zstd", zstd, "Compress by zstd");
  pack->add_flag("--uncompressed", plain, "Store plain tar")->excludes("--zstd");

  CLI11_PARSE(app, argc, argv);
  if (*inspect) return Inspect(reference);
  if (*convert) return Convert(reference, cache, json, limits);
  if (*make_default) {
    const auto digest = MakeDefaultImage(out, busybox);
    if (!digest) return Fail(digest.error());
    std::cout << *digest << "\n";
    return 0;
  }
  options.compression = zstd    ? PackCompression::kZstd
                        : plain ? PackCompression::kNone
                                : PackCompression::kGzip;
  return Pack(out, inputs, options, tree);
}

}  // namespace
}  // namespace gcs::host

int main(int argc, char** argv) { return gcs::host::Main(argc, argv); }
