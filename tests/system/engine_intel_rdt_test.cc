// SPDX-License-Identifier: Apache-2.0
// linux.intelRdt through the engine, on a tree of plain files in place of resctrl, which this machine's
// kernel does not have: groups that are there can be entered. Making and ending them is in the unit test.
#include <csignal>

#include "system/engine_support.h"

namespace gcs::test {
namespace {

using base::Json;

std::string MakeTree() {
  const std::string root = EngineMachine::Get().dir() + "/resctrl";
  std::filesystem::create_directories(root + "/gold");
  for (const char* file : {"/tasks", "/gold/tasks"}) REQUIRE(base::ReplaceFile(root + file, "", 0644));
  REQUIRE(base::ReplaceFile(root + "/gold/schemata", "    L3:0=f;1=ff\n", 0644));
  return root;
}

TEST_CASE("the container's first process and an exec are in the group of closID") {
  const std::string root = MakeTree();
  Json config = DefaultConfig(EngineMachine::Get().root(), {"sleep", "1000"});
  config["linux"]["intelRdt"] = {{"closID", "gold"}, {"l3CacheSchema", "L3:1=ff"}};
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  REQUIRE_MESSAGE(created, created.error().ToString());
  CHECK(base::ReadFile(root + "/gold/tasks").value() == std::to_string(running.container->init.pid()));
  REQUIRE(running.Start());
  REQUIRE(base::ReplaceFile(root + "/gold/tasks", "", 0644));
  auto process = engine::ParseProcess(R"({"args": ["true"]})", *running.container->spec.process);
  REQUIRE(process);
  auto child = EngineMachine::Get().engine().Exec(
      *running.container, *process,
      {.stdio = {running.null.get(), running.null.get(), running.null.get()}, .deadline_ns = In(10)});
  REQUIRE_MESSAGE(child, child.error().ToString());
  CHECK(base::ReadFile(root + "/gold/tasks").value() == std::to_string(child->pid()));
  CHECK(base::ReadFile(root + "/tasks").value().empty());
  REQUIRE(child->Start(In(10)));
  CHECK(Reap(child->pidfd()) == 0);
  REQUIRE(running.container->init.Signal(SIGKILL));
  CHECK(running.Finish().status == 128 + SIGKILL);
  CHECK(std::filesystem::exists(root + "/gold"));
}

TEST_CASE("a group that is not there or can't be entered is an error of create") {
  const std::string root = MakeTree();
  Json config = DefaultConfig(EngineMachine::Get().root(), {"true"});
  config["linux"]["intelRdt"] = {{"closID", "silver"}};
  CHECK(FailCreate(config).object == "linux.intelRdt.closID");
  config["linux"]["intelRdt"] = {{"closID", "gold"}, {"l3CacheSchema", "L3:1=f"}};
  CHECK(FailCreate(config).err == EINVAL);
  std::filesystem::remove(root + "/gold/tasks");
  config["linux"]["intelRdt"] = {{"closID", "gold"}};
  CHECK(FailCreate(config).step == "enter resctrl group");
  std::filesystem::remove_all(root);
  CHECK(FailCreate(config).err == ENOENT);
}

}  // namespace
}  // namespace gcs::test
