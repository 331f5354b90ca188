// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/log.h"
#include "base/paths.h"
#include "guest/container.h"
#include "guest/containers.h"

namespace gcs::guest {

// On the loop's thread. Of each change of memory.events the kernel tells by EPOLLPRI, until the file is read
// (cgroup-v2.rst). The exit record of a process comes too late: what the OOM killer ends may be its child.
void Containers::WatchMemory(const std::shared_ptr<Container>& container) {
  auto opened = base::OpenFileAt(container->engine->cgroup->fd(), "memory.events", O_RDONLY);
  if (!opened) {
    if (opened.error().err != ENOENT) base::LogError("watch memory", opened.error());
    return;  // no memory controller
  }
  container->memory_events = std::move(*opened);
  const int fd = container->memory_events.get();
  auto added = backends_.loop->Add(fd, EPOLLPRI, [this, container, fd](uint32_t) {
    char text[512];
    if (pread(fd, text, sizeof text, 0) <= 0) {  // The cgroup is gone.
      backends_.loop->Remove(fd);
      return;
    }
    const uint64_t kills = container->engine->cgroup->OomKills();
    const std::lock_guard lock(container->mutex);
    if (kills <= container->oom_kills) return;
    container->oom_kills = kills;
    backends_.journal->Append(container->id, "", ContainerOom{kills});
  });
  if (!added) base::LogError("watch memory", added.error(), {{"container", container->id}});
}

void Containers::ForgetMemory(const std::shared_ptr<Container>& container) {
  backends_.loop->Post([loop = backends_.loop, container] { loop->Remove(container->memory_events.get()); });
}

}  // namespace gcs::guest
