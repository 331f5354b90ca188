// SPDX-License-Identifier: Apache-2.0
// Mounts across the life of the agent.
#include <fcntl.h>

#include "base/json.h"
#include "base/paths.h"
#include "storage/mount_api.h"
#include "storage/mount_dirs.h"
#include "storage/storage.h"
#include "storage/storage_entry.h"

namespace gcs::storage {

using base::Json;
using base::MakeError;
using base::Result;

Result<> Storage::Keep(const Entry& entry) const {
  if (!options_.keep) return {};
  const MountInfo& info = entry.info;
  const Json json{{"kind", info.kind},
                  {"path", info.path},
                  {"source", info.source},
                  {"fs_type", info.fs_type},
                  {"read_only", info.read_only},
                  {"uses", info.uses},
                  {"mount", entry.kernel_id},
                  {"scratch", entry.scratch},
                  {"scratch_path", entry.scratch_path},
                  {"scratch_dir", entry.scratch_dir},
                  {"discard", entry.discard}};
  return options_.keep(info.mount_id, json.dump(-1, ' ', false, Json::error_handler_t::replace),
                       entry.connection == nullptr ? -1 : entry.connection->get());
}

Result<> Storage::Restore(const std::string& mount_id, std::string_view description, base::Fd connection) {
  GCS_ASSIGN(const Json json, base::ParseJson(description, mount_id));
  base::JsonReader reader(json, "restore mount");
  auto entry = std::make_shared<Entry>();
  entry->state = Entry::State::kMounted;
  entry->restored = true;
  entry->info = {
      .mount_id = mount_id,
      .kind = static_cast<MountKind>(reader.Int("kind", 0, 0, static_cast<int>(MountKind::kTmpfs))),
      .path = reader.RequiredString("path"),
      .source = reader.String("source"),
      .fs_type = reader.String("fs_type"),
      .read_only = reader.Bool("read_only"),
      .uses = reader.Strings("uses"),
  };
  entry->kernel_id = reader.Uint64("mount", 0);
  entry->scratch = reader.String("scratch");
  entry->scratch_path = reader.String("scratch_path");
  entry->scratch_dir = reader.String("scratch_dir");
  entry->discard = reader.Bool("discard");
  if (reader.error()) return std::unexpected(*reader.error());
  if (connection.valid()) entry->connection = std::make_shared<base::Fd>(std::move(connection));
  const std::string& path = entry->info.path;
  GCS_TRY(dirs_->Check(path));
  const auto root = base::OpenFile(path, O_PATH | O_DIRECTORY | O_NOFOLLOW);
  const auto there = root ? MountIdOf(root->get(), path) : std::unexpected(root.error());
  if (!there || *there != entry->kernel_id)
    return MakeError(ESTALE, "restore mount", mount_id, "it is no longer at " + path);
  dirs_->Adopt(path);
  const std::lock_guard lock(mutex_);
  entry->sequence = next_sequence_++;
  if (!entries_.emplace(mount_id, std::move(entry)).second)
    return MakeError(EEXIST, "restore mount", mount_id);
  return {};
}

}  // namespace gcs::storage
