// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>

#include "base/paths.h"
#include "guest/container.h"
#include "guest/containers.h"
#include "storage/mount_api.h"

namespace gcs::guest {

base::Result<base::Fd> Containers::OpenRoot(const std::string& container_id, bool write) const {
  GCS_ASSIGN(const std::shared_ptr<Container> container, Find(container_id));
  if (container->Status() == ContainerStatus::kCreating) {
    return base::MakeError(EBUSY, "copy", container_id, "the container is being created");
  }
  const engine::Spec& spec = container->engine->spec;
  if (write && spec.root_readonly) return base::MakeError(EROFS, "copy", container_id, "root.readonly");
  GCS_ASSIGN(const base::Fd directory, base::OpenFile(spec.root_path, O_PATH | O_DIRECTORY));
  return storage::CloneMount(directory.get(), 0, container_id);
}

}  // namespace gcs::guest
