// SPDX-License-Identifier: Apache-2.0
#include "host/image/image.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "host/image/blob_store.h"
#include "host/image/digest.h"
#include "host/image/json.h"

namespace gcs::host {
namespace {

// Indexes, manifests and configs; registries refuse manifests above 4 MiB.
constexpr size_t kMaxDocument = 8 << 20;
constexpr int kMaxIndexDepth = 4;
constexpr int kMaxIndexes = 64;  // in all: an index may name the same one many times
constexpr size_t kMaxLayers = 500;

constexpr std::array<std::string_view, 2> kIndexTypes = {
    "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"};
constexpr std::array<std::string_view, 2> kManifestTypes = {
    "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"};
constexpr std::array<std::string_view, 2> kConfigTypes = {"application/vnd.oci.image.config.v1+json",
                                                          "application/vnd.docker.container.image.v1+json"};
constexpr std::array<std::string_view, 11> kLayerTypes = {
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"};

template <size_t N>
bool IsOneOf(const std::array<std::string_view, N>& list, std::string_view value) {
  return std::ranges::find(list, value) != list.end();
}

struct Descriptor {
  std::string media_type;
  Digest digest;
  uint64_t size = 0;
  std::string os;  // both empty without a platform
  std::string architecture;
  std::vector<std::string> names;  // tag and image names that annotations give it
};

base::Result<Descriptor> ReadDescriptor(const Json& json, const std::string& name) {
  Descriptor out;
  GCS_ASSIGN(out.media_type, StringMember(json, "mediaType", name));
  GCS_ASSIGN(const std::string digest, StringMember(json, "digest", name));
  if (digest.empty())
    return base::MakeError(EBADMSG, "read descriptor", name, "member \"digest\" is missing");
  GCS_ASSIGN(out.digest, ParseDigest(digest));
  const Json* size = Member(json, "size");
  if (size == nullptr || !size->is_number_unsigned()) {
    return base::MakeError(EBADMSG, "read descriptor", name, "member \"size\" is not a size");
  }
  out.size = size->get<uint64_t>();
  if (const Json* platform = Member(json, "platform")) {
    GCS_ASSIGN(out.os, StringMember(*platform, "os", name));
    GCS_ASSIGN(out.architecture, StringMember(*platform, "architecture", name));
  }
  if (const Json* annotations = Member(json, "annotations")) {
    for (const char* key : {"io.containerd.image.name", "org.opencontainers.image.ref.name"}) {
      GCS_ASSIGN(std::string value, StringMember(*annotations, key, name));
      if (!value.empty()) out.names.push_back(std::move(value));
    }
  }
  return out;
}

// The blob of a descriptor, whole and verified.
base::Result<std::string> ReadVerified(const BlobStore& store, const Descriptor& descriptor) {
  GCS_ASSIGN(const Blob blob, store.OpenDigest(descriptor.digest));
  if (blob.size != descriptor.size) {
    return base::MakeError(EBADMSG, "verify blob size", blob.name,
                           "has " + std::to_string(blob.size) + " bytes, its descriptor says " +
                               std::to_string(descriptor.size));
  }
  GCS_ASSIGN(std::string content, blob.ReadAll(kMaxDocument));
  GCS_ASSIGN(const Digest digest, DigestOf(descriptor.digest.algorithm, content));
  if (digest != descriptor.digest) {
    return base::MakeError(EBADMSG, "verify blob digest", blob.name, "content has " + digest.ToString());
  }
  return content;
}

base::Result<std::vector<std::string>> KeysMember(const Json& object, const char* key,
                                                  const std::string& name) {
  std::vector<std::string> keys;
  const Json* value = Member(object, key);
  if (value == nullptr) return keys;
  if (!value->is_object()) {
    return base::MakeError(EBADMSG, "read config", name,
                           std::string("member \"") + key + "\" is not an object");
  }
  for (const auto& item : value->items()) keys.push_back(item.key());
  return keys;
}

base::Result<ImageConfig> ReadConfig(const Json& json, const std::string& name) {
  if (!json.is_object()) return base::MakeError(EBADMSG, "read config", name, "not an object");
  ImageConfig config;
  GCS_ASSIGN(config.os, StringMember(json, "os", name));
  GCS_ASSIGN(config.architecture, StringMember(json, "architecture", name));
  GCS_ASSIGN(config.created, StringMember(json, "created", name));
  const Json* run = Member(json, "config");
  if (run == nullptr) return config;
  if (!run->is_object())
    return base::MakeError(EBADMSG, "read config", name, "member \"config\" is not an object");
  GCS_ASSIGN(config.entrypoint, StringsMember(*run, "Entrypoint", name));
  GCS_ASSIGN(config.cmd, StringsMember(*run, "Cmd", name));
  GCS_ASSIGN(config.env, StringsMember(*run, "Env", name));
  GCS_ASSIGN(config.working_dir, StringMember(*run, "WorkingDir", name));
  GCS_ASSIGN(config.user, StringMember(*run, "User", name));
  GCS_ASSIGN(config.stop_signal, StringMember(*run, "StopSignal", name));
  GCS_ASSIGN(config.volumes, KeysMember(*run, "Volumes", name));
  GCS_ASSIGN(config.exposed_ports, KeysMember(*run, "ExposedPorts", name));
  GCS_ASSIGN(const std::vector<std::string> labels, KeysMember(*run, "Labels", name));
  for (const std::string& label : labels) {
    GCS_ASSIGN(config.labels[label], StringMember(*Member(*run, "Labels"), label.c_str(), name));
  }
  return config;
}

// Fills config and diff_ids; `layers` of the image must be there already.
base::Result<> ApplyConfig(Image& image, std::string text, const std::string& name,
                           const Platform& platform) {
  GCS_ASSIGN(const Json json, ParseJson(text, name));
  GCS_ASSIGN(image.config, ReadConfig(json, name));
  image.config.json = std::move(text);
  if (image.config.os != platform.os || image.config.architecture != platform.architecture) {
    return base::MakeError(ENOTSUP, "choose platform", name,
                           "the image is for " + image.config.os + "/" + image.config.architecture +
                               ", wanted " + platform.os + "/" + platform.architecture);
  }
  const Json* rootfs = Member(json, "rootfs");
  if (rootfs == nullptr) return base::MakeError(EBADMSG, "read config", name, "member \"rootfs\" is missing");
  GCS_ASSIGN(const std::string type, StringMember(*rootfs, "type", name));
  if (type != "layers")
    return base::MakeError(ENOTSUP, "read config", name, "rootfs.type is \"" + type + "\"");
  GCS_ASSIGN(const std::vector<std::string> diff_ids, StringsMember(*rootfs, "diff_ids", name));
  if (diff_ids.size() != image.layers.size()) {
    return base::MakeError(
        EBADMSG, "read config", name,
        std::to_string(diff_ids.size()) + " diff_ids for " + std::to_string(image.layers.size()) + " layers");
  }
  if (diff_ids.empty()) return base::MakeError(ENOTSUP, "read config", name, "the image has no layers");
  std::string chain;
  for (size_t i = 0; i < diff_ids.size(); ++i) {
    if (diff_ids[i].empty()) return base::MakeError(EBADMSG, "read config", name, "empty diff_id");
    GCS_ASSIGN(const Digest diff_id, ParseDigest(diff_ids[i]));
    if (i == 0) {
      chain = diff_ids[0];
    } else {
      GCS_ASSIGN(const Digest next, DigestOf(diff_id.algorithm, chain + " " + diff_ids[i]));
      chain = next.ToString();
    }
    image.layers[i].diff_id = diff_id.ToString();
    image.layers[i].chain_id = chain;
  }
  return {};
}

base::Result<> LoadManifest(Image& image, const Descriptor& descriptor, const Platform& platform) {
  const std::string name = descriptor.digest.ToString();
  GCS_ASSIGN(const std::string text, ReadVerified(*image.store, descriptor));
  GCS_ASSIGN(const Json json, ParseJson(text, name));
  const Json* config = Member(json, "config");
  const Json* layers = Member(json, "layers");
  if (config == nullptr || layers == nullptr || !layers->is_array()) {
    return base::MakeError(EBADMSG, "read manifest", name, "it lacks config or layers");
  }
  if (layers->size() > kMaxLayers)
    return base::MakeError(E2BIG, "read manifest", name, "more than 500 layers");
  image.manifest_digest = name;
  for (const Json& item : *layers) {
    GCS_ASSIGN(const Descriptor layer, ReadDescriptor(item, name));
    if (!IsOneOf(kLayerTypes, layer.media_type)) {
      return base::MakeError(ENOTSUP, "read manifest", name, "layer media type \"" + layer.media_type + "\"");
    }
    image.layers.push_back(
        {.digest = layer.digest.ToString(), .media_type = layer.media_type, .size = layer.size});
  }
  GCS_ASSIGN(const Descriptor config_descriptor, ReadDescriptor(*config, name));
  if (!IsOneOf(kConfigTypes, config_descriptor.media_type)) {
    return base::MakeError(ENOTSUP, "read manifest", name,
                           "config media type \"" + config_descriptor.media_type + "\"");
  }
  image.config_digest = config_descriptor.digest.ToString();
  GCS_ASSIGN(std::string config_text, ReadVerified(*image.store, config_descriptor));
  return ApplyConfig(image, std::move(config_text), image.config_digest, platform);
}

bool NameMatches(const std::string& have, std::string_view want) {
  if (have == want) return true;
  // "name:1.0" is found by its tag alone, "docker.io/library/name:1.0" by "name:1.0" too.
  return have.size() > want.size() && have.ends_with(want) &&
         (have[have.size() - want.size() - 1] == ':' || have[have.size() - want.size() - 1] == '/');
}

struct Candidate {
  Descriptor descriptor;
  std::string name;  // of the nearest index entry that has one
};

// All manifests below an index that `wanted` and the platform leave.
base::Result<> Collect(const BlobStore& store, const Json& index, const std::string& index_name,
                       const std::string& inherited, bool matched, std::string_view wanted,
                       const Platform& platform, int depth, int& budget, std::vector<Candidate>& out) {
  if (depth > kMaxIndexDepth) {
    return base::MakeError(ELOOP, "read index", index_name, "indexes are nested deeper than 4");
  }
  if (--budget < 0) return base::MakeError(E2BIG, "read index", index_name, "more than 64 indexes");
  const Json* manifests = Member(index, "manifests");
  if (manifests == nullptr || !manifests->is_array()) {
    return base::MakeError(EBADMSG, "read index", index_name, "it lacks \"manifests\"");
  }
  for (const Json& item : *manifests) {
    GCS_ASSIGN(const Descriptor descriptor, ReadDescriptor(item, index_name));
    const bool named =
        matched || wanted.empty() || descriptor.digest.ToString() == wanted ||
        std::ranges::any_of(descriptor.names, [&](const auto& name) { return NameMatches(name, wanted); });
    const std::string name = descriptor.names.empty() ? inherited : descriptor.names.front();
    if (IsOneOf(kIndexTypes, descriptor.media_type)) {
      GCS_ASSIGN(const std::string text, ReadVerified(store, descriptor));
      GCS_ASSIGN(const Json nested, ParseJson(text, descriptor.digest.ToString()));
      GCS_TRY(Collect(store, nested, descriptor.digest.ToString(), name, named, wanted, platform, depth + 1,
                      budget, out));
      continue;
    }
    // Other types (signatures, attestations) are no images; without a platform the config decides.
    if (!named || !IsOneOf(kManifestTypes, descriptor.media_type)) continue;
    if (!descriptor.os.empty() &&
        (descriptor.os != platform.os || descriptor.architecture != platform.architecture)) {
      continue;
    }
    const bool seen = std::ranges::any_of(
        out, [&](const Candidate& other) { return other.descriptor.digest == descriptor.digest; });
    if (!seen) out.push_back({descriptor, name});
  }
  return {};
}

base::Result<Image> OpenLayout(std::shared_ptr<BlobStore> store, const std::string& path,
                               std::string_view wanted, const Platform& platform) {
  GCS_ASSIGN(const Blob layout, store->Open("oci-layout"));
  GCS_ASSIGN(const std::string layout_text, layout.ReadAll(kMaxDocument));
  GCS_ASSIGN(const Json layout_json, ParseJson(layout_text, layout.name));
  GCS_ASSIGN(const std::string version, StringMember(layout_json, "imageLayoutVersion", layout.name));
  if (!version.starts_with("1.")) {
    return base::MakeError(ENOTSUP, "read layout", layout.name, "imageLayoutVersion \"" + version + "\"");
  }
  GCS_ASSIGN(const Blob index, store->Open("index.json"));
  GCS_ASSIGN(const std::string text, index.ReadAll(kMaxDocument));
  GCS_ASSIGN(const Json json, ParseJson(text, index.name));
  std::vector<Candidate> candidates;
  int budget = kMaxIndexes;
  GCS_TRY(Collect(*store, json, index.name, "", false, wanted, platform, 1, budget, candidates));
  if (candidates.empty()) {
    return base::MakeError(
        ENOENT, "choose image", path,
        (wanted.empty() ? std::string("no image") : "no image \"" + std::string(wanted) + "\"") + " for " +
            platform.os + "/" + platform.architecture);
  }
  if (candidates.size() > 1) {
    std::string names;
    for (const Candidate& candidate : candidates) {
      names += " " + (candidate.name.empty() ? candidate.descriptor.digest.ToString() : candidate.name);
    }
    return base::MakeError(EEXIST, "choose image", path, "several images, name one of:" + names);
  }
  Image image;
  image.name = candidates[0].name;
  image.store = std::move(store);
  GCS_TRY(LoadManifest(image, candidates[0].descriptor, platform));
  return image;
}

// The digest that a config's file name promises ("<hex>.json", "blobs/sha256/<hex>"); `docker save` names it
// so.
std::optional<Digest> DigestOfName(const std::string& name) {
  std::string hex = name.substr(name.rfind('/') + 1);
  if (hex.ends_with(".json")) hex.resize(hex.size() - 5);
  const auto digest = ParseDigest((hex.size() == 128 ? "sha512:" : "sha256:") + hex);
  return digest ? std::optional(*digest) : std::nullopt;
}

base::Result<Image> OpenDocker(std::shared_ptr<BlobStore> store, const std::string& path,
                               std::string_view wanted, const Platform& platform) {
  GCS_ASSIGN(const Blob manifest, store->Open("manifest.json"));
  GCS_ASSIGN(const std::string text, manifest.ReadAll(kMaxDocument));
  GCS_ASSIGN(const Json json, ParseJson(text, manifest.name));
  if (!json.is_array()) return base::MakeError(EBADMSG, "read manifest", manifest.name, "not an array");
  const Json* chosen = nullptr;
  std::string chosen_name;
  std::string all;
  for (const Json& item : json) {
    GCS_ASSIGN(const std::vector<std::string> tags, StringsMember(item, "RepoTags", manifest.name));
    for (const std::string& tag : tags) all += " " + tag;
    const auto match = std::ranges::find_if(
        tags, [&](const std::string& tag) { return wanted.empty() || NameMatches(tag, wanted); });
    if (match == tags.end() && !wanted.empty()) continue;
    if (chosen != nullptr)
      return base::MakeError(EEXIST, "choose image", path, "several images, name one of:" + all);
    chosen = &item;
    chosen_name = match == tags.end() ? "" : *match;
  }
  if (chosen == nullptr) {
    return base::MakeError(ENOENT, "choose image", path,
                           "no image \"" + std::string(wanted) + "\"; there are:" + all);
  }
  Image image;
  image.name = chosen_name;
  image.store = std::move(store);
  GCS_ASSIGN(const std::string config_name, StringMember(*chosen, "Config", manifest.name));
  GCS_ASSIGN(const std::vector<std::string> layers, StringsMember(*chosen, "Layers", manifest.name));
  if (layers.size() > kMaxLayers)
    return base::MakeError(E2BIG, "read manifest", manifest.name, "more than 500 layers");
  for (const std::string& layer : layers) {
    GCS_ASSIGN(const Blob blob, image.store->Open(layer));
    image.layers.push_back({.size = blob.size, .location = layer});
  }
  GCS_ASSIGN(const Blob config, image.store->Open(config_name));
  GCS_ASSIGN(std::string config_text, config.ReadAll(kMaxDocument));
  const std::optional<Digest> promised = DigestOfName(config_name);
  GCS_ASSIGN(const Digest digest, DigestOf(promised ? promised->algorithm : "sha256", config_text));
  if (promised && digest != *promised) {
    return base::MakeError(EBADMSG, "verify blob digest", config.name, "content has " + digest.ToString());
  }
  image.config_digest = digest.ToString();
  GCS_TRY(ApplyConfig(image, std::move(config_text), config_name, platform));
  return image;
}

bool Exists(const std::string& path) {
  struct stat st{};
  return stat(path.c_str(), &st) == 0;
}

}  // namespace

base::Result<Image> OpenImage(std::string_view reference, const Platform& platform) {
  std::string path(reference);
  enum { kAny, kOci, kDocker } form = kAny;
  for (const std::string_view prefix : {"oci:", "oci-archive:", "docker-archive:"}) {
    if (path.starts_with(prefix) && !Exists(path)) {
      path.erase(0, prefix.size());
      form = prefix.starts_with("docker") ? kDocker : kOci;
      break;
    }
  }
  // File names and image names may both contain colons: the longest existing path wins.
  std::string wanted;
  size_t colon = path.size();
  while (!Exists(path.substr(0, colon))) {
    colon = colon == 0 ? std::string::npos : path.rfind(':', colon - 1);
    if (colon == std::string::npos || colon == 0) {
      return base::MakeError(ENOENT, "open image", path, "no such layout directory or archive");
    }
  }
  if (colon < path.size()) wanted = path.substr(colon + 1);
  path.resize(colon);

  GCS_ASSIGN(std::shared_ptr<BlobStore> store, OpenBlobStore(path));
  if (form == kAny) {
    // `docker save` since version 25 writes both forms; the OCI one has digests for all parts.
    const auto layout = store->Open("oci-layout");
    if (!layout && layout.error().err != ENOENT) return std::unexpected(layout.error());
    form = layout ? kOci : kDocker;
    if (form == kDocker && !store->Open("manifest.json")) {
      return base::MakeError(EBADMSG, "open image", path,
                             "neither an OCI layout (oci-layout) nor a docker archive (manifest.json)");
    }
  }
  return form == kOci ? OpenLayout(std::move(store), path, wanted, platform)
                      : OpenDocker(std::move(store), path, wanted, platform);
}

std::vector<std::string> CommandLine(const ImageConfig& config, const std::vector<std::string>& args) {
  std::vector<std::string> out = config.entrypoint;
  const std::vector<std::string>& rest = args.empty() ? config.cmd : args;
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

std::string_view PhaseName(LayerProgress::Phase phase) {
  switch (phase) {
    case LayerProgress::Phase::kWaiting:
      return "waiting";
    case LayerProgress::Phase::kVerifying:
      return "verifying";
    case LayerProgress::Phase::kReading:
      return "reading";
    case LayerProgress::Phase::kWriting:
      return "writing";
    case LayerProgress::Phase::kDone:
      return "done";
    case LayerProgress::Phase::kCached:
      return "cached";
  }
  return "unknown";
}

}  // namespace gcs::host
