// SPDX-License-Identifier: Apache-2.0
// linux.netDevices: network devices of the runtime's that become the container's.
#include <csignal>

#include "system/engine_support.h"
#include "system/net_support.h"

namespace gcs::test {
namespace {

using base::Json;

// The engine's zygote is as old as the test, so it is made before the thread enters a network of its own.
struct Network {
  EngineMachine& machine = EngineMachine::Get();
  PrivateNetwork own;
};

Json DeviceConfig(const std::vector<std::string>& args, const Json& devices) {
  Json config = DefaultConfig(EngineMachine::Get().root(), args);
  config["linux"]["netDevices"] = devices;
  return config;
}

bool Has(const std::string& device) {
  return Shell("ip link").find(": " + device + "@") != std::string::npos;
}

// The names in there, without lo and what the kernel adds.
std::string NamesIn(int pid) {
  return Shell("nsenter -t " + std::to_string(pid) +
               " -n sh -c 'ls /sys/class/net >/dev/null; cut -d: -f1 /proc/net/dev' "
               "| sed '1,2d; s/ //g' | sort | tr '\\n' ' '");
}

TEST_CASE("a network device is the container's, under its own or another name, with its addresses, and up") {
  const Network network;
  MakeDevice("keep0");
  MakeDevice("old0");
  MakeDevice("old1");
  Shell(R"(ip addr add 10.1.0.1/24 dev keep0
           ip addr add fd00:1::1/64 dev keep0
           ip addr add 10.2.0.1/16 dev old0)");
  const Json config =
      DeviceConfig({"/bin/busybox", "sh", "-c", "busybox ip link; busybox ip addr"},
                   {{"keep0", Json::object()}, {"old0", {{"name", "new0"}}}, {"old1", {{"name", "num%d"}}}});
  const Outcome outcome = Run(config);
  CHECK(outcome.status == 0);
  for (const char* device : {": keep0@", ": new0@", ": num0@"}) {
    CAPTURE(device);
    const size_t at = outcome.out.find(device);
    REQUIRE(at != std::string::npos);
    const std::string line = outcome.out.substr(at, outcome.out.find('\n', at) - at);
    CHECK_MESSAGE(line.find("UP") != std::string::npos, line);
  }
  CHECK(outcome.out.find("old") == std::string::npos);
  for (const char* address : {"inet 10.1.0.1/24 scope global keep0", "inet 10.2.0.1/16 scope global new0",
                              "inet6 fd00:1::1/64 scope global"}) {
    CHECK_MESSAGE(outcome.out.find(address) != std::string::npos, address << " in " << outcome.out);
  }
  CHECK_FALSE(Has("keep0"));
  CHECK_FALSE(Has("old0"));
}

TEST_CASE("createRuntime hooks and sysctls find the devices in place; the container may not change them") {
  const Network network;
  MakeDevice("dev0");
  Json config =
      DeviceConfig({"sh", "-c", "cat /proc/sys/net/ipv4/conf/eth7/forwarding; busybox ip link set eth7 down"},
                   {{"dev0", {{"name", "eth7"}}}});
  config["linux"]["sysctl"] = {{"net.ipv4.conf.eth7.forwarding", "1"}};
  const std::string seen = network.machine.dir() + "/seen";
  config["hooks"]["createRuntime"] = {
      {{"path", "/bin/sh"},
       {"args",
        {"sh", "-c",
         "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); cut -d: -f1 /proc/$pid/net/dev > " + seen}}}};
  const Outcome outcome = Run(config);
  CHECK(outcome.out == "1\n");
  CHECK(outcome.err.find("Operation not permitted") != std::string::npos);
  CHECK(base::ReadFile(seen)->find("eth7") != std::string::npos);
}

TEST_CASE("a network namespace that is joined gets the devices and keeps them") {
  const Network network;
  MakeDevice("dev0");
  RunningContainer first;
  REQUIRE(first.Create(DefaultConfig(network.machine.root(), {"sleep", "1000"}), NextId()));
  REQUIRE(first.Start());
  const std::string path = "/proc/" + std::to_string(first.container->init.pid()) + "/ns/net";
  Json config = DeviceConfig({"true"}, {{"dev0", {{"name", "eth0"}}}});
  config["linux"]["namespaces"][1]["path"] = path;
  CHECK(Run(config).status == 0);
  CHECK(NamesIn(first.container->init.pid()) == "eth0 lo ");
  CHECK_FALSE(Has("dev0"));

  // The next one finds the name taken; a template helps.
  MakeDevice("dev1");
  config["linux"]["netDevices"] = {{"dev1", {{"name", "eth0"}}}};
  const base::Error error = FailCreate(config);
  CHECK(error.step == "move network device");
  CHECK(error.object == "linux.netDevices.dev1");
  CHECK(error.err == EEXIST);
  CHECK(Has("dev1"));
  config["linux"]["netDevices"] = {{"dev1", {{"name", "eth%d"}}}};
  CHECK(Run(config).status == 0);
  CHECK(NamesIn(first.container->init.pid()) == "eth0 eth1 lo ");
  REQUIRE(first.container->init.Signal(SIGKILL));
}

TEST_CASE("with a user namespace, too") {
  const Network network;
  MakeDevice("dev0");
  Shell("ip addr add 10.1.0.1/24 dev dev0");
  const std::string root = network.machine.MakeRoot("net-user");
  REQUIRE(chown(root.c_str(), 100'000, 100'000) == 0);
  Json config = DeviceConfig({"busybox", "ip", "addr"}, {{"dev0", {{"name", "eth0"}}}});
  config["root"] = {{"path", root}};
  config["linux"]["namespaces"].push_back({{"type", "user"}});
  const Json map = {{{"containerID", 0}, {"hostID", 100'000}, {"size", 65536}}};
  config["linux"]["uidMappings"] = map;
  config["linux"]["gidMappings"] = map;
  const Outcome outcome = Run(config);
  CHECK_MESSAGE(outcome.out.find("inet 10.1.0.1/24 scope global eth0") != std::string::npos, outcome.out);
}

TEST_CASE("a create that fails puts every device back where and as it was") {
  const Network network;
  MakeDevice("dev0");
  MakeDevice("dev1");
  Shell(R"(ip link set veth0 up
           ip addr add 10.1.0.1/24 dev dev0
           ip addr add fd00:1::1/64 dev dev0
           ip link set dev0 up
           ip route add 10.9.0.0/16 via 10.1.0.9
           ip addr add 10.2.0.1/24 dev dev1)");
  SettleNetwork();
  const std::string before = NetworkState();
  const Json devices = {{"dev0", {{"name", "eth0"}}}, {"dev1", {{"name", "eth1"}}}};
  struct Row {
    const char* what;
    std::string object;
    std::function<void(Json&)> change;
  };
  const Row rows[] = {{"a device that is not there", "linux.netDevices.other",
                       [](Json& config) { config["linux"]["netDevices"]["other"] = Json::object(); }},
                      {"a name that is taken", "linux.netDevices.dev1",
                       [](Json& config) { config["linux"]["netDevices"]["dev1"]["name"] = "lo"; }},
                      {"a hook that fails", "/bin/false",
                       [](Json& config) { config["hooks"]["createRuntime"] = {{{"path", "/bin/false"}}}; }},
                      {"a program that is not there", "/no/such/program",
                       [](Json& config) { config["process"]["args"] = {"/no/such/program"}; }},
                      {"a hook that renames and fails", "/bin/sh", [](Json& config) {
                         config["hooks"]["createRuntime"] = {
                             {{"path", "/bin/sh"},
                              {"args",
                               {"sh", "-c",
                                "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); nsenter -t $pid -n busybox ip "
                                "link set eth0 down;"
                                "nsenter -t $pid -n busybox ip link set eth0 name gone0; exit 1"}}}};
                       }}};
  for (const Row& row : rows) {
    CAPTURE(row.what);
    Json config = DeviceConfig({"true"}, devices);
    row.change(config);
    const base::Error error = FailCreate(config);
    CHECK(error.object == row.object);
    CHECK(NetworkState() == before);
  }
  CHECK(FailCreate(DeviceConfig({"true"}, {{"nosuch0", Json::object()}})).err == ENODEV);
}

TEST_CASE("the runtime's own network namespace, joined by path, is no place to move devices to") {
  const Network network;
  MakeDevice("dev0");
  Json config = DeviceConfig({"true"}, {{"dev0", {{"name", "eth0"}}}});
  config["linux"]["namespaces"][1]["path"] = "/proc/thread-self/ns/net";
  const base::Error error = FailCreate(config);
  CHECK(error.object == "linux.netDevices");
  CHECK(error.err == EINVAL);
  CHECK(Has("dev0"));
}

TEST_CASE("devices do not come back when the container ends") {
  const Network network;
  MakeDevice("dev0");
  CHECK(Run(DeviceConfig({"true"}, {{"dev0", Json::object()}})).status == 0);
  // A veth ends with its namespace, and the other end with it.
  for (int i = 0; i < 1000 && Shell("ip link").find("veth0") != std::string::npos; ++i) usleep(10'000);
  CHECK(Shell("ip link").find("veth0") == std::string::npos);
}

}  // namespace
}  // namespace gcs::test
