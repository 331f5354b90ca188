// SPDX-License-Identifier: Apache-2.0
// No kernel that this project is built or tested on has resctrl (X86_CPU_RESCTRL, and a processor with RDT):
// what plays it is a tree of plain files, in which the test does what the kernel does when a group is made or
// ended. It shows what is read, written, made and removed; not that a kernel takes it.
#include <doctest/doctest.h>
#include <fcntl.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/paths.h"
#include "engine/intel_rdt.h"
#include "support/temp.h"

namespace gcs::engine {
namespace {

namespace fs = std::filesystem;

void Write(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

std::string Read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class FakeResctrl : public Resctrl {
 public:
  explicit FakeResctrl(const std::string& path)
      : Resctrl(base::Fd(open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC))) {}

  base::Result<> MakeGroup(int parent, const std::string& name) override {
    if (fail_with != 0) return base::MakeError(fail_with, "make resctrl group", name);
    GCS_TRY(Resctrl::MakeGroup(parent, name));
    Fill(fs::read_symlink("/proc/self/fd/" + std::to_string(parent)) / name);
    return {};
  }
  base::Result<> EndGroup(int parent, const std::string& name) override {
    fs::remove_all(fs::read_symlink("/proc/self/fd/" + std::to_string(parent)) / name);
    return {};
  }
  static void Fill(const fs::path& group) {
    Write(group / "tasks", "");
    if (group.parent_path().filename() == "mon_groups") return;
    Write(group / "schemata", "");
    fs::create_directory(group / "mon_groups");
  }

  int fail_with = 0;
};

struct Machine {
  test::TempDir dir;
  fs::path root{dir.path()};
  std::shared_ptr<FakeResctrl> resctrl;
  Machine() {
    FakeResctrl::Fill(root);
    Write(root / "schemata", "    MB:0=100;1=100\n    L3:0=00fff;1=00fff\n");
    fs::create_directory(root / "info");
    Write(root / "info/last_cmd_status", "ok\n");
    resctrl = std::make_shared<FakeResctrl>(dir.path());
  }
  base::Result<RdtGroup> Create(const IntelRdt& config) { return RdtGroup::Create(resctrl, config, "c1"); }
};

IntelRdt Parse(const std::string& json) {
  const auto spec =
      ParseSpec(R"({"ociVersion": "1.3.0", "root": {"path": "/r"}, "process": {"args": ["x"], "cwd": "/"},
                                  "linux": {"namespaces": [{"type": "mount"}], "intelRdt": )" +
                json + "}}");
  REQUIRE_MESSAGE(spec, spec.error().ToString());
  REQUIRE(spec->intel_rdt);
  return *spec->intel_rdt;
}

TEST_CASE("resctrl is found where it is mounted, at the usual place if it is there twice") {
  CHECK(FindResctrl("22 1 0:21 / /sys rw - sysfs sysfs rw\n").empty());
  CHECK(FindResctrl(
            "30 1 0:5 / /resctrl rw - tmpfs x rw\n31 1 0:6 / /mnt/r rw,x shared:1 - resctrl resctrl rw\n") ==
        "/mnt/r");
  CHECK(FindResctrl("31 1 0:6 / /sys/fs/resctrl rw - resctrl x rw\n32 1 0:6 / /b rw - resctrl x rw\n") ==
        "/sys/fs/resctrl");
  const std::string mountinfo = base::ReadFile("/proc/self/mountinfo", 16 << 20).value();
  if (FindResctrl(mountinfo).empty()) {
    const auto absent = Resctrl::Open({});
    REQUIRE_FALSE(absent);
    CHECK(absent.error().err == EOPNOTSUPP);
    CHECK(absent.error().object == "linux.intelRdt");
  }
}

TEST_CASE("without closID a container has a group of its own name, which ends with it") {
  Machine machine;
  auto group = machine.Create(Parse(
      R"({"schemata": ["L2:0=f", "L3CODE:0=3"], "memBwSchema": "MB:0=20", "l3CacheSchema": "L3:0=7f;1=1\nMB:0=9"})"));
  REQUIRE_MESSAGE(group, group.error().ToString());
  CHECK(group->made());
  // memBwSchema's line in place of that in l3CacheSchema, schemata last.
  CHECK(Read(machine.root / "c1/schemata") == "L3:0=7f;1=1\nMB:0=20\nL2:0=f\nL3CODE:0=3\n");
  REQUIRE(group->Enter(4711));
  CHECK(Read(machine.root / "c1/tasks") == "4711");
  CHECK(fs::is_empty(machine.root / "c1/mon_groups"));
  REQUIRE(group->Remove());
  CHECK_FALSE(fs::exists(machine.root / "c1"));
  CHECK(Read(machine.root / "tasks").empty());
}

TEST_CASE("a group of that name which is somebody else's is neither used nor removed") {
  Machine machine;
  fs::create_directory(machine.root / "c1");
  FakeResctrl::Fill(machine.root / "c1");
  const auto group = machine.Create(Parse("{}"));
  REQUIRE_FALSE(group);
  CHECK(group.error().err == EEXIST);
  CHECK(fs::exists(machine.root / "c1"));
  for (const char* name : {"info", "mon_groups", "mon_data"}) {
    const auto reserved = RdtGroup::Create(machine.resctrl, Parse("{}"), name);
    REQUIRE_FALSE(reserved);
    CHECK(reserved.error().err == EINVAL);
    CHECK_FALSE(
        RdtGroup::Create(machine.resctrl, Parse("{\"closID\": \"" + std::string(name) + "\"}"), "c2"));
  }
}

TEST_CASE("a closID without schemata must be there, and stays") {
  Machine machine;
  const IntelRdt config = Parse(R"({"closID": "gold"})");
  const auto missing = machine.Create(config);
  REQUIRE_FALSE(missing);
  CHECK(missing.error().err == ENOENT);
  CHECK(missing.error().object == "linux.intelRdt.closID");
  CHECK_FALSE(fs::exists(machine.root / "gold"));
  fs::create_directory(machine.root / "gold");
  FakeResctrl::Fill(machine.root / "gold");
  auto group = machine.Create(config);
  REQUIRE(group);
  CHECK_FALSE(group->made());
  REQUIRE(group->Enter(5));
  CHECK(Read(machine.root / "gold/tasks") == "5");
  CHECK(Read(machine.root / "gold/schemata").empty());
  REQUIRE(group->Remove());
  CHECK(fs::exists(machine.root / "gold"));
}

TEST_CASE("a closID that is made ends with the container, unless others are in it") {
  Machine machine;
  const IntelRdt config = Parse(R"({"closID": "gold", "l3CacheSchema": "L3:0=f"})");
  for (const bool others : {false, true}) {
    CAPTURE(others);
    auto group = machine.Create(config);
    REQUIRE_MESSAGE(group, group.error().ToString());
    CHECK(group->made());
    CHECK(Read(machine.root / "gold/schemata") == "L3:0=f\n");
    if (others) Write(machine.root / "gold/tasks", "99\n");
    // As another process would know it.
    CHECK(RdtGroup::Find(machine.resctrl, config, "c1", false).Remove());
    CHECK(fs::exists(machine.root / "gold"));
    REQUIRE(RdtGroup::Find(machine.resctrl, config, "c1", true).Remove());
    CHECK(fs::exists(machine.root / "gold") == others);
  }
}

TEST_CASE("a closID that is there must have the schemata that are asked for") {
  struct Row {
    const char* wanted;
    bool fits;
  };
  const Row rows[] = {{"L3:0=fff", true},      {"L3:1=0FFF;0=fff", true}, {"MB:1=100", true},
                      {"L3:0=ff", false},      {"L3:2=fff", false},       {"L2:0=f", false},
                      {"L3:0=fff;1=7", false}, {"nonsense", false},       {"L3:", false}};
  for (const Row& row : rows) {
    CAPTURE(row.wanted);
    Machine machine;
    IntelRdt config{.clos_id = "/", .schemata = {row.wanted}};
    const std::string before = Read(machine.root / "schemata");
    auto group = machine.Create(config);
    CHECK(group.has_value() == row.fits);
    if (!group) CHECK(group.error().err == EINVAL);
    if (!group) CHECK(group.error().object == "linux.intelRdt.closID");
    CHECK(Read(machine.root / "schemata") == before);
    if (!group) continue;
    CHECK_FALSE(group->made());
    REQUIRE(group->Enter(7));
    CHECK(Read(machine.root / "tasks") == "7");
    REQUIRE(group->Remove());
    CHECK(fs::exists(machine.root / "tasks"));
  }
}

TEST_CASE("monitoring has a group below the class of service, which is the container's") {
  for (const char* clos : {"/", "gold"}) {
    CAPTURE(clos);
    Machine machine;
    const fs::path group_dir = std::string(clos) == "/" ? machine.root : machine.root / "gold";
    if (group_dir != machine.root) {
      fs::create_directory(group_dir);
      FakeResctrl::Fill(group_dir);
    }
    auto group = machine.Create({.clos_id = clos, .schemata = {}, .enable_monitoring = true});
    REQUIRE_MESSAGE(group, group.error().ToString());
    REQUIRE(group->Enter(12));
    CHECK(Read(group_dir / "tasks") == "12");
    CHECK(Read(group_dir / "mon_groups/c1/tasks") == "12");
    REQUIRE(group->Remove());
    CHECK(fs::exists(group_dir / "mon_groups"));
    CHECK_FALSE(fs::exists(group_dir / "mon_groups/c1"));
  }
}

TEST_CASE("what fails leaves nothing and says what resctrl says") {
  Machine machine;
  Write(machine.root / "info/last_cmd_status", "too many groups\n");
  machine.resctrl->fail_with = ENOSPC;
  const auto full = machine.Create(Parse("{}"));
  REQUIRE_FALSE(full);
  CHECK(full.error().err == ENOSPC);
  CHECK(full.error().message.find("too many groups") != std::string::npos);
  machine.resctrl->fail_with = 0;
  // Without the file the write fails.
  struct Deaf : FakeResctrl {
    using FakeResctrl::FakeResctrl;
    base::Result<> MakeGroup(int parent, const std::string& name) override {
      return Resctrl::MakeGroup(parent, name);
    }
  };
  const auto deaf = std::make_shared<Deaf>(machine.dir.path());
  CHECK_FALSE(RdtGroup::Create(deaf, Parse(R"({"l3CacheSchema": "L3:0=f"})"), "c1"));
  CHECK_FALSE(RdtGroup::Create(deaf, Parse(R"({"enableMonitoring": true})"), "c1"));
  CHECK_FALSE(fs::exists(machine.root / "c1"));
  auto group = machine.Create(Parse("{}"));
  REQUIRE(group);
  fs::remove(machine.root / "c1/tasks");
  const auto entered = group->Enter(1);
  REQUIRE_FALSE(entered);
  CHECK(entered.error().step == "enter resctrl group");
  CHECK(entered.error().message.find("too many groups") != std::string::npos);
}

}  // namespace
}  // namespace gcs::engine
