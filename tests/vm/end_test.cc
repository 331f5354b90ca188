// SPDX-License-Identifier: Apache-2.0
// Many containers leave the VM as it was; then the ways a VM ends.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "vm/vm_support.h"

namespace gcs::test {
namespace {

// What the VM holds: lines "process NAME", "file WHAT" and "mount WHERE" of the agent, "cgroup DIRECTORY",
// with # for each number, as a container's name and an inode differ from one look to the next. Kernel threads
// come and go by themselves.
constexpr const char* kLook = R"sh(
for dir in /proc/[0-9]*; do
  read -r pid name state parent rest 2>/dev/null <$dir/stat || continue
  [ $pid = 2 ] || [ $parent = 2 ] || echo "process $name"
  [ "$name $parent" != '(gcs) 1' ] || agent=$dir
done
for fd in $agent/fd/*; do echo "file $(readlink $fd)"; done
while read -r id parent device root where rest; do echo "mount $where"; done <$agent/mountinfo
cd $agent/root/sys/fs/cgroup && find . -type d | sed 's/^/cgroup /'
)sh";

struct Holdings {
  std::vector<std::string> lines;  // sorted
  uint64_t available = 0;
};

// The look is that of a privileged container in the machine's own pid namespace, always the same one.
Holdings Take() {
  auto options = TestContainer::Make({"sh", "-c", kLook});
  options.settings.privileged = true;
  options.edit = [](std::string& text) {
    auto config = nlohmann::json::parse(text);
    auto& namespaces = config["linux"]["namespaces"];
    std::erase_if(namespaces.get_ref<nlohmann::json::array_t&>(),
                  [](const nlohmann::json& one) { return one.value("type", "") == "pid"; });
    text = config.dump();
  };
  const Ran ran = RunToEnd(std::move(options));
  REQUIRE_MESSAGE(ran.exit.exit_code() == 0, ran.err);
  Holdings holdings;
  std::istringstream lines(std::regex_replace(ran.out, std::regex("[0-9]+"), "#"));
  for (std::string line; std::getline(lines, line);) holdings.lines.push_back(line);
  std::ranges::sort(holdings.lines);
  const auto info = TestVm::Get().client().Call(v1::InfoRequest());
  REQUIRE(info);
  CHECK(info->containers() == 0);
  holdings.available = info->memory_available_bytes();
  return holdings;
}

// Looks until two looks are the same, or one is as `expected`; for at most 20 s. What the agent and the
// kernel free a moment after a container's end is no leak.
Holdings Settled(const std::vector<std::string>* expected = nullptr) {
  const int64_t deadline = base::MonotonicNs() + (20 * base::kNsPerSec);
  for (std::vector<std::string> last;;) {
    Holdings now = Take();
    if (now.lines == (expected == nullptr ? last : *expected) || base::MonotonicNs() > deadline) return now;
    last = std::move(now.lines);
  }
}

// Lines of `all` beyond those of `known`.
std::string Beyond(const std::vector<std::string>& all, const std::vector<std::string>& known) {
  std::vector<std::string> more;
  std::ranges::set_difference(all, known, std::back_inserter(more));
  std::string text;
  for (const std::string& line : more) text += line + "\n";
  return text;
}

TEST_CASE("200 containers (20 in CI) leave the VM as it was") {
  const int rounds = Full() ? 200 : 20;
  for (int i = 0; i < 3; ++i) RunToEnd(TestContainer::Make({"true"}));
  const Holdings before = Settled();
  const int64_t begin = base::MonotonicNs();
  for (int i = 0; i < rounds; ++i) {
    CAPTURE(i);
    const Ran ran = RunToEnd(TestContainer::Make({"sh", "-c", "echo $0", std::to_string(i)}));
    REQUIRE(ran.exit.exit_code() == 0);
    REQUIRE(ran.out == std::to_string(i) + "\n");
  }
  const int64_t each_ms = (base::MonotonicNs() - begin) / base::kNsPerMs / rounds;
  MESSAGE(each_ms << " ms for each container, mounts and removal included");
  const Holdings after = Settled(&before.lines);
  CHECK(Beyond(after.lines, before.lines) == "");
  CHECK(Beyond(before.lines, after.lines) == "");
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
