// SPDX-License-Identifier: Apache-2.0
// config.json to plan: any bytes either give an error that names a step, or a plan that its own checker
// accepts.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/log.h"
#include "engine/compile.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gcs;
  static const bool quiet = [] {
    base::SetLogOutput(-1, base::LogFormat::kText, base::Level::kError);
    return true;
  }();
  (void)quiet;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto spec = engine::ParseSpec(text);
  if (!spec) {
    if (spec.error().step.empty() || spec.error().err == 0) abort();
    return 0;
  }
  std::shared_ptr<const engine::SeccompFilter> filter;
  if (spec->seccomp) {
    auto compiled = engine::CompileSeccomp(*spec->seccomp);
    if (!compiled) return 0;
    filter = std::make_shared<const engine::SeccompFilter>(std::move(*compiled));
  }
  auto plan = engine::CompileCreate(*spec, {.container_id = "fuzz"}, filter);
  if (!plan) {
    if (plan.error().step.empty() || plan.error().err == 0) abort();
    return 0;
  }
  const std::string block = plan->builder.Finish();
  const int fds = engine::kFdFirstSource + static_cast<int>(plan->sources.size());
  if (const char* wrong = engine::CheckPlan(block.data(), block.size(), fds)) {
    fprintf(stderr, "the compiler made a plan with bad %s\n", wrong);
    abort();
  }
  return 0;
}
