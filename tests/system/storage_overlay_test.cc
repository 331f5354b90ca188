// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "storage_support.h"

namespace gcs::storage {
namespace {

namespace fs = std::filesystem;

struct OverlayFixture : StorageFixture {
  OverlayFixture() {
    upper_layer = Tmpfs("l1");
    lower_layer = Tmpfs("l0");
    scratch = Tmpfs("s");
    WriteFile(upper_layer + "/both", "upper");
    WriteFile(lower_layer + "/both", "lower");
    WriteFile(lower_layer + "/only", "lower");
    fs::create_directories(lower_layer + "/tree/sub");
    WriteFile(lower_layer + "/tree/sub/file", "deep");
  }
  ~OverlayFixture() { UnmountAll(); }

  base::Result<Mounted> Root(const std::string& id, const std::string& scratch_dir = {},
                             bool discard = false) {
    return storage.MountOverlay({.mount_id = id,
                                 .layers = {"l1", "l0"},
                                 .scratch = "s",
                                 .scratch_dir = scratch_dir,
                                 .discard = discard},
                                Soon());
  }

  std::string upper_layer;
  std::string lower_layer;
  std::string scratch;
};

TEST_CASE_FIXTURE(OverlayFixture, "layers are stacked the uppermost first and writes go to the scratch") {
  REQUIRE(chmod(upper_layer.c_str(), 0711) == 0);
  REQUIRE(chown(upper_layer.c_str(), 5, 6) == 0);
  const auto root = Root("r");
  REQUIRE_MESSAGE(root, Why(root));
  CHECK(ReadFile(root->path + "/both") == "upper");
  CHECK(ReadFile(root->path + "/only") == "lower");
  WriteFile(root->path + "/only", "changed");
  CHECK(ReadFile(lower_layer + "/only") == "lower");
  CHECK(ReadFile(scratch + "/r/upper/only") == "changed");
  struct stat st;
  REQUIRE(stat(root->path.c_str(), &st) == 0);
  CHECK((st.st_mode & 07777) == 0711);  // the root looks as the image's
  CHECK(st.st_uid == 5);
  CHECK(st.st_gid == 6);
}

TEST_CASE_FIXTURE(OverlayFixture, "a directory of a layer can be renamed and synced") {
  const auto root = Root("r");
  REQUIRE(root);
  CHECK(rename((root->path + "/tree").c_str(), (root->path + "/moved").c_str()) == 0);
  CHECK(ReadFile(root->path + "/moved/sub/file") == "deep");
  const base::Fd file(open((root->path + "/new").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  CHECK(fsync(file.get()) == 0);
}

TEST_CASE_FIXTURE(OverlayFixture, "an overlay has the options of a container's root") {
  const auto root = Root("r");
  REQUIRE(root);
  const std::string line = MountLine(root->path);
  CHECK(line.find("redirect_dir=on") != std::string::npos);
  CHECK(line.find("volatile") != std::string::npos);
  CHECK(line.find("userxattr") == std::string::npos);
  CHECK(line.find("metacopy=on") == std::string::npos);
  CHECK(line.find("index=on") == std::string::npos);
}

TEST_CASE_FIXTURE(OverlayFixture, "an upper directory can be mounted again and holds what was written") {
  const auto root = Root("r");
  REQUIRE(root);
  WriteFile(root->path + "/kept", "yes");
  Unmount("r");
  CHECK(ReadFile(scratch + "/r/upper/kept") == "yes");
  const auto again = Root("r");
  REQUIRE_MESSAGE(again, Why(again));
  CHECK(ReadFile(again->path + "/kept") == "yes");
}

TEST_CASE_FIXTURE(OverlayFixture, "an upper directory to be discarded is gone after the unmount") {
  const auto root = Root("r", "containers/r", true);
  REQUIRE(root);
  fs::create_directories(root->path + "/a/b/c");
  CHECK(fs::exists(scratch + "/containers/r/upper/a/b/c"));
  Unmount("r");
  CHECK_FALSE(fs::exists(scratch + "/containers/r"));
}

TEST_CASE_FIXTURE(OverlayFixture, "two roots share a scratch but never an upper directory") {
  REQUIRE(Root("r", "dir/a"));
  CHECK(Root("q", "dir/b"));
  for (const char* taken : {"dir/a", "dir", "dir/a/upper"}) {
    CAPTURE(taken);
    const auto other = Root("x", taken);
    REQUIRE_FALSE(other);
    CHECK(other.error().err == EBUSY);
  }
}

TEST_CASE_FIXTURE(OverlayFixture, "layers and scratch can't go before their overlay") {
  REQUIRE(Root("r"));
  for (const char* id : {"l0", "l1", "s"}) {
    CAPTURE(id);
    const auto result = storage.Unmount(id, Soon());
    REQUIRE_FALSE(result);
    CHECK(result.error().err == EBUSY);
    CHECK(result.error().object == "r");
  }
  const auto list = storage.List();
  CHECK(list.back().uses == std::vector<std::string>{"l1", "l0", "s"});
}

TEST_CASE_FIXTURE(OverlayFixture, "without a scratch the root is read-only, of several layers or of one") {
  const auto two = storage.MountOverlay({.mount_id = "two", .layers = {"l1", "l0"}}, Soon());
  REQUIRE_MESSAGE(two, Why(two));
  CHECK(ReadFile(two->path + "/both") == "upper");
  CHECK(ReadFile(two->path + "/only") == "lower");
  const auto one = storage.MountOverlay({.mount_id = "one", .layers = {"l0"}}, Soon());
  REQUIRE_MESSAGE(one, Why(one));
  CHECK(ReadFile(one->path + "/both") == "lower");
  for (const auto& root : {two->path, one->path}) {
    CHECK(open((root + "/new").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0);
    CHECK(errno == EROFS);
  }
  CHECK(storage.List().back().read_only);
  // The layer itself stays what it was.
  WriteFile(lower_layer + "/new", "x");
}

TEST_CASE_FIXTURE(OverlayFixture, "a scratch that can't hold an upper directory is refused") {
  REQUIRE(storage.MountOverlay({.mount_id = "ro", .layers = {"l0"}}, Soon()));
  const auto scratch_of = [&](const std::string& id) {
    const auto root = storage.MountOverlay({.mount_id = "r", .layers = {"l1"}, .scratch = id}, Soon());
    REQUIRE_FALSE(root);
    return root.error().err;
  };
  CHECK(scratch_of("ro") == EINVAL);
  CHECK(scratch_of("l1") == EINVAL);
  CHECK(scratch_of("none") == ENOENT);
}

TEST_CASE_FIXTURE(OverlayFixture, "an overlay that fails takes back the directories it made and no others") {
  fs::create_directories(scratch + "/old");
  WriteFile(scratch + "/old/work", "in the way");
  const auto root = Root("r", "old");
  REQUIRE_FALSE(root);
  CHECK(root.error().err == ENOTDIR);
  CHECK_FALSE(fs::exists(scratch + "/old/upper"));
  CHECK(fs::exists(scratch + "/old/work"));
}

TEST_CASE_FIXTURE(OverlayFixture, "an overlay that the kernel refuses says why in the kernel's words") {
  // The mark of an upper directory whose syncs were skipped and whose overlay was never unmounted.
  fs::create_directories(scratch + "/r/upper");
  fs::create_directories(scratch + "/r/work/work/incompat/volatile");
  const auto root = Root("r");
  REQUIRE_FALSE(root);
  CHECK(root.error().step == "mount overlay");
  CHECK(root.error().err == EINVAL);
  CHECK(fs::exists(scratch + "/r/upper"));
  CHECK(storage.List().size() == 3);
  CHECK_FALSE(fs::exists(dir / "mounts/r"));
}

TEST_CASE_FIXTURE(StorageFixture,
                  "an overlay whose caller ran out of time takes back its directories in the scratch") {
  // The one worker hangs in a write to a "delete" attribute that nobody reads, so the overlay is built after
  // its caller left.
  sysfs.AddScsiDisk(0, 0, 9, "sdz", "8:400", 100);
  const std::string attribute = sysfs.path() + "/bus/scsi/devices/0:0:0:9/delete";
  fs::remove(attribute);
  REQUIRE(mkfifo(attribute.c_str(), 0600) == 0);
  StorageOptions options = Options();
  options.max_workers = 1;
  Storage one(options);
  const auto layer = one.MountTmpfs({.mount_id = "l"}, Soon());
  const auto scratch = one.MountTmpfs({.mount_id = "s"}, Soon());
  REQUIRE(layer);
  REQUIRE(scratch);
  const auto in = [](int64_t ms) { return Wait{.deadline_ns = base::MonotonicNs() + ms * base::kNsPerMs}; };
  CHECK(one.RemoveDisk(ScsiAddress{.lun = 9}, in(50)).error().err == ETIMEDOUT);
  const OverlayMount request{.mount_id = "r", .layers = {"l"}, .scratch = "s"};
  const auto root = one.MountOverlay(request, in(50));
  REQUIRE_FALSE(root);
  CHECK(root.error().err == ETIMEDOUT);
  CHECK(one.MountOverlay(request, in(50)).error().err == EBUSY);
  CHECK(one.List().size() == 2);

  const base::Fd reader(open(attribute.c_str(), O_RDONLY | O_CLOEXEC));
  // "r" is being worked on (EBUSY) until the worker has thrown it away.
  for (int i = 0; i < 500 && one.Unmount("r", Soon()).error().err == EBUSY; ++i) usleep(10'000);
  CHECK(one.Unmount("r", Soon()).error().err == ENOENT);
  CHECK(fs::is_empty(scratch->path));
  CHECK(one.Unmount("s", Soon()));
  CHECK(one.Unmount("l", Soon()));
}

TEST_CASE_FIXTURE(OverlayFixture, "no target lies inside an overlay") {
  const auto root = Root("r");
  REQUIRE(root);
  CHECK(storage.MountTmpfs({.mount_id = "t", .target = root->path + "/tmp"}, Soon()).error().err == EINVAL);
}

TEST_CASE_FIXTURE(StorageFixture, "500 layers with long names make one root") {
  constexpr int kLayers = 500;
  std::vector<std::string> ids;
  for (int i = 0; i < kLayers; ++i) {
    ids.push_back("layer-" + std::string(180, 'x') + std::to_string(i));
    WriteFile(Tmpfs(ids.back()) + "/file" + std::to_string(i), std::to_string(i));
  }
  Tmpfs("s");
  // The paths of these are longer than the 255 bytes of fsconfig(2).
  const std::string deep(200, 'd');
  const auto root = storage.MountOverlay(
      {.mount_id = "r", .layers = ids, .scratch = "s", .scratch_dir = deep + "/" + deep}, Soon());
  REQUIRE_MESSAGE(root, Why(root));
  CHECK(ReadFile(root->path + "/file0") == "0");
  CHECK(ReadFile(root->path + "/file499") == "499");
  WriteFile(root->path + "/new", "x");
  UnmountAll();
}

}  // namespace
}  // namespace gcs::storage
