// SPDX-License-Identifier: Apache-2.0
// A config.json that is wrong, and one that asks for what is not built, are errors that name the place.
#include <nlohmann/json.hpp>
#include <string>

#include "vm/vm_support.h"

namespace gcs::test {
namespace {

using Json = nlohmann::json;

struct BadConfig {
  const char* name;
  const char* path;    // JSON pointer to what is replaced; "": the whole text
  const char* value;   // JSON; "-": removed
  const char* object;  // must be in the error's object or message
};

constexpr BadConfig kBad[] = {
    {"no JSON at all", "", "{", "config.json"},
    {"an array", "", "[]", ""},
    {"no version", "/ociVersion", "-", "ociVersion"},
    {"a version of the future", "/ociVersion", "\"2.0.0\"", "ociVersion"},
    {"no root", "/root", "-", "root"},
    {"a relative root", "/root/path", "\"rootfs\"", "root.path"},
    {"a root that is not there", "/root/path", "\"/run/gcs/mounts/nothing\"", "/run/gcs/mounts/nothing"},
    {"no process arguments", "/process/args", "[]", "process.args"},
    {"a number as argument", "/process/args/0", "7", "process.args"},
    {"an environment without =", "/process/env", "[\"NAME\"]", "process.env"},
    {"a relative working directory", "/process/cwd", "\"tmp\"", "process.cwd"},
    {"a user id below 0", "/process/user/uid", "-1", "process.user.uid"},
    {"a user id above 32 bits", "/process/user/uid", "4294967296", "process.user.uid"},
    {"an unknown rlimit", "/process/rlimits", "[{\"type\": \"RLIMIT_NONE\", \"soft\": 1, \"hard\": 1}]",
     "rlimits"},
    {"a soft rlimit above the hard one", "/process/rlimits",
     "[{\"type\": \"RLIMIT_NOFILE\", \"soft\": 2, \"hard\": 1}]", "rlimits"},
    {"an unknown namespace", "/linux/namespaces/0/type", "\"nothing\"", "linux.namespaces"},
    {"a namespace twice", "/linux/namespaces/0", "{\"type\": \"network\"}", "linux.namespaces"},
    {"a user namespace without mappings", "/linux/namespaces/0", "{\"type\": \"user\"}", "linux.uidMappings"},
    {"an id-mapped mount without mappings", "/mounts/1",
     "{\"destination\": \"/mnt\", \"type\": \"bind\", \"source\": \"/run\", \"options\": [\"idmap\"]}",
     "mounts"},
    {"an unknown mount option's value", "/mounts/1/options", "[\"mode=nonsense\"]", "mounts"},
    {"an unknown file system", "/mounts/1/type", "\"nofs\"", "mounts"},
    {"a bind source that is not there", "/mounts/1",
     "{\"destination\": \"/mnt\", \"type\": \"bind\", \"source\": \"/no/such\", \"options\": [\"rbind\"]}",
     "/no/such"},
    {"a hostname of 65 bytes", "/hostname",
     "\"00000000001111111111222222222233333333334444444444555555555566666\"", "hostname"},
    {"a hook that is not there", "/hooks", "{\"prestart\": [{\"path\": \"/no/such/hook\"}]}",
     "/no/such/hook"},
    {"an unknown seccomp action", "/linux/seccomp/defaultAction", "\"SCMP_ACT_MAYBE\"", "defaultAction"},
    {"a device of an unknown type", "/linux/devices",
     "[{\"path\": \"/dev/x\", \"type\": \"z\", \"major\": 1, \"minor\": 3}]", "linux.devices"},
    {"a sysctl of the machine", "/linux/sysctl", "{\"vm.swappiness\": \"1\"}", "linux.sysctl"},
    {"a negative memory limit", "/linux/resources/memory", "{\"limit\": -5}", "linux.resources.memory"},
};

TEST_CASE("a bad config.json is refused with its place, and nothing of the container stays") {
  int refused = 0;
  for (const BadConfig& bad : kBad) {
    const std::string name = bad.name;
    CAPTURE(name);
    auto options = TestContainer::Make({"true"});
    options.edit = [&bad](std::string& text) {
      if (*bad.path == '\0') {
        text = bad.value;
        return;
      }
      Json config = Json::parse(text);
      const Json::json_pointer pointer(bad.path);
      if (std::string(bad.value) == "-") {
        config[pointer.parent_pointer()].erase(pointer.back());
      } else {
        config[pointer] = Json::parse(bad.value);
      }
      text = config.dump();
    };
    TestContainer container(std::move(options));
    CHECK_FALSE(container.created());
    if (container.created()) continue;
    const host::CallError& error = container.created().error();
    CHECK(error.from_agent);
    CHECK(error.err != 0);
    CHECK_FALSE(error.step.empty());
    CHECK_MESSAGE((error.object + " " + error.message).find(bad.object) != std::string::npos,
                  error.ToString());
    // Its mounts are free again: an owner or a user would keep them busy.
    const auto gone = container.Delete();
    CHECK_MESSAGE(gone, Why(gone));
    ++refused;
  }
  CHECK(refused == std::size(kBad));
  CHECK(std::size(kBad) >= 20);
  const auto list = TestVm::Get().client().Call(v1::ListContainersRequest());
  REQUIRE(list);
  CHECK(list->containers_size() == 0);
}

TEST_CASE("bad ids and unknown containers are refused") {
  host::Client& client = TestVm::Get().client();
  for (const char* id : {"", "a/b", "..", ".a", "a b"}) {
    const std::string tried = id;
    CAPTURE(tried);
    v1::CreateContainerRequest request;
    request.set_container_id(id);
    request.set_config_json("{}");
    const auto created = client.Call(request);
    REQUIRE_FALSE(created);
    CHECK(created.error().code == 3);  // INVALID_ARGUMENT
  }
  v1::StartContainerRequest start;
  start.set_container_id("nobody");
  const auto started = client.Call(start);
  REQUIRE_FALSE(started);
  CHECK(started.error().err == ENOENT);
  CHECK(started.error().step == "find container");
  v1::WaitContainerRequest wait;
  wait.set_container_id("nobody");
  CHECK_FALSE(client.Call(wait));
}

}  // namespace
}  // namespace gcs::test
