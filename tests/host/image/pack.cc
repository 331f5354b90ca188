// SPDX-License-Identifier: Apache-2.0
#include "host/image/pack.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/paths.h"
#include "host/image/archive_util.h"
#include "host/image/digest.h"

namespace gcs::host {
namespace {

using Json = nlohmann::json;

struct FreeEntry {
  void operator()(archive_entry* e) const { archive_entry_free(e); }
};
using Entry = std::unique_ptr<archive_entry, FreeEntry>;

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// A blob on its way to blobs/sha256: tar bytes are hashed, compressed, hashed again and stored under the
// second digest.
class BlobWriter {
 public:
  BlobWriter(base::Fd file, std::string temporary, Hasher tar, Hasher blob)
      : file_(std::move(file)),
        temporary_(std::move(temporary)),
        tar_(std::move(tar)),
        blob_(std::move(blob)) {}

  static base::Result<std::unique_ptr<BlobWriter>> Make(const std::string& dir, PackCompression compression) {
    const std::string temporary = dir + "/.new-layer";
    GCS_ASSIGN(base::Fd file, base::OpenFile(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    GCS_ASSIGN(Hasher tar, Hasher::Make("sha256"));
    GCS_ASSIGN(Hasher blob, Hasher::Make("sha256"));
    auto writer = std::make_unique<BlobWriter>(std::move(file), temporary, std::move(tar), std::move(blob));
    GCS_TRY(writer->Start(compression));
    return writer;
  }

  base::Result<> Write(const void* data, size_t size) {
    tar_.Update(data, size);
    if (archive_write_data(compressor_.get(), data, size) != static_cast<la_ssize_t>(size)) {
      return ArchiveError(compressor_.get(), "compress layer", temporary_);
    }
    return {};
  }

  // Ends the blob and names it; fills digest, diff_id and size.
  base::Result<ImageLayer> Finish(const std::string& dir) {
    if (archive_write_close(compressor_.get()) != ARCHIVE_OK) {
      return ArchiveError(compressor_.get(), "compress layer", temporary_);
    }
    ImageLayer layer;
    const Digest digest = blob_.Finish();
    layer.digest = digest.ToString();
    layer.diff_id = tar_.Finish().ToString();
    layer.size = size_;
    if (rename(temporary_.c_str(), (dir + "/" + digest.hex).c_str()) != 0) {
      return base::ErrnoError("rename", temporary_);
    }
    return layer;
  }

 private:
  struct FreeWriter {
    void operator()(archive* a) const { archive_write_free(a); }
  };

  base::Result<> Start(PackCompression compression) {
    compressor_.reset(archive_write_new());
    archive* a = compressor_.get();
    archive_write_set_format_raw(a);
    archive_write_set_bytes_per_block(a, 0);
    int rc = ARCHIVE_OK;
    if (compression == PackCompression::kGzip) {
      rc = archive_write_add_filter_gzip(a);
      if (rc == ARCHIVE_OK) rc = archive_write_set_filter_option(a, "gzip", "timestamp", nullptr);
    } else if (compression == PackCompression::kZstd) {
      rc = archive_write_add_filter_zstd(a);
    }
    const Entry entry(archive_entry_new());
    archive_entry_set_filetype(entry.get(), AE_IFREG);
    if (rc != ARCHIVE_OK || archive_write_open(a, this, nullptr, Store, nullptr) != ARCHIVE_OK ||
        archive_write_header(a, entry.get()) != ARCHIVE_OK) {
      return ArchiveError(a, "compress layer", temporary_);
    }
    return {};
  }

  static la_ssize_t Store(archive* a, void* self, const void* data, size_t size) {
    auto* writer = static_cast<BlobWriter*>(self);
    const ssize_t n = write(writer->file_.get(), data, size);
    if (n < 0) {
      archive_set_error(a, errno, "%s", "write blob");
      return -1;
    }
    writer->blob_.Update(data, static_cast<size_t>(n));
    writer->size_ += static_cast<uint64_t>(n);
    return n;
  }

  base::Fd file_;
  std::string temporary_;
  Hasher tar_;
  Hasher blob_;
  uint64_t size_ = 0;
  std::unique_ptr<archive, FreeWriter> compressor_;
};

la_ssize_t WriteTar(archive* a, void* self, const void* data, size_t size) {
  const auto done = static_cast<BlobWriter*>(self)->Write(data, size);
  if (done) return static_cast<la_ssize_t>(size);
  archive_set_error(a, done.error().err, "%s", done.error().ToString().c_str());
  return -1;
}

base::Result<> WriteSource(archive* tar, const PackFile& file) {
  GCS_ASSIGN(const base::Fd source, base::OpenFile(file.source, O_RDONLY | O_CLOEXEC));
  std::vector<char> buffer(1 << 20);
  while (true) {
    const ssize_t got = read(source.get(), buffer.data(), buffer.size());
    if (got < 0) return base::ErrnoError("read", file.source);
    if (got == 0) return {};
    if (archive_write_data(tar, buffer.data(), static_cast<size_t>(got)) != got) {
      return ArchiveError(tar, "write tar", file.source);
    }
  }
}

base::Result<> WriteEntry(archive* tar, const PackFile& file) {
  const Entry entry(archive_entry_new());
  archive_entry_copy_pathname(entry.get(), file.path.c_str());
  archive_entry_set_mode(entry.get(), file.mode);
  archive_entry_set_uid(entry.get(), file.uid);
  archive_entry_set_gid(entry.get(), file.gid);
  archive_entry_set_mtime(entry.get(), file.mtime, 0);
  archive_entry_set_rdevmajor(entry.get(), file.rdev_major);
  archive_entry_set_rdevminor(entry.get(), file.rdev_minor);
  archive_entry_set_size(entry.get(), 0);
  const bool data = S_ISREG(file.mode) && file.hard_link.empty();
  if (!file.hard_link.empty()) {
    archive_entry_copy_hardlink(entry.get(), file.hard_link.c_str());
  } else if (S_ISLNK(file.mode)) {
    archive_entry_copy_symlink(entry.get(), file.link.c_str());
  } else if (data && !file.source.empty()) {
    struct stat st{};
    if (stat(file.source.c_str(), &st) != 0) return base::ErrnoError("stat", file.source);
    archive_entry_set_size(entry.get(), st.st_size);
  } else if (data) {
    archive_entry_set_size(entry.get(), static_cast<la_int64_t>(file.content.size()));
  }
  if (file.hard_link.empty()) {
    for (const auto& [name, value] : file.xattrs) {
      archive_entry_xattr_add_entry(entry.get(), name.c_str(), value.data(), value.size());
    }
  }
  // ARCHIVE_WARN: a name that is no UTF-8, which a pax header takes as it is.
  const int rc = archive_write_header(tar, entry.get());
  if (rc != ARCHIVE_OK && rc != ARCHIVE_WARN) return ArchiveError(tar, "write tar", file.path);
  if (data && !file.source.empty()) return WriteSource(tar, file);
  if (data && !file.content.empty() &&
      archive_write_data(tar, file.content.data(), file.content.size()) !=
          static_cast<la_ssize_t>(file.content.size())) {
    return ArchiveError(tar, "write tar", file.path);
  }
  return {};
}

base::Result<> WriteFiles(const std::vector<PackFile>& files, BlobWriter& out) {
  struct FreeWriter {
    void operator()(archive* a) const { archive_write_free(a); }
  };
  const std::unique_ptr<archive, FreeWriter> tar(archive_write_new());
  archive_write_set_format_pax_restricted(tar.get());
  archive_write_set_bytes_per_block(tar.get(), 10240);
  if (archive_write_open(tar.get(), &out, nullptr, WriteTar, nullptr) != ARCHIVE_OK) {
    return ArchiveError(tar.get(), "write tar", {});
  }
  for (const PackFile& file : files) GCS_TRY(WriteEntry(tar.get(), file));
  if (archive_write_close(tar.get()) != ARCHIVE_OK) return ArchiveError(tar.get(), "write tar", {});
  return {};
}

base::Result<> CopyTar(const std::string& path, BlobWriter& out) {
  GCS_ASSIGN(const base::Fd file, base::OpenFile(path, O_RDONLY | O_CLOEXEC));
  std::vector<char> buffer(1 << 20);
  while (true) {
    const ssize_t got = read(file.get(), buffer.data(), buffer.size());
    if (got < 0) return base::ErrnoError("read", path);
    if (got == 0) return {};
    GCS_TRY(out.Write(buffer.data(), static_cast<size_t>(got)));
  }
}

Json ConfigJson(const ImageConfig& config, const std::vector<ImageLayer>& layers) {
  Json run = Json::object();
  if (!config.entrypoint.empty()) run["Entrypoint"] = config.entrypoint;
  if (!config.cmd.empty()) run["Cmd"] = config.cmd;
  if (!config.env.empty()) run["Env"] = config.env;
  if (!config.working_dir.empty()) run["WorkingDir"] = config.working_dir;
  if (!config.user.empty()) run["User"] = config.user;
  if (!config.stop_signal.empty()) run["StopSignal"] = config.stop_signal;
  if (!config.labels.empty()) run["Labels"] = config.labels;
  for (const std::string& volume : config.volumes) run["Volumes"][volume] = Json::object();
  for (const std::string& port : config.exposed_ports) run["ExposedPorts"][port] = Json::object();
  Json diff_ids = Json::array();
  Json history = Json::array();
  for (const ImageLayer& layer : layers) {
    diff_ids.push_back(layer.diff_id);
    history.push_back({{"created_by", "oci-image"}});
  }
  return {{"architecture", config.architecture.empty() ? "amd64" : config.architecture},
          {"os", config.os.empty() ? "linux" : config.os},
          {"created", config.created.empty() ? "1970-01-01T00:00:00Z" : config.created},
          {"config", run},
          {"rootfs", {{"type", "layers"}, {"diff_ids", diff_ids}}},
          {"history", history}};
}

// Stores a document and returns its descriptor.
base::Result<Json> StoreJson(const std::string& blobs, const Json& json, const char* media_type) {
  const std::string text = Dump(json);
  GCS_ASSIGN(const Digest digest, DigestOf("sha256", text));
  GCS_TRY(base::ReplaceFile(blobs + "/" + digest.hex, text, 0644));
  return Json{{"mediaType", media_type}, {"digest", digest.ToString()}, {"size", text.size()}};
}

const char* LayerType(PackCompression compression) {
  switch (compression) {
    case PackCompression::kNone:
      return "application/vnd.oci.image.layer.v1.tar";
    case PackCompression::kGzip:
      return "application/vnd.oci.image.layer.v1.tar+gzip";
    case PackCompression::kZstd:
      return "application/vnd.oci.image.layer.v1.tar+zstd";
  }
  return "";
}

}  // namespace

base::Result<std::string> PackImage(const std::string& out, const std::vector<PackLayer>& layers,
                                    const PackOptions& options) {
  const std::string blobs = out + "/blobs/sha256";
  if (rmdir(out.c_str()) != 0 && errno != ENOENT) return base::ErrnoError("make layout", out);
  GCS_TRY(base::MakeDirs(blobs, 0755));
  std::vector<ImageLayer> done;
  Json descriptors = Json::array();
  for (const PackLayer& layer : layers) {
    GCS_ASSIGN(const std::unique_ptr<BlobWriter> writer, BlobWriter::Make(blobs, options.compression));
    GCS_TRY(layer.tar.empty() ? WriteFiles(layer.files, *writer) : CopyTar(layer.tar, *writer));
    GCS_ASSIGN(ImageLayer stored, writer->Finish(blobs));
    descriptors.push_back(
        {{"mediaType", LayerType(options.compression)}, {"digest", stored.digest}, {"size", stored.size}});
    done.push_back(std::move(stored));
  }
  GCS_ASSIGN(const Json config,
             StoreJson(blobs, ConfigJson(options.config, done), "application/vnd.oci.image.config.v1+json"));
  constexpr char kManifest[] = "application/vnd.oci.image.manifest.v1+json";
  GCS_ASSIGN(
      Json manifest,
      StoreJson(blobs,
                {{"schemaVersion", 2}, {"mediaType", kManifest}, {"config", config}, {"layers", descriptors}},
                kManifest));
  manifest["platform"] = {
      {"os", options.config.os.empty() ? "linux" : options.config.os},
      {"architecture", options.config.architecture.empty() ? "amd64" : options.config.architecture}};
  if (!options.name.empty()) {
    const size_t colon = options.name.rfind(':');
    const bool full = options.name.find('/') != std::string::npos;
    const bool tagged = colon != std::string::npos && options.name.find('/', colon) == std::string::npos;
    if (full) manifest["annotations"]["io.containerd.image.name"] = options.name;
    manifest["annotations"]["org.opencontainers.image.ref.name"] = tagged ? options.name.substr(colon + 1)
                                                                   : full ? "latest"
                                                                          : options.name;
  }
  const Json index = {{"schemaVersion", 2},
                      {"mediaType", "application/vnd.oci.image.index.v1+json"},
                      {"manifests", Json::array({manifest})}};
  GCS_TRY(base::ReplaceFile(out + "/index.json", Dump(index), 0644));
  GCS_TRY(base::ReplaceFile(out + "/oci-layout", R"({"imageLayoutVersion":"1.0.0"})", 0644));
  return manifest["digest"].get<std::string>();
}

}  // namespace gcs::host
