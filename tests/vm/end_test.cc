// SPDX-License-Identifier: Apache-2.0
// Many containers leave the VM as it was; then the ways a VM ends.
#include <cstdint>
#include <sstream>
#include <string>

#include "base/clock.h"
#include "vm/vm_support.h"

namespace gcs::test {
namespace {

// What the VM holds, as the agent's side shows it to a trusted look from inside: a privileged container
// cannot see the agent's namespaces, so the API's own lists and the kernel's counters are compared.
struct Holdings {
  int mounts = 0, disks = 0, containers = 0;
  uint64_t available = 0;
  int cgroups = 0;  // the kernel's count, those included that it is about to free
  int threads = 0;  // in the whole VM
  int files = 0;    // open in the whole VM
};

Holdings Take() {
  host::Client& client = TestVm::Get().client();
  Holdings holdings;
  auto options = TestContainer::Make(
      {"sh", "-c",
       "awk '$1 == \"pids\" {print $3}' /proc/cgroups; cut -d' ' -f4 /proc/loadavg | cut -d/ -f2; "
       "cut -f1 /proc/sys/fs/file-nr"});
  options.settings.privileged = true;
  const Ran ran = RunToEnd(std::move(options));
  REQUIRE(ran.exit.exit_code() == 0);
  std::istringstream counts(ran.out);
  counts >> holdings.cgroups >> holdings.threads >> holdings.files;
  REQUIRE(counts);
  const auto mounts = client.Call(v1::ListMountsRequest());
  REQUIRE(mounts);
  holdings.mounts = mounts->mounts_size();
  const auto disks = client.Call(v1::ListDisksRequest());
  REQUIRE(disks);
  holdings.disks = disks->disks_size();
  const auto info = client.Call(v1::InfoRequest());
  REQUIRE(info);
  holdings.containers = static_cast<int>(info->containers());
  holdings.available = info->memory_available_bytes();
  return holdings;
}

TEST_CASE("200 containers (20 in CI) leave the VM as it was") {
  const int rounds = Full() ? 200 : 20;
  for (int i = 0; i < 3; ++i) RunToEnd(TestContainer::Make({"true"}));
  const Holdings before = Take();
  const int64_t begin = base::MonotonicNs();
  for (int i = 0; i < rounds; ++i) {
    CAPTURE(i);
    const Ran ran = RunToEnd(TestContainer::Make({"sh", "-c", "echo $0", std::to_string(i)}));
    REQUIRE(ran.exit.exit_code() == 0);
    REQUIRE(ran.out == std::to_string(i) + "\n");
  }
  const int64_t each_ms = (base::MonotonicNs() - begin) / base::kNsPerMs / rounds;
  MESSAGE(each_ms << " ms for each container, mounts and removal included");
  const Holdings after = Take();
  CHECK(after.mounts == before.mounts);
  CHECK(after.disks == before.disks);
  CHECK(after.containers == 0);
  // One for each container would be a leak; less is what the kernel frees a moment after its end.
  CHECK(after.cgroups - before.cgroups < rounds / 2);
  CHECK(after.threads - before.threads < rounds / 2);
  CHECK(after.files - before.files < rounds / 2);
  // Caches of the kernel grow a little with each; what grows with every container shows in the full count.
  CHECK(after.available + (16ULL << 20) > before.available);
}

TEST_CASE("layers that nobody uses are unmounted and unplugged") {
  TestVm& vm = TestVm::Get();
  RunToEnd(TestContainer::Make({"true"}));
  const auto swept = vm.storage().Sweep();
  REQUIRE_MESSAGE(swept, Why(swept));
  const auto mounts = vm.client().Call(v1::ListMountsRequest());
  REQUIRE(mounts);
  CHECK(mounts->mounts_size() == 0);
  const auto disks = vm.client().Call(v1::ListDisksRequest());
  REQUIRE(disks);
  CHECK(disks->disks_size() == 0);
  const auto plugged = vm.vm().control().Disks();
  REQUIRE(plugged);
  CHECK(plugged->empty());
}

void CheckEnd(host::Machine machine, v1::ShutdownRequest::Mode mode) {
  TestVm vm(machine);
  v1::ShutdownRequest request;
  request.set_mode(mode);
  request.set_grace_ms(100);
  const int64_t begin = base::MonotonicNs();
  const auto asked = vm.client().Call(request);
  REQUIRE_MESSAGE(asked, Why(asked));
  const auto ended = vm.vm().Wait(20'000);
  REQUIRE_MESSAGE(ended, Why(ended) << vm.vm().ConsoleTail());
  CHECK(ended->code == 0);
  CHECK(ended->signal == 0);
  MESSAGE("ended after " << (base::MonotonicNs() - begin) / base::kNsPerMs << " ms");
}

TEST_CASE("microvm ends by the API's reboot") {
  CheckEnd(host::Machine::kMicrovm, v1::ShutdownRequest::MODE_REBOOT);
}

TEST_CASE("microvm, told to reboot instead, ends by the API's power-off too") {
  CheckEnd(host::Machine::kMicrovm, v1::ShutdownRequest::MODE_POWER_OFF);
}

TEST_CASE("q35 boots the same image and ends by power-off") {
  CheckEnd(host::Machine::kQ35, v1::ShutdownRequest::MODE_POWER_OFF);
}

}  // namespace
}  // namespace gcs::test
