// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "engine/compile.h"

// The part of the plan compiler that is about mounts; only compile.cc includes this.
namespace gcs::engine {

// Index of the source's descriptor.
int32_t AddSource(CompiledPlan& plan, PlanSource source);

// spec.mounts → plan.
base::Result<> CompileMounts(const Spec& spec, const CompileOptions& options, CompiledPlan& plan);

// Whether /dev is somebody else's: then nothing is made in it.
bool BindsDev(const Spec& spec);

}  // namespace gcs::engine
