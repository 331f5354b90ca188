// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <string>
#include <string_view>

#include "storage/uevent.h"

namespace gcs::storage {
namespace {

using namespace std::string_view_literals;

constexpr auto kAddDisk =
    "add@/devices/pci0000:00/0000:00:04.0/virtio1/host0/target0:0:0/0:0:0:3/block/sdb\0"
    "ACTION=add\0"
    "DEVPATH=/devices/pci0000:00/0000:00:04.0/virtio1/host0/target0:0:0/0:0:0:3/block/sdb\0"
    "SUBSYSTEM=block\0MAJOR=8\0MINOR=16\0DEVNAME=sdb\0DEVTYPE=disk\0DISKSEQ=4\0SEQNUM=812\0"sv;

TEST_CASE("a kernel's uevent is taken apart") {
  const auto event = ParseUevent(kAddDisk);
  REQUIRE(event);
  CHECK(event->action == "add");
  CHECK(event->subsystem == "block");
  CHECK(event->devname == "sdb");
  CHECK(event->devtype == "disk");
  CHECK(event->devpath.ends_with("/block/sdb"));
}

TEST_CASE("a uevent without its last terminator is taken apart all the same") {
  const auto event = ParseUevent("change@/x\0ACTION=change\0DEVPATH=/x\0SUBSYSTEM=block"sv);
  REQUIRE(event);
  CHECK(event->subsystem == "block");
}

TEST_CASE("what is no kernel uevent is refused") {
  CHECK_FALSE(ParseUevent(""));
  CHECK_FALSE(ParseUevent("libudev\0\xfe\xed\xca\xfe"sv));
  CHECK_FALSE(ParseUevent("@/x\0ACTION=\0DEVPATH=/x\0"sv));
  CHECK_FALSE(ParseUevent("add@"));
  CHECK_FALSE(ParseUevent("add@x\0ACTION=add\0DEVPATH=x\0"sv));
  CHECK_FALSE(ParseUevent("add@/x"));
}

TEST_CASE("a uevent whose keys contradict its head is refused") {
  CHECK_FALSE(ParseUevent("add@/x\0ACTION=remove\0DEVPATH=/x\0SUBSYSTEM=block\0"sv));
  CHECK_FALSE(ParseUevent("add@/x\0ACTION=add\0DEVPATH=/y\0SUBSYSTEM=block\0"sv));
}

TEST_CASE("every cut of a uevent is parsed without reading past its end") {
  for (size_t n = 0; n <= kAddDisk.size(); ++n) {
    const std::string cut(kAddDisk.substr(0, n));  // a heap block of just that size, for the sanitizer
    const auto event = ParseUevent(cut);
    if (event) CHECK(event->action == "add");
  }
}

TEST_CASE("a subscription to uevents opens and is empty or drains") {
  auto socket = UeventSocket::Open();
  REQUIRE(socket);
  CHECK(socket->DrainForBlock());
}

}  // namespace
}  // namespace gcs::storage
