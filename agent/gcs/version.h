// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace gcs {

// Of this build: semantic version, git commit ("unknown" outside a repository), hash of the build's inputs.
extern const char* const kVersion;
extern const char* const kCommit;
extern const char* const kInputHash;

}  // namespace gcs
