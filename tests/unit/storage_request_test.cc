// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/mount.h>

#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "storage/mount_build.h"
#include "storage/storage.h"
#include "support/temp.h"

// Requests that are refused before any privileged call.
namespace gcs::storage {
namespace {

Wait Soon() { return {.deadline_ns = base::MonotonicNs() + 10 * base::kNsPerSec}; }

struct Fixture {
  test::TempDir dir;
  Storage storage{
      StorageOptions{.default_dir = dir / "mounts", .target_roots = {dir.path()}, .sysfs = dir / "sys"}};
};

TEST_CASE_FIXTURE(Fixture, "mount ids that could name another directory are refused") {
  for (const std::string& id :
       {std::string(), std::string("."), std::string(".."), std::string(".x"), std::string("a/b"),
        std::string("a b"), std::string("a\0b", 3), std::string(256, 'a'), std::string("ä")}) {
    CAPTURE(id);
    const auto result = storage.MountTmpfs({.mount_id = id}, Soon());
    REQUIRE_FALSE(result);
    CHECK(result.error().err == EINVAL);
    CHECK(result.error().step == "check mount_id");
  }
}

TEST_CASE_FIXTURE(Fixture, "disk requests that contradict themselves are refused") {
  const auto refused = [&](DiskMount request) {
    request.mount_id = "d";
    const auto result = storage.MountDisk(request, Soon());
    REQUIRE_FALSE(result);
    return result.error().err;
  };
  CHECK(refused({.fs_type = "btrfs"}) == EINVAL);
  CHECK(refused({.fs_type = "ext3"}) == EINVAL);
  CHECK(refused({.read_only = true, .format_if_empty = true}) == EINVAL);
  CHECK(refused({.fs_type = "xfs", .format_if_empty = true}) == EINVAL);
  CHECK(refused({.format_if_empty = true, .options = {"ro"}}) == EINVAL);
  CHECK(refused({.options = {"remount"}}) == EINVAL);
  CHECK(refused({.target = "/etc/x"}) == EINVAL);
}

TEST_CASE_FIXTURE(Fixture, "overlay requests that contradict themselves are refused") {
  const auto refused = [&](OverlayMount request) {
    request.mount_id = "o";
    const auto result = storage.MountOverlay(request, Soon());
    REQUIRE_FALSE(result);
    return result.error().err;
  };
  CHECK(refused({}) == EINVAL);
  CHECK(refused({.layers = {"a", "b", "a"}}) == EINVAL);
  CHECK(refused({.layers = std::vector<std::string>(501, "a")}) == EINVAL);
  CHECK(refused({.layers = {"a", "b"}, .scratch_dir = "x"}) == EINVAL);
  CHECK(refused({.layers = {"a"}, .scratch = "s", .scratch_dir = "../x"}) == EINVAL);
  CHECK(refused({.layers = {"a"}, .scratch = "s", .scratch_dir = "/x"}) == EINVAL);
  CHECK(refused({.layers = {"a"}, .scratch = "s"}) == ENOENT);
}

TEST_CASE_FIXTURE(Fixture, "share requests that v9fs can't be told are refused") {
  const auto refused = [&](ShareMount request) {
    request.mount_id = "s";
    const auto result = storage.MountShare(request, base::Fd(), Soon());
    REQUIRE_FALSE(result);
    return result.error().err;
  };
  CHECK(refused({.share_name = "a,access=any"}) == EINVAL);
  CHECK(refused({.user_name = "root,x"}) == EINVAL);
  CHECK(refused({.msize = 4095}) == EINVAL);
  CHECK(refused({.msize = (1 << 20) + 1}) == EINVAL);
  CHECK(refused({.engine = ShareEngine::kCompletion}) == EOPNOTSUPP);
  CHECK(refused({.allowed_names = {"x"}}) == EOPNOTSUPP);
  CHECK(refused({}) == EBADF);
}

TEST_CASE_FIXTURE(Fixture, "what doesn't exist can't be unmounted, used or owned") {
  CHECK(storage.Unmount("x", Soon()).error().err == ENOENT);
  CHECK(storage.Use("x", "c").error().err == ENOENT);
  CHECK(storage.SetOwner("x", "c").error().err == ENOENT);
  CHECK(storage.FindByPath("/x").error().err == ENOENT);
  CHECK(storage.ReleaseOwned("c", Soon()));
  CHECK(storage.List().empty());
}

TEST_CASE_FIXTURE(Fixture, "a disk that doesn't come leaves no trace of its mount") {
  const auto result = storage.MountDisk({.mount_id = "d", .disk = PmemAddress{}},
                                        {.deadline_ns = base::MonotonicNs() + 30'000'000});
  REQUIRE_FALSE(result);
  CHECK(result.error().err == ETIMEDOUT);
  CHECK(storage.List().empty());
  CHECK_FALSE(std::filesystem::exists(dir / "mounts"));
}

TEST_CASE("mount options go to the mount or to the file system") {
  const auto parsed = ParseMountOptions(
      {"nosuid", "nodev", "defaults", "noatime", "data=ordered", "nobarrier", "relatime"}, false);
  REQUIRE(parsed);
  CHECK(parsed->attributes == (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME));
  CHECK_FALSE(parsed->read_only);
  REQUIRE(parsed->fs.size() == 2);
  CHECK(parsed->fs[0] == std::pair<std::string, std::string>("data", "ordered"));
  CHECK(parsed->fs[1] == std::pair<std::string, std::string>("nobarrier", ""));
}

TEST_CASE("a read-only mount has no access times unless asked for") {
  CHECK(ParseMountOptions({}, true)->attributes == (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME));
  CHECK(ParseMountOptions({"ro"}, false)->read_only);
  CHECK(ParseMountOptions({"ro", "strictatime"}, false)->attributes ==
        (MOUNT_ATTR_RDONLY | MOUNT_ATTR_STRICTATIME));
}

TEST_CASE("options that ask for something else than a new mount are refused") {
  for (const char* option : {"remount", "bind", "rbind", "shared", "rslave", "private", "unbindable", "loop",
                             "loop=/dev/loop1", "", "=x", "data="}) {
    CAPTURE(option);
    CHECK_FALSE(ParseMountOptions({option}, false));
  }
  CHECK_FALSE(ParseMountOptions({"rw"}, true));
  CHECK_FALSE(ParseMountOptions({"noatime", "strictatime"}, false));
}

}  // namespace
}  // namespace gcs::storage
