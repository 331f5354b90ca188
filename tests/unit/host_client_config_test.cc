// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <csignal>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "host/client/oci_config.h"

namespace gcs::host {
namespace {

using Json = nlohmann::json;

ContainerSettings Minimal() {
  ContainerSettings settings;
  settings.root_path = "/root-of-it";
  settings.args = {"true"};
  return settings;
}

Json Config(const ContainerSettings& settings, const ImageConfig& image = {}) {
  const auto text = MakeOciConfig(image, settings);
  REQUIRE(text);
  return Json::parse(*text);
}

std::vector<std::string> Bounding(const ContainerSettings& settings) {
  return Config(settings)["process"]["capabilities"]["bounding"].get<std::vector<std::string>>();
}

TEST_CASE("the default config.json has docker's capabilities, mounts and paths") {
  const Json config = Config(Minimal());
  CHECK(config["ociVersion"] == "1.0.2");
  CHECK(config["root"]["path"] == "/root-of-it");
  CHECK(config["process"]["cwd"] == "/");
  CHECK(Bounding(Minimal()).size() == 14);
  CHECK(config["linux"]["namespaces"].size() == 6);
  CHECK(config["linux"]["maskedPaths"].size() > 5);
  CHECK(config["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW");
  CHECK(config["mounts"].size() == 7);
  CHECK_FALSE(config["linux"]["resources"].contains("memory"));
}

TEST_CASE("capabilities are added and dropped by either spelling, ALL included") {
  ContainerSettings settings = Minimal();
  settings.cap_add = {"net_admin", "CAP_SYS_PTRACE"};
  settings.cap_drop = {"KILL"};
  const auto some = Bounding(settings);
  CHECK(some.size() == 15);
  CHECK(std::ranges::count(some, "CAP_NET_ADMIN") == 1);
  CHECK(std::ranges::count(some, "CAP_SYS_PTRACE") == 1);
  CHECK(std::ranges::count(some, "CAP_KILL") == 0);
  settings.cap_add = {"CHOWN"};
  settings.cap_drop = {"ALL"};
  CHECK(Bounding(settings) == std::vector<std::string>{"CAP_CHOWN"});
  settings.cap_add = {"all"};
  settings.cap_drop = {"SYS_ADMIN"};
  CHECK(Bounding(settings).size() == 40);
  settings.cap_add = {"FLY"};
  const auto bad = MakeOciConfig({}, settings);
  REQUIRE_FALSE(bad);
  CHECK(bad.error().err == EINVAL);
  CHECK(bad.error().object == "--cap-add");
}

TEST_CASE("a user that is not root has its capabilities in the bounding set only") {
  ContainerSettings settings = Minimal();
  settings.user.uid = 1000;
  const Json capabilities = Config(settings)["process"]["capabilities"];
  CHECK(capabilities["bounding"].size() == 14);
  CHECK(capabilities["effective"].empty());
  CHECK(capabilities["permitted"].empty());
}

TEST_CASE("the environment is the image's, then the caller's, each name once") {
  ImageConfig image;
  image.env = {"PATH=/image", "A=1", "B=2"};
  image.working_dir = "/work";
  ContainerSettings settings = Minimal();
  settings.env = {"A=3", "C=4"};
  settings.hostname = "box";
  settings.terminal = true;
  settings.user.home = "/home/me";
  const Json process = Config(settings, image)["process"];
  CHECK(process["env"] ==
        Json({"PATH=/image", "A=3", "B=2", "HOSTNAME=box", "TERM=xterm", "C=4", "HOME=/home/me"}));
  CHECK(process["cwd"] == "/work");
}

TEST_CASE("limits are written as the kernel counts them; bad ones are refused") {
  ContainerSettings settings = Minimal();
  settings.memory_bytes = 1 << 20;
  settings.cpus = 1.5;
  settings.pids_limit = 7;
  const Json resources = Config(settings)["linux"]["resources"];
  CHECK(resources["memory"]["limit"] == 1 << 20);
  CHECK(resources["cpu"]["quota"] == 150'000);
  CHECK(resources["cpu"]["period"] == 100'000);
  CHECK(resources["pids"]["limit"] == 7);
  settings.cpus = -1;
  CHECK_FALSE(MakeOciConfig({}, settings));
  settings = Minimal();
  settings.args.clear();
  CHECK_FALSE(MakeOciConfig({}, settings));
}

TEST_CASE("sizes have units of 1024 and no overflow") {
  CHECK(ParseSize("0").value_or(1) == 0);
  CHECK(ParseSize("10").value_or(0) == 10);
  CHECK(ParseSize("4k").value_or(0) == 4096);
  CHECK(ParseSize("512M").value_or(0) == 512 << 20);
  CHECK(ParseSize("2GiB").value_or(0) == 2ULL << 30);
  CHECK(ParseSize("1tb").value_or(0) == 1ULL << 40);
  for (const char* bad : {"", "k", "-1", "1x", "1kk", "99999999999999999999", "99999999999t"}) {
    const std::string tried = bad;
    CAPTURE(tried);
    CHECK_FALSE(ParseSize(bad));
  }
}

TEST_CASE("signals are names or numbers") {
  CHECK(ParseSignal("TERM").value_or(0) == SIGTERM);
  CHECK(ParseSignal("SIGKILL").value_or(0) == SIGKILL);
  CHECK(ParseSignal("64").value_or(0) == 64);
  for (const char* bad : {"", "0", "65", "-9", "9x", "NOTHING", "SIG"}) {
    const std::string tried = bad;
    CAPTURE(tried);
    CHECK_FALSE(ParseSignal(bad));
  }
}

TEST_CASE("the seccomp profile leaves the mount calls to who has CAP_SYS_ADMIN") {
  CHECK(SeccompProfile(false).find("\"pivot_root\"") != std::string::npos);
  CHECK(SeccompProfile(true).find("\"pivot_root\"") == std::string::npos);
  CHECK(SeccompProfile(true).find("\"kexec_load\"") != std::string::npos);
}

}  // namespace
}  // namespace gcs::host
