// SPDX-License-Identifier: Apache-2.0
// Pods, and the network of the guest and of pods.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "vm/vm_support.h"

namespace gcs::test {
namespace {

host::Client& Client() { return TestVm::Get().client(); }

v1::CreatePodRequest PodRequest(const std::string& id) {
  v1::CreatePodRequest request;
  request.set_pod_id(id);
  request.set_hostname(id + "-host");
  return request;
}

host::CallResult<v1::DeletePodResponse> DeletePod(const std::string& id) {
  v1::DeletePodRequest request;
  request.set_pod_id(id);
  return Client().Call(request);
}

// Deleted by the destructor, after the containers that are declared behind it.
class TestPod {
 public:
  explicit TestPod(const v1::CreatePodRequest& request) : id_(request.pod_id()) {
    const auto created = Client().Call(request);
    REQUIRE_MESSAGE(created, Why(created));
  }
  explicit TestPod(const std::string& id) : TestPod(PodRequest(id)) {}
  ~TestPod() {
    const auto gone = DeletePod(id_);
    CHECK_MESSAGE(gone, Why(gone));
  }
  TestPod(const TestPod&) = delete;
  TestPod& operator=(const TestPod&) = delete;

  [[nodiscard]] TestContainer::Options Make(const std::string& script) const {
    auto options = TestContainer::Make({"sh", "-c", script});
    options.settings.hostname.clear();
    options.pod_id = id_;
    return options;
  }
  // What a container of the pod prints that runs this.
  [[nodiscard]] std::string Say(const std::string& script) const {
    const Ran ran = RunToEnd(Make(script));
    CHECK_MESSAGE(ran.exit.exit_code() == 0, script << ": " << ran.out << ran.err);
    return ran.out;
  }

 private:
  const std::string id_;
};

std::vector<std::string> Pods() {
  const auto pods = Client().Call(v1::ListPodsRequest());
  REQUIRE_MESSAGE(pods, Why(pods));
  std::vector<std::string> ids;
  for (const v1::Pod& pod : pods->pods()) ids.push_back(pod.pod_id());
  return ids;
}

TEST_CASE(
    "containers of a pod share loopback, host name, ipc, /dev/shm and files of /etc, and nothing else") {
  auto request = PodRequest("one");
  request.set_shm_bytes(2 << 20);
  (*request.mutable_sysctls())["net.core.somaxconn"] = "77";
  (*request.mutable_sysctls())["kernel.msgmax"] = "7777";
  (*request.mutable_labels())["app"] = "test";
  const TestPod pod(request);
  const TestPod other("two");
  TestContainer server(pod.Make(
      "echo shared > /dev/shm/file; echo own > /tmp/file; echo more >> /etc/hosts; echo page > /tmp/page; "
      "httpd -f -p 127.0.0.1:80 -h /tmp & echo up; wait"));
  REQUIRE_MESSAGE(server.created(), Why(server.created()));
  Output up(server.id());
  server.Start();
  REQUIRE(up.WaitFor("up\n"));

  CHECK(pod.Say("i=0; until wget -qO- http://127.0.0.1/page || [ $((i=i+1)) -gt 50 ]; do sleep 0.1; done "
                "2>/dev/null") == "page\n");
  CHECK(pod.Say("hostname; cat /etc/hostname; cat /dev/shm/file") == "one-host\none-host\nshared\n");
  CHECK(pod.Say("cat /etc/hosts").find("127.0.0.1\tone-host\n") != std::string::npos);
  CHECK(pod.Say("tail -n 1 /etc/hosts") == "more\n");
  CHECK(pod.Say("cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax") == "77\n7777\n");
  CHECK(pod.Say("stat -f -c %b*%S /dev/shm | sed 's/\\*/ /' | (read b s; echo $((b*s)))") == "2097152\n");
  // There is an end to what they can write there.
  CHECK(pod.Say("head -c 4000000 /dev/zero >> /etc/resolv.conf || echo full; : > /etc/resolv.conf") ==
        "full\n");
  // Each has its own root and processes.
  CHECK(pod.Say("ls /tmp/file 2>/dev/null || echo none") == "none\n");
  CHECK(pod.Say("echo $$") == "1\n");
  // Two pods have nothing in common.
  CHECK(other.Say("hostname; ls /dev/shm; cat /proc/sys/kernel/msgmax") == "two-host\n8192\n");
  CHECK(other.Say("wget -qO- http://127.0.0.1/page 2>/dev/null || echo refused") == "refused\n");

  CHECK(Pods() == std::vector<std::string>{"one", "two"});
  const auto pods = Client().Call(v1::ListPodsRequest());
  REQUIRE(pods);
  CHECK(pods->pods(0).hostname() == "one-host");
  CHECK(pods->pods(0).labels().at("app") == "test");
  REQUIRE(pods->pods(0).container_ids_size() == 1);
  CHECK(pods->pods(0).container_ids(0) == server.id());
  v1::ContainerStateRequest state;
  state.set_container_id(server.id());
  const auto container = Client().Call(state);
  REQUIRE(container);
  CHECK(container->container().pod_id() == "one");

  const auto busy = DeletePod("one");
  REQUIRE(!busy);
  CHECK(busy.error().err == EBUSY);
  CHECK(busy.error().object == server.id());
}

TEST_CASE("a shared pid namespace has a first process that reaps, whichever container ends") {
  auto request = PodRequest("pids");
  request.set_share_pid(true);
  const TestPod pod(request);
  // The daemon's parent ends at once; then it is the pod's first process's.
  TestContainer first(pod.Make("(sleep 0.2 & sleep 1000 & echo up); sleep 1000"));
  REQUIRE_MESSAGE(first.created(), Why(first.created()));
  Output up(first.id());
  first.Start();
  REQUIRE(up.WaitFor("up\n"));
  const std::string seen =
      pod.Say("cat /proc/1/comm; sleep 1; cat /proc/[0-9]*/comm | sort | uniq -c | grep sleep");
  CHECK(seen.starts_with("pause\n"));
  CHECK(seen.find("2 sleep") != std::string::npos);
  CHECK(pod.Say("grep -l '^State:.Z' /proc/[0-9]*/status || true") == "");
  CHECK(pod.Say("kill -9 1; cat /proc/1/comm") == "pause\n");
  // The container takes its own with it, and no other.
  REQUIRE(first.Signal(SIGKILL));
  CHECK(first.Wait().signal() == SIGKILL);
  CHECK(pod.Say("cat /proc/[0-9]*/comm | grep -c sleep || true") == "0\n");
}

TEST_CASE("what is the pod's is not its containers' to say, and a create that fails leaves no trace in it") {
  const TestPod pod("strict");
  struct {
    const char* what;
    std::function<void(nlohmann::json&)> edit;
    const char* object;
  } const cases[] = {
      {"another host name", [](auto& config) { config["hostname"] = "other"; }, "hostname"},
      {"a domain name", [](auto& config) { config["domainname"] = "d"; }, "domainname"},
      {"a sysctl", [](auto& config) { config["linux"]["sysctl"]["net.core.somaxconn"] = "5"; },
       "linux.sysctl.net/core/somaxconn"},
      {"another network namespace",
       [](auto& config) {
         for (auto& ns : config["linux"]["namespaces"])
           if (ns["type"] == "network") ns["path"] = "/proc/1/ns/net";
       },
       "linux.namespaces"},
  };
  for (const auto& each : cases) {
    INFO(each.what);
    auto options = pod.Make("true");
    options.edit = [&](std::string& text) {
      auto config = nlohmann::json::parse(text);
      each.edit(config);
      text = config.dump();
    };
    const TestContainer container(options);
    REQUIRE(!container.created());
    CHECK(container.created().error().err == EINVAL);
    CHECK(container.created().error().object == each.object);
  }
  auto named = pod.Make("hostname");
  named.settings.hostname = "strict-host";
  CHECK(RunToEnd(named).out == "strict-host\n");
  auto nowhere = pod.Make("true");
  nowhere.pod_id = "nowhere";
  const TestContainer lost(nowhere);
  REQUIRE(!lost.created());
  CHECK(lost.created().error().err == ENOENT);
  CHECK(lost.created().error().step == "find pod");

  const auto refuse = [](const v1::CreatePodRequest& request, int err) {
    const auto created = Client().Call(request);
    REQUIRE(!created);
    CHECK(created.error().err == err);
    return created.error().object;
  };
  CHECK(refuse(PodRequest("strict"), EEXIST) == "strict");
  auto bad = PodRequest("../bad");
  refuse(bad, EINVAL);
  bad = PodRequest("bad");
  bad.set_hostname("a b");
  CHECK(refuse(bad, EINVAL) == "hostname");
  bad.set_hostname("");
  (*bad.mutable_sysctls())["vm.swappiness"] = "1";
  CHECK(refuse(bad, EINVAL) == "sysctls.vm.swappiness");
  bad.clear_sysctls();
  // Found out by the kernel alone, when the namespaces are there already.
  (*bad.mutable_sysctls())["net.no.such"] = "1";
  CHECK(refuse(bad, ENOENT) == "net.no.such");
  CHECK(Pods() == std::vector<std::string>{"strict"});
  bad.clear_sysctls();
  REQUIRE(Client().Call(bad));
  CHECK(DeletePod("bad"));
  CHECK(DeletePod("bad").error().err == ENOENT);
}

v1::ConfigureInterfaceRequest Adapter(int which, const std::string& pod) {
  v1::ConfigureInterfaceRequest request;
  request.mutable_interface()->set_mac_address(TestVm::kMacs[which]);
  request.set_pod_id(pod);
  request.set_name("eth0");
  request.add_addresses()->set_cidr("10.7.0." + std::to_string(which + 1) + "/24");
  request.add_addresses()->set_cidr("fd07::" + std::to_string(which + 1) + "/64");
  v1::Route* route = request.add_routes();
  route->set_destination("0.0.0.0/0");
  route->set_gateway("10.7.0.254");
  return request;
}

std::vector<std::string> Names(const std::string& pod) {
  v1::ListInterfacesRequest request;
  request.set_pod_id(pod);
  const auto list = Client().Call(request);
  REQUIRE_MESSAGE(list, Why(list));
  std::vector<std::string> names;
  for (const v1::Interface& each : list->interfaces()) names.push_back(each.name());
  return names;
}

TEST_CASE("network adapters go into pods, which talk to each other through them, and come back") {
  const std::vector<std::string> before = Names("");
  {
    const TestPod left("left");
    const TestPod right("right");
    for (const auto& [which, pod] : {std::pair(0, "left"), std::pair(1, "right")}) {
      const auto configured = Client().Call(Adapter(which, pod));
      REQUIRE_MESSAGE(configured, Why(configured));
      const v1::Interface& interface = configured->interface();
      CHECK(interface.name() == "eth0");
      CHECK(interface.mac_address() == TestVm::kMacs[which]);
      CHECK(interface.up());
      CHECK(interface.pod_id() == pod);
      CHECK(interface.addresses(0).cidr() == "10.7.0." + std::to_string(which + 1) + "/24");
      REQUIRE(interface.routes_size() == 1);
      CHECK(interface.routes(0).gateway() == "10.7.0.254");
      CHECK(Names(pod) == std::vector<std::string>{"lo", "eth0"});
    }
    CHECK(Names("").size() == before.size() - 2);
    TestContainer server(left.Make("echo page > /tmp/page; httpd -f -p 80 -h /tmp & echo up; wait"));
    REQUIRE_MESSAGE(server.created(), Why(server.created()));
    Output up(server.id());
    server.Start();
    REQUIRE(up.WaitFor("up\n"));
    const std::string get =
        "i=0; until wget -qO- http://$A/page || [ $((i=i+1)) -gt 50 ]; do sleep 0.1; done 2>/dev/null";
    CHECK(right.Say("A=10.7.0.1; " + get) == "page\n");
    CHECK(right.Say("A=[fd07::1]; " + get) == "page\n");

    // The pod that is in use sees new name servers.
    v1::ConfigureDnsRequest dns;
    dns.set_pod_id("left");
    dns.add_name_servers("10.7.0.53");
    dns.add_search_domains("pods.example");
    dns.add_options("ndots:5");
    REQUIRE(Client().Call(dns));
    v1::ExecRequest exec;
    exec.set_container_id(server.id());
    exec.set_process_id("dns");
    exec.set_process_json(R"({"args": ["cat", "/etc/resolv.conf"]})");
    exec.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
    REQUIRE(Client().Call(exec));
    Output text(server.id(), "dns", false, false);
    text.Finish();
    CHECK(text.out() == "nameserver 10.7.0.53\nsearch pods.example\noptions ndots:5\n");
    dns.add_name_servers("example.org");
    const auto refused = Client().Call(dns);
    REQUIRE(!refused);
    CHECK(refused.error().object == "name_servers[1]");

    // What a container makes ends with the pod.
    auto maker = left.Make("ip link add made type dummy && ip link show made > /dev/null && echo made");
    maker.settings.cap_add = {"NET_ADMIN"};
    CHECK(RunToEnd(maker).out == "made\n");
    const std::vector<std::string> with_made = Names("left");
    CHECK(with_made.size() == 3);
    CHECK(std::ranges::find(with_made, "made") != with_made.end());

    // By hand, and by the pod's end.
    v1::RemoveInterfaceRequest remove;
    remove.mutable_interface()->set_name("eth0");
    remove.set_pod_id("right");
    REQUIRE(Client().Call(remove));
    CHECK(Names("right") == std::vector<std::string>{"lo"});
    CHECK(Client().Call(remove).error().err == ENODEV);
  }
  const std::vector<std::string> after = Names("");
  CHECK(after.size() == before.size());
  CHECK(std::ranges::find(after, "made") == after.end());
}

TEST_CASE("an adapter that doesn't come is waited for until the deadline, and what is wrong is named") {
  auto request = Adapter(0, "");
  request.mutable_interface()->set_mac_address("02:00:00:00:00:99");
  const auto late = Client().Call(request, {.timeout_ms = 1000});
  REQUIRE(!late);
  CHECK((late.error().err == ETIMEDOUT || late.error().code == 4));  // the agent's answer, or gRPC's own
  request = Adapter(0, "");
  request.mutable_routes(0)->set_gateway("fd07::1");
  const auto bad = Client().Call(request);
  REQUIRE(!bad);
  CHECK(bad.error().err == EINVAL);
  CHECK(bad.error().object == "routes[0].gateway");
  request = Adapter(0, "no-such-pod");
  CHECK(Client().Call(request).error().err == ENOENT);
}

}  // namespace
}  // namespace gcs::test
