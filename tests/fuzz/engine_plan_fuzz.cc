// SPDX-License-Identifier: Apache-2.0
// The plan decoder of the zygote: an accepted plan can be walked to its last string without leaving the
// block.
#include <linux/filter.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/plan.h"

namespace {

using gcs::engine::ArrayRef;
using gcs::engine::PlanHeader;
using gcs::engine::StringRef;

size_t g_sum = 0;  // what is read must not be optimized away

struct Walk {
  const char* block;
  void Text(StringRef ref) const { g_sum += strlen(block + ref); }
  template <typename T>
  const T* Items(ArrayRef ref) const {
    return reinterpret_cast<const T*>(block + ref.offset);
  }
};

void WalkPlan(const char* block) {
  const Walk walk{block};
  const auto& plan = *reinterpret_cast<const PlanHeader*>(block);
  for (const StringRef ref : {plan.hostname, plan.domainname, plan.cwd, plan.keyring, plan.apparmor,
                              plan.selinux, plan.runtime_root, plan.state_before, plan.state_after}) {
    walk.Text(ref);
  }
  for (uint32_t i = 0; i < plan.mounts.count; ++i) {
    const auto& mount = walk.Items<gcs::engine::PlanMount>(plan.mounts)[i];
    walk.Text(mount.target);
    walk.Text(mount.fs_type);
    walk.Text(mount.link);
    for (uint32_t j = 0; j < mount.options.count; ++j) {
      walk.Text(walk.Items<gcs::engine::PlanOption>(mount.options)[j].key);
      walk.Text(walk.Items<gcs::engine::PlanOption>(mount.options)[j].value);
    }
  }
  for (uint32_t i = 0; i < plan.devices.count; ++i)
    walk.Text(walk.Items<gcs::engine::PlanDevice>(plan.devices)[i].path);
  for (const ArrayRef paths : {plan.masked_paths, plan.readonly_paths}) {
    for (uint32_t i = 0; i < paths.count; ++i) walk.Text(walk.Items<StringRef>(paths)[i]);
  }
  for (uint32_t i = 0; i < plan.sysctls.count; ++i)
    walk.Text(walk.Items<gcs::engine::PlanSysctl>(plan.sysctls)[i].value);
  for (uint32_t i = 0; i < plan.rlimits.count; ++i)
    g_sum += walk.Items<gcs::engine::PlanRlimit>(plan.rlimits)[i].soft;
  for (uint32_t i = 0; i < plan.groups.count; ++i) g_sum += walk.Items<uint32_t>(plan.groups)[i];
  for (uint32_t i = 0; i < plan.joins.count; ++i)
    g_sum += walk.Items<gcs::engine::PlanJoin>(plan.joins)[i].flag;
  for (uint32_t i = 0; i < plan.seccomp.count; ++i) {
    const ArrayRef code = walk.Items<gcs::engine::PlanSeccomp>(plan.seccomp)[i].code;
    for (uint32_t j = 0; j < code.count; ++j) g_sum += walk.Items<sock_filter>(code)[j].k;
  }
  for (const ArrayRef words : {plan.memory_nodes, plan.initial_affinity, plan.final_affinity}) {
    for (uint32_t i = 0; i < words.count; ++i) g_sum += walk.Items<uint64_t>(words)[i];
  }
  for (uint32_t i = 0; i < plan.scheduler.count; ++i) {
    g_sum += walk.Items<gcs::engine::PlanScheduler>(plan.scheduler)[i].period;
  }
  for (uint32_t i = 0; i < plan.preserved.count; ++i) g_sum += walk.Items<int32_t>(plan.preserved)[i];
  for (const ArrayRef hooks : {plan.create_hooks, plan.start_hooks}) {
    for (uint32_t i = 0; i < hooks.count; ++i) {
      const auto& hook = walk.Items<gcs::engine::PlanHook>(hooks)[i];
      walk.Text(hook.path);
      for (const ArrayRef slots : {hook.args, hook.env}) {
        for (uint32_t j = 0; j + 1 < slots.count; ++j) {
          walk.Text(static_cast<StringRef>(walk.Items<uint64_t>(slots)[j]));
        }
      }
    }
  }
  for (uint32_t i = 0; i + 1 < plan.args.count; ++i)
    walk.Text(static_cast<StringRef>(walk.Items<uint64_t>(plan.args)[i]));
  for (uint32_t i = 0; i + 2 < plan.env.count; ++i)
    walk.Text(static_cast<StringRef>(walk.Items<uint64_t>(plan.env)[i]));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < sizeof(PlanHeader)) return 0;
  // The frame is set right, so that the fuzzer gets to the references; alignment is what the zygote's buffer
  // has.
  std::vector<uint64_t> storage((size + 7) / 8);
  char* block = reinterpret_cast<char*>(storage.data());
  memcpy(block, data, size);
  auto& header = *reinterpret_cast<PlanHeader*>(block);
  header.magic = gcs::engine::kPlanMagic;
  header.size = static_cast<uint32_t>(size);
  header.sync_fd = gcs::engine::kFdSync;
  block[size - 1] = '\0';
  std::vector<char> exact(size);  // AddressSanitizer knows this end to the byte
  memcpy(exact.data(), block, size);
  if (gcs::engine::CheckPlan(exact.data(), size, 8) == nullptr) WalkPlan(exact.data());
  return 0;
}
