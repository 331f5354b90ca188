// SPDX-License-Identifier: Apache-2.0
// The kernel's own opinion of the disks that tests/host/image writes.
#include <unistd.h>

#include <filesystem>
#include <string>

#include "support/skip.h"
#include "unit/host_image_fixture.h"

namespace gcs::host::testing {
namespace {

TEST_CASE("the kernel mounts a layer disk and shows what the archive held") {
  REQUIRE(geteuid() == 0);
  if (access("/dev/loop-control", R_OK | W_OK) != 0) GCS_SKIP("loop devices");
  RawTar tar;
  for (int i = 0; i < 3000; ++i) tar.File("many/name-" + std::to_string(i), std::to_string(i));
  const Converted layer(tar.File("d/.wh.gone").File("f", "content").Dir("tmp", 01777).Bytes());
  const std::string mnt = layer.dir / "mnt";
  std::filesystem::create_directory(mnt);
  const auto [status, text] =
      Shell("unshare -m sh -ec 'mount -o ro,noload,loop " + layer.disk.path + " " + mnt + "; cat " + mnt +
            "/f; stat -c \" %F %t:%T %a\" " + mnt + "/d/gone " + mnt + "/tmp; ls " + mnt +
            "/many | wc -l; cat " + mnt + "/many/name-2999'");
  CHECK(text == "content character special file 0:0 0\n directory 0:0 1777\n3000\n2999");
  CHECK(status == 0);
}

}  // namespace
}  // namespace gcs::host::testing
