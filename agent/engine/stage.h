// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

namespace gcs::engine {

// What some namespaces need before a container's process is cloned, done by a process of its own between
// zygote and child (kPlanStaged): the others are owned by the user namespace that the cloning process is in;
// a pid or time namespace is entered by children only, and the offsets of a time namespace must be written
// before anybody is in it. The stage joins, clones the child as its sibling (CLONE_PARENT), reports it and
// exits. Same contract as RunChild, which runs in the child.
[[noreturn]] void RunStage(char* block, std::span<const int> fds) noexcept;

}  // namespace gcs::engine
