// SPDX-License-Identifier: Apache-2.0
// Escapes through the root file system: what an image or a volume has where the engine mounts, makes and
// opens. escapes.md says which number is tested where, and which weakening of the engine makes its case fail.
#include <sys/sysmacros.h>

#include <csignal>
#include <sstream>

#include "support/skip.h"
#include "system/escape_support.h"

namespace gcs::test {
namespace {

namespace fs = std::filesystem;
using base::Json;

// A volume with "a", a directory, and "b", a link to `target`: names to be exchanged.
struct Volume : TempDir {
  explicit Volume(const std::string& target) {
    fs::create_directories(path() + "/a");
    fs::create_symlink(target, path() + "/b");
  }
};

void AddVolume(Json& config, const TempDir& volume, const std::string& at) {
  config["mounts"].push_back(
      {{"destination", at}, {"type", "bind"}, {"source", volume.path()}, {"options", {"rbind"}}});
}

// Creates the container again and again; how often that worked. To lose the race is no failure, as long as
// nothing happens outside.
int CreateOften(const Json& config, int rounds, const Outside& outside) {
  int made = 0;
  for (int i = 0; i < rounds && outside.untouched(); ++i) {
    RunningContainer running;
    made += running.Create(config, NextId()).has_value() ? 1 : 0;
  }
  return made;
}

TEST_CASE(
    "escape 04: no mount is ever attached outside while a volume exchanges its target (CVE-2021-30465)") {
  // What a mount that went astray would cover: seen by a hook, which runs in the container's mount namespace
  // but below the machine's files.
  const Outside outside;
  const Volume volume(outside.path());
  fs::create_directories(outside / "sub");
  REQUIRE(base::ReplaceFile(outside / "sub/file", "untouched", 0644));
  fs::create_directories(volume / "a/sub");
  REQUIRE(base::ReplaceFile(volume / "a/sub/file", "", 0644));
  Json config = DefaultConfig(EngineMachine::Get().MakeRoot("exchange"), {"true"});
  AddVolume(config, volume, "/tmp");
  config["mounts"].push_back({{"destination", "/tmp/a/sub"}, {"type", "tmpfs"}, {"source", "tmpfs"}});
  config["hooks"]["createContainer"] = {
      {{"path", "/bin/grep"}, {"args", {"grep", "-q", "untouched", outside / "sub/file"}}}};
  const std::string mounts = *base::ReadFile("/proc/self/mountinfo");
  const Swapper swapper(volume / "a", volume / "b");
  int made = 0;
  int covered = 0;
  for (int i = 0; i < Rounds(200, 10'000) && covered == 0; ++i) {
    RunningContainer running;
    const auto created = running.Create(config, NextId());
    made += created ? 1 : 0;
    covered += !created && created.error().step == "createContainer hook" ? 1 : 0;
  }
  CHECK(made > 0);
  CHECK(covered == 0);
  CHECK(outside.victim() == "untouched");
  CHECK(*base::ReadFile("/proc/self/mountinfo") == mounts);
}

TEST_CASE(
    "escape 05: no file, directory, node or link is ever made outside by the same race (CVE-2024-45310)") {
  const Outside outside;
  const Volume volume(outside.path());
  Json config = DefaultConfig(EngineMachine::Get().MakeRoot("exchange-make"), {"true"});
  AddVolume(config, volume, "/tmp");
  config["mounts"].push_back({{"destination", "/tmp/a/sub/dir"}, {"type", "tmpfs"}, {"source", "tmpfs"}});
  config["mounts"].push_back({{"destination", "/tmp/a/sub/file"},
                              {"type", "bind"},
                              {"source", "/bin/busybox"},
                              {"options", {"bind"}}});
  config["linux"]["devices"] = {{{"path", "/tmp/a/node"}, {"type", "c"}, {"major", 1}, {"minor", 3}}};
  const std::string mounts = *base::ReadFile("/proc/self/mountinfo");
  const Swapper swapper(volume / "a", volume / "b");
  int made = CreateOften(config, Rounds(100, 5000), outside);
  BuildBelowMachine(config);
  made += CreateOften(config, Rounds(100, 5000), outside);
  CHECK(made > 0);
  CHECK(outside.untouched());
  CHECK(*base::ReadFile("/proc/self/mountinfo") == mounts);
}

TEST_CASE("escape 05: relative links and links to links that lead upwards make nothing outside either") {
  const Outside outside;
  for (const std::string& link :
       {outside.path(), "../../../../../../../.." + outside.path(), "/chain" + outside.path()}) {
    CAPTURE(link);
    const std::string root = EngineMachine::Get().MakeRoot("upwards" + NextId());
    fs::create_symlink("/", root + "/chain");
    fs::create_symlink(link, root + "/data");
    Json config = DefaultConfig(root, {"true"});
    config["root"]["readonly"] = false;
    config["mounts"].push_back({{"destination", "/data/dir"}, {"type", "tmpfs"}, {"source", "tmpfs"}});
    config["mounts"].push_back(
        {{"destination", "/data/new/file"}, {"source", "/bin/busybox"}, {"options", {"bind"}}});
    BuildBelowMachine(config);
    RunningContainer running;
    CHECK(running.Create(config, NextId()));
    CHECK(outside.untouched());
    CHECK(fs::exists(root + outside.path() + "/new/file"));
  }
}

TEST_CASE("escape 06: a label is not written to files of the image that look like procfs (CVE-2019-16884)") {
  if (base::ReadFile("/sys/kernel/security/lsm").value_or("").find("apparmor") != std::string::npos) {
    GCS_SKIP("kernel without AppArmor");
  }
  const std::string root = EngineMachine::Get().MakeRoot("fakeattr");
  const std::string fake = root + "/proc/self/attr/apparmor";
  fs::create_directories(fake);
  for (const std::string& file : {fake + "/exec", root + "/proc/self/attr/exec"}) {
    REQUIRE(base::ReplaceFile(file, "untouched", 0666));
  }
  Json config = DefaultConfig(root, {"true"});
  RemoveMounts(config, "/proc");
  config["linux"]["maskedPaths"] = Json::array();
  config["linux"]["readonlyPaths"] = Json::array();
  config["root"]["readonly"] = false;
  config["process"]["apparmorProfile"] = "docker-default";
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  CHECK_FALSE(created);  // else the label would have been lost in silence
  if (!created) CHECK(created.error().step == "set label");
  CHECK(*base::ReadFile(fake + "/exec") == "untouched");
  CHECK(*base::ReadFile(root + "/proc/self/attr/exec") == "untouched");
}

TEST_CASE("escape 06: procfs and sysfs are not mounted through a link (CVE-2019-19921, CVE-2023-27561)") {
  for (const char* name : {"proc", "sys"}) {
    for (const char* target : {"/tmp", "tmp", "../tmp", "/proc-of-image"}) {
      CAPTURE(name);
      CAPTURE(target);
      const std::string root = EngineMachine::Get().MakeRoot("proclink" + NextId());
      fs::create_directories(root + "/proc-of-image/self/attr");
      fs::remove(root + "/" + name);
      fs::create_symlink(target, root + "/" + name);
      RunningContainer running;
      const auto created = running.Create(DefaultConfig(root, {"true"}), NextId());
      CHECK_FALSE(created);
      if (!created) CHECK(created.error().step == "open mount target");
    }
  }
}

TEST_CASE(
    "escape 06: nothing of a configuration is mounted over a part of procfs, also not through a link "
    "(CVE-2023-28642)") {
  const std::string root = EngineMachine::Get().MakeRoot("procpart");
  fs::create_symlink("/proc/self/attr", root + "/attr");
  fs::create_symlink("proc", root + "/proc-again");
  for (const char* at :
       {"/proc/self/attr", "/attr", "/proc-again/self/attr", "/attr/../attr", "/proc-again/sys"}) {
    CAPTURE(at);
    Json config = DefaultConfig(root, {"true"});
    config["mounts"].push_back({{"destination", at}, {"type", "tmpfs"}, {"source", "tmpfs"}});
    RunningContainer running;
    const auto created = running.Create(config, NextId());
    CHECK_FALSE(created);
    if (!created) CHECK(created.error().err == EPERM);
  }
}

// An image without a procfs at /proc, whose ip_forward is a link to the volume's victim; the real one shows
// at /real.
Json FakeProcConfig(const std::string& root, const Outside& outside) {
  fs::create_directories(root + "/proc/sys/net/ipv4");
  fs::create_directories(root + "/real");
  Json config = DefaultConfig(root, {"cat", "/real/sys/net/ipv4/ip_forward"});
  RemoveMounts(config, "/proc");
  config["mounts"].push_back({{"destination", "/real"}, {"type", "proc"}, {"source", "proc"}});
  AddVolume(config, outside, "/volume");
  config["linux"]["maskedPaths"] = Json::array();
  config["linux"]["readonlyPaths"] = Json::array();
  config["root"]["readonly"] = false;
  config["linux"]["sysctl"] = {{"net.ipv4.ip_forward", "1"}};
  return config;
}

TEST_CASE(
    "escape 07: a sysctl reaches the kernel and no file, whatever the image has at /proc (CVE-2025-52881)") {
  const Outside outside;
  const std::string root = EngineMachine::Get().MakeRoot("fakeproc");
  const Json config = FakeProcConfig(root, outside);
  fs::create_symlink("/volume/victim", root + "/proc/sys/net/ipv4/ip_forward");
  CHECK(Run(config).out == "1\n");
  CHECK(outside.untouched());
}

TEST_CASE("escape 07: nor while a sibling exchanges directories there for links") {
  const Outside outside;
  const std::string root = EngineMachine::Get().MakeRoot("fakeproc-race");
  const Json config = FakeProcConfig(root, outside);
  // By turns a file of the image and the victim outside.
  const std::string dir = root + "/proc/sys/net/ipv4";
  REQUIRE(base::ReplaceFile(dir + "/ip_forward", "0", 0666));
  fs::create_symlink("/volume/victim", dir + "/other");
  {
    const Swapper swapper(dir + "/ip_forward", dir + "/other");
    CHECK(CreateOften(config, Rounds(200, 10'000), outside) > 0);
  }
  CHECK(outside.untouched());
  const bool file = fs::is_symlink(dir + "/other");
  CHECK(*base::ReadFile(file ? dir + "/ip_forward" : dir + "/other") == "0");
}

TEST_CASE(
    "escape 08: a masked file is covered by the null device, not by what the image has as such "
    "(CVE-2025-31133)") {
  const Outside outside;
  // At the latest moment, between the devices and the masks, /dev/null becomes a link to the victim.
  const std::string root = EngineMachine::Get().MakeRoot("nullswap");
  Json config = DefaultConfig(
      root,
      {"sh", "-c", "cat /etc/secret; stat -c %t:%T /etc/secret; echo hit > /etc/secret; ls /etc/secrets"});
  RemoveMounts(config, "/dev");
  AddVolume(config, outside, "/volume");
  config["root"]["readonly"] = false;
  fs::create_directories(root + "/etc/secrets");
  REQUIRE(base::ReplaceFile(root + "/etc/secret", "secret", 0666));
  REQUIRE(base::ReplaceFile(root + "/etc/secrets/one", "secret", 0666));
  config["linux"]["maskedPaths"] = {"/etc/secret", "/etc/secrets"};
  config["hooks"]["createContainer"] = {
      {{"path", "/bin/ln"}, {"args", {"ln", "-sfn", "/volume/victim", root + "/dev/null"}}}};
  const Outcome outcome = Run(config);
  CHECK(outcome.out == "1:3\n");
  CHECK(outside.untouched());
  CHECK(fs::is_symlink(root + "/dev/null"));
  CHECK(*base::ReadFile(root + "/etc/secret") == "secret");
}

TEST_CASE("escape 08: a default device that the image has as something else is refused, not trusted") {
  const Outside outside;
  const std::string root = EngineMachine::Get().MakeRoot("nullkinds");
  Json config = DefaultConfig(root, {"true"});
  RemoveMounts(config, "/dev");
  config["root"]["readonly"] = false;
  const std::string null = root + "/dev/null";
  const auto refused = [&] {
    RunningContainer running;
    const auto created = running.Create(config, NextId());
    fs::remove_all(null);
    return !created && created.error().step == "mknod" && created.error().err == EEXIST;
  };
  fs::create_symlink("/proc/sysrq-trigger", null);
  CHECK(refused());
  REQUIRE(base::ReplaceFile(null, "", 0666));
  CHECK(refused());
  fs::create_directory(null);
  CHECK(refused());
  REQUIRE(mkfifo(null.c_str(), 0666) == 0);
  CHECK(refused());
  REQUIRE(mknod(null.c_str(), S_IFCHR | 0666, makedev(1, 5)) == 0);
  CHECK(refused());
  REQUIRE(mknod(null.c_str(), S_IFBLK | 0666, makedev(1, 3)) == 0);
  CHECK(refused());
  REQUIRE(mknod(null.c_str(), S_IFCHR | 0666, makedev(1, 3)) == 0);
  CHECK(Run(config).status == 0);
}

TEST_CASE(
    "escape 09: /dev/console of the image as a link stays inside, and the console is the pty "
    "(CVE-2025-52565)") {
  for (const bool below_machine : {true, false}) {
    CAPTURE(below_machine);
    const Outside outside;
    const std::string root = EngineMachine::Get().MakeRoot("console" + NextId());
    Json config = DefaultConfig(root, {"sh", "-c", "[ -c /dev/console ] && stat -L -c %t:%T /dev/console"});
    std::erase_if(config["mounts"].get_ref<Json::array_t&>(),
                  [](const Json& m) { return m["destination"] == "/dev"; });
    fs::create_symlink(outside / "made", root + "/dev/console");
    config["process"]["terminal"] = true;
    config["root"]["readonly"] = false;
    if (below_machine) BuildBelowMachine(config);
    RunningContainer running;
    const auto created = running.Create(config, NextId());
    REQUIRE_MESSAGE(created, created.error().ToString());
    const base::Fd master = running.container->init.TakeConsole();
    REQUIRE(running.Start());
    std::string text;
    char buffer[512];
    for (ssize_t n = 0; (n = read(master.get(), buffer, sizeof buffer)) > 0;) text.append(buffer, n);
    CHECK(text == "88:0\r\n");  // major 136: a pty
    CHECK(running.Finish().status == 0);
    CHECK(outside.untouched());
  }
}

TEST_CASE("escape 09: a pty is the container's own devpts', never one that the image put in its place") {
  // A node like devpts' ptmx on the image's file system opens a pty of whatever devpts is mounted beside it.
  const std::string root = EngineMachine::Get().MakeRoot("ptmx");
  Json config = DefaultConfig(root, {"true"});
  RemoveMounts(config, "/dev");
  fs::create_directories(root + "/dev/pts/pts");
  REQUIRE(mknod((root + "/dev/pts/ptmx").c_str(), S_IFCHR | 0666, makedev(5, 2)) == 0);
  config["mounts"].push_back({{"destination", "/dev/pts/pts"},
                              {"type", "devpts"},
                              {"source", "devpts"},
                              {"options", {"newinstance", "ptmxmode=0666"}}});
  config["process"]["terminal"] = true;
  config["root"]["readonly"] = false;
  RunningContainer running;
  const auto created = running.Create(config, NextId());
  CHECK_FALSE(created);
  if (!created) CHECK(created.error().step == "open console");
}

TEST_CASE(
    "escape 10: a link as /dev, /dev/pts or /dev/shm leads nowhere outside (CVE-2026-41579, "
    "CVE-2026-47766)") {
  for (const std::string name : {"/dev", "/dev/pts", "/dev/shm"}) {
    for (const std::string prefix : {"", "../../../../../../.."}) {
      CAPTURE(name);
      CAPTURE(prefix);
      const Outside outside;
      const std::string root = EngineMachine::Get().MakeRoot("dev" + NextId());
      fs::remove_all(root + name);
      fs::create_symlink(prefix + outside.path(), root + name);
      Json config = DefaultConfig(root, {"true"});
      // The image's /dev, and its own directories there.
      RemoveMounts(config, "/dev");
      config["mounts"].push_back({{"destination", "/dev/shm"}, {"type", "tmpfs"}, {"source", "shm"}});
      config["mounts"].push_back({{"destination", "/dev/pts/sub"}, {"type", "tmpfs"}, {"source", "shm"}});
      config["linux"]["devices"] = {{{"path", name + "/node"}, {"type", "c"}, {"major", 1}, {"minor", 3}}};
      config["root"]["readonly"] = false;
      for (const bool below_machine : {false, true}) {
        CAPTURE(below_machine);
        if (below_machine) BuildBelowMachine(config);
        RunningContainer running;
        const auto created = running.Create(config, NextId());
        CHECK_MESSAGE(created, created.error().ToString());
        CHECK(outside.untouched());
      }
      if (name == "/dev") CHECK(fs::exists(root + outside.path() + "/null"));
    }
  }
}

std::string Listing(const std::string& dir) {
  std::string all;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) all += entry.path().string() + "\n";
  return all;
}

TEST_CASE("escape 17: the engine leaves no file of its own in the root file system (CVE-2025-24965)") {
  const std::string root = EngineMachine::Get().MakeRoot("untouched");
  const std::string image = Listing(root);
  Json config = DefaultConfig(root, {"sh", "-c", "find / -xdev"});
  fs::create_symlink("busybox", root + "/bin/find");
  config["root"]["readonly"] = false;
  const Outcome outcome = Run(config);
  REQUIRE(outcome.status == 0);
  // While it ran, and after.
  for (const std::string& text : {outcome.out, Listing(root)}) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      CAPTURE(line);
      if (!line.starts_with(root)) line = root + (line == "/" ? "" : line);
      // The mount points that were missing would be all right; this image has them.
      const bool known =
          line == root || line == root + "/bin/find" || image.find(line + "\n") != std::string::npos;
      CHECK(known);
    }
  }
}

}  // namespace
}  // namespace gcs::test
