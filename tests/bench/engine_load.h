// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bench/engine_parts.h"

namespace gcs::bench {

// What one container costs with a seccomp profile of 270 names, when its filter is known already.
Result<> Seccomp(const Options& options, const Bundle& bundle, Candidate& ours);
// The first container after a pause, against the one right after it.
Result<> Cold(const Options& options, const Bundle& bundle, Candidate& ours);
// The program against crun.
Result<> CommandLine(const Options& options, const Bundle& bundle);
// 500 containers from 8 threads, all alive at the end.
Result<> Burst(const Bundle& bundle, Candidate& ours);

}  // namespace gcs::bench
