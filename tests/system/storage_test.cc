// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "storage_support.h"

namespace gcs::storage {
namespace {

namespace fs = std::filesystem;

TEST_CASE_FIXTURE(StorageFixture, "a tmpfs has the size and the mode that were asked for") {
  const auto mounted = storage.MountTmpfs({.mount_id = "t", .size_bytes = 1 << 20, .mode = 0750}, Soon());
  REQUIRE(mounted);
  CHECK(mounted->path == dir / "mounts/t");
  struct statfs fs_stat;
  REQUIRE(statfs(mounted->path.c_str(), &fs_stat) == 0);
  CHECK(fs_stat.f_blocks * static_cast<uint64_t>(fs_stat.f_bsize) == 1 << 20);
  struct stat st;
  REQUIRE(stat(mounted->path.c_str(), &st) == 0);
  CHECK((st.st_mode & 07777) == 0750);
  Unmount("t");
}

TEST_CASE_FIXTURE(StorageFixture, "mounts are listed oldest first and found by path") {
  Tmpfs("z");
  Tmpfs("a");
  const auto list = storage.List();
  REQUIRE(list.size() == 2);
  CHECK(list[0].mount_id == "z");
  CHECK(list[1].mount_id == "a");
  CHECK(list[1].kind == MountKind::kTmpfs);
  CHECK(storage.FindByPath(dir / "mounts/a/x/y")->mount_id == "a");
  CHECK(storage.FindByPath(dir / "mounts/a")->mount_id == "a");
  CHECK(storage.FindByPath(dir / "mounts/ab").error().err == ENOENT);
  UnmountAll();
}

TEST_CASE_FIXTURE(StorageFixture, "a mount id is taken once") {
  Tmpfs("t");
  CHECK(storage.MountTmpfs({.mount_id = "t", .target = dir / "mounts/other"}, Soon()).error().err == EEXIST);
  CHECK_FALSE(fs::exists(dir / "mounts/other"));
  Unmount("t");
  CHECK(storage.Unmount("t", Soon()).error().err == ENOENT);
}

TEST_CASE_FIXTURE(StorageFixture, "of many callers with one mount id one gets it") {
  std::atomic<int> won = 0;
  std::atomic<int> refused = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&] {
      const auto mounted = storage.MountTmpfs({.mount_id = "t"}, Soon());
      if (mounted) {
        ++won;
      } else if (mounted.error().err == EEXIST || mounted.error().err == EBUSY) {
        ++refused;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(won == 1);
  CHECK(refused == 7);
  Unmount("t");
}

TEST_CASE_FIXTURE(StorageFixture, "mounts of many callers don't disturb each other") {
  std::atomic<int> failed = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) {
        const std::string id = "t" + std::to_string(i);
        if (!storage.MountTmpfs({.mount_id = id, .target = dir / ("mounts/shared/" + id)}, Soon())) ++failed;
        if (!storage.Unmount(id, Soon())) ++failed;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(failed == 0);
}

TEST_CASE_FIXTURE(StorageFixture, "an open file keeps a mount busy, and it is still there afterwards") {
  const std::string path = Tmpfs("t");
  {
    const base::Fd file(open((path + "/file").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    const auto result = storage.Unmount("t", Soon());
    REQUIRE_FALSE(result);
    CHECK(result.error().err == EBUSY);
    CHECK(result.error().object == path);
    CHECK(storage.List().size() == 1);
  }
  Unmount("t");
}

TEST_CASE_FIXTURE(StorageFixture, "a container that uses or owns a mount keeps it, by name") {
  Tmpfs("t");
  REQUIRE(storage.Use("t", "c1"));
  CHECK(storage.Unmount("t", Soon()).error().object == "c1");
  storage.Unuse("c1");
  REQUIRE(storage.SetOwner("t", "c2"));
  CHECK(storage.SetOwner("t", "c3").error().err == EBUSY);
  const auto result = storage.Unmount("t", Soon());
  REQUIRE_FALSE(result);
  CHECK(result.error().err == EBUSY);
  CHECK(result.error().object == "c2");
  CHECK(storage.ReleaseOwned("c2", Soon()));
  CHECK(storage.List().empty());
}

TEST_CASE_FIXTURE(StorageFixture, "what a container owned goes with it, users before what they use") {
  Tmpfs("l1");
  Tmpfs("l2");
  REQUIRE(storage.MountOverlay({.mount_id = "root", .layers = {"l1", "l2"}}, Soon()));
  for (const char* id : {"l1", "l2", "root"}) REQUIRE(storage.SetOwner(id, "c"));
  REQUIRE(storage.Use("root", "c"));
  const auto released = storage.ReleaseOwned("c", Soon());
  CHECK_MESSAGE(released, Why(released));
  CHECK(storage.List().empty());
}

TEST_CASE_FIXTURE(StorageFixture, "what can't be released is nobody's and can be unmounted later") {
  const std::string path = Tmpfs("t");
  REQUIRE(storage.SetOwner("t", "c"));
  {
    const base::Fd file(open((path + "/file").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    CHECK(storage.ReleaseOwned("c", Soon()).error().err == EBUSY);
  }
  Unmount("t");
}

TEST_CASE_FIXTURE(StorageFixture, "a target may lie in another mount, which then can't go first") {
  const std::string outer = Tmpfs("outer");
  REQUIRE(storage.MountTmpfs({.mount_id = "inner", .target = outer + "/c/rootfs"}, Soon()));
  const auto result = storage.Unmount("outer", Soon());
  REQUIRE_FALSE(result);
  CHECK(result.error().err == EBUSY);
  CHECK(result.error().object == "inner");
  Unmount("inner");
  CHECK_FALSE(fs::exists(outer + "/c"));
  Unmount("outer");
}

TEST_CASE_FIXTURE(StorageFixture, "a target that would hide another mount is refused") {
  Tmpfs("t");
  CHECK(storage.MountTmpfs({.mount_id = "same", .target = dir / "mounts/t"}, Soon()).error().err == EBUSY);
  CHECK(storage.MountTmpfs({.mount_id = "above", .target = dir / "mounts"}, Soon()).error().err == EBUSY);
  Unmount("t");
}

TEST_CASE_FIXTURE(StorageFixture, "a symbolic link in a mount leads no target outside") {
  const std::string outer = Tmpfs("outer");
  const test::TempDir outside;
  fs::create_directory_symlink(outside.path(), outer + "/link");
  const auto mounted = storage.MountTmpfs({.mount_id = "inner", .target = outer + "/link/x"}, Soon());
  REQUIRE_FALSE(mounted);
  CHECK((mounted.error().err == ELOOP || mounted.error().err == ENOTDIR));
  CHECK(fs::is_empty(outside.path()));
  Unmount("outer");
}

TEST_CASE_FIXTURE(StorageFixture, "a mount whose caller ran out of time has never been there") {
  const auto mounted = storage.MountTmpfs({.mount_id = "t"}, {.deadline_ns = base::MonotonicNs() - 1});
  REQUIRE_FALSE(mounted);
  CHECK(mounted.error().err == ETIMEDOUT);
  CHECK(storage.List().empty());
  Tmpfs("t");
  Unmount("t");
}

TEST_CASE_FIXTURE(StorageFixture,
                  "a mount that somebody else took away is forgotten, one that is covered is busy") {
  const std::string path = Tmpfs("t");
  REQUIRE(mount("cover", path.c_str(), "tmpfs", 0, nullptr) == 0);
  CHECK(storage.Unmount("t", Soon()).error().err == EBUSY);
  REQUIRE(umount(path.c_str()) == 0);
  REQUIRE(umount(path.c_str()) == 0);
  Unmount("t");
}

TEST_CASE_FIXTURE(StorageFixture, "a share on a kernel without v9fs says so and leaves nothing") {
  if (ReadFile("/proc/filesystems").find("\t9p\n") != std::string::npos)
    return;  // then tests/vm has the real ones
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const base::Fd server(ends[1]);
  const auto mounted = storage.MountShare({.mount_id = "s", .port = 564}, base::Fd(ends[0]), Soon());
  REQUIRE_FALSE(mounted);
  CHECK(mounted.error().err == ENODEV);
  CHECK(mounted.error().object == "9p");
  // The connection is closed, so that the server learns it.
  char byte;
  CHECK(recv(server.get(), &byte, 1, 0) == 0);
  CHECK(storage.List().empty());
}

TEST_CASE_FIXTURE(StorageFixture, "what an earlier life of the agent left is unmounted, innermost first") {
  {
    Storage earlier(Options());
    REQUIRE(earlier.MountTmpfs({.mount_id = "outer"}, Soon()));
    const std::string inside = dir / "mounts/outer/a b/c";
    REQUIRE(earlier.MountTmpfs({.mount_id = "inner", .target = inside}, Soon()));
    const auto covered = earlier.MountTmpfs({.mount_id = "covered"}, Soon());
    REQUIRE(covered);
    REQUIRE(mount("tmpfs", covered->path.c_str(), "tmpfs", 0, nullptr) == 0);
  }
  const auto gone = storage.ReleaseLeftovers(Soon());
  REQUIRE_MESSAGE(gone, Why(gone));
  CHECK(*gone == 4);
  CHECK(MountInfoText() == before);
  CHECK(storage.MountTmpfs({.mount_id = "outer"}, Soon()));
  Unmount("outer");
  CHECK(storage.ReleaseLeftovers(Soon()) == 0U);
}

}  // namespace
}  // namespace gcs::storage
