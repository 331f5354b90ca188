// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <vector>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

constexpr uint64_t kSectors = 32768;  // 16 MiB, of memory that is used only where it is written
// A whole page: written without being read first, which dm-integrity would refuse before the first write.
constexpr size_t kBlock = 4096;

// A loop device over memory, gone when the object is.
class Loop {
 public:
  static Result<Loop> Make() {
    const Fd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!control) return ErrnoError("open", "/dev/loop-control");
    const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return ErrnoError("LOOP_CTL_GET_FREE");
    const Fd memory(memfd_create("disk", MFD_CLOEXEC));
    if (!memory) return ErrnoError("memfd_create");
    if (ftruncate(memory.get(), kSectors * 512) != 0) return ErrnoError("ftruncate", "disk");
    Loop loop;
    loop.path_ = "/dev/loop" + std::to_string(number);
    loop.device_.Reset(open(loop.path_.c_str(), O_RDWR | O_CLOEXEC));
    if (!loop.device_) return ErrnoError("open", loop.path_);
    loop_config config = {};
    config.fd = static_cast<uint32_t>(memory.get());
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (ioctl(loop.device_.get(), LOOP_CONFIGURE, &config) != 0)
      return ErrnoError("LOOP_CONFIGURE", loop.path_);
    return loop;
  }

  [[nodiscard]] int fd() const { return device_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
  Fd device_;
};

Result<> WriteThenRead(int fd, const std::string& object) {
  std::array<char, kBlock> out;
  out.fill('s');
  std::array<char, kBlock> in = {};
  if (pwrite(fd, out.data(), out.size(), kBlock) != ssize_t{kBlock}) return ErrnoError("write", object);
  if (fsync(fd) != 0) return ErrnoError("fsync", object);
  if (posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) return ErrnoError("drop cache", object);
  if (pread(fd, in.data(), in.size(), kBlock) != ssize_t{kBlock}) return ErrnoError("read", object);
  if (in != out) return MakeError(EIO, "compare", object, "read other bytes than written");
  return {};
}

Result<> LoopOverMemory() {
  GCS_ASSIGN(const Loop loop, Loop::Make());
  return WriteThenRead(loop.fd(), loop.path());
}

// One ioctl of the device mapper: its answer, with `extra` appended to the header as payload.
Result<std::vector<char>> DmIoctl(int control, unsigned long request, const char* name, uint32_t targets,
                                  const std::string& extra) {
  std::vector<char> buffer(16384);
  dm_ioctl header = {};
  header.version[0] = DM_VERSION_MAJOR;
  header.data_size = static_cast<uint32_t>(buffer.size());
  header.data_start = sizeof header;
  header.target_count = targets;
  std::strncpy(header.name, name, sizeof header.name - 1);
  std::memcpy(buffer.data(), &header, sizeof header);
  std::memcpy(buffer.data() + sizeof header, extra.data(), extra.size());
  if (ioctl(control, request, buffer.data()) != 0) return ErrnoError("device mapper ioctl", name);
  return buffer;
}

Result<Fd> DmControl() {
  Fd control(open("/dev/mapper/control", O_RDWR | O_CLOEXEC));
  if (!control) return ErrnoError("open", "/dev/mapper/control");
  return control;
}

Result<> TargetExists(const char* target) {
  GCS_ASSIGN(const Fd control, DmControl());
  GCS_ASSIGN(const std::vector<char> answer, DmIoctl(control.get(), DM_LIST_VERSIONS, "", 0, ""));
  dm_ioctl header;
  std::memcpy(&header, answer.data(), sizeof header);
  for (size_t at = header.data_start; at + sizeof(dm_target_versions) < answer.size();) {
    dm_target_versions entry;
    std::memcpy(&entry, answer.data() + at, sizeof entry);
    if (std::string_view(answer.data() + at + sizeof entry) == target) return {};
    if (entry.next == 0) break;
    at += entry.next;
  }
  return MakeError(ENOENT, "find device mapper target", target);
}

// A device over a loop device with one target that covers it, written and read, and removed again.
Result<> MappedDeviceWorks(const std::string& target, uint64_t sectors, const std::string& before_device,
                           const std::string& after_device) {
  GCS_ASSIGN(const Loop loop, Loop::Make());
  GCS_ASSIGN(const Fd control, DmControl());
  const std::string name = "selfcheck-" + target;
  GCS_ASSIGN(const std::vector<char> created, DmIoctl(control.get(), DM_DEV_CREATE, name.c_str(), 0, ""));
  dm_ioctl header;
  std::memcpy(&header, created.data(), sizeof header);

  const std::string parameters = before_device + loop.path() + after_device;
  dm_target_spec spec = {};
  spec.length = sectors;
  std::memcpy(spec.target_type, target.data(), target.size());
  std::string table(reinterpret_cast<const char*>(&spec), sizeof spec);
  table += parameters + '\0';
  auto works = [&]() -> Result<> {
    GCS_TRY(DmIoctl(control.get(), DM_TABLE_LOAD, name.c_str(), 1, table));
    GCS_TRY(
        DmIoctl(control.get(), DM_DEV_SUSPEND, name.c_str(), 0, ""));  // Without the flag it means resume.
    const std::string node = "/tmp/" + name;
    GCS_TRY(FreshTmp());
    if (mknod(node.c_str(), S_IFBLK | 0600, header.dev) != 0) return ErrnoError("mknod", node);
    const Fd device(open(node.c_str(), O_RDWR | O_CLOEXEC));
    if (!device) return ErrnoError("open", node);
    return WriteThenRead(device.get(), node);
  };
  const Result<> result = works();
  const auto removed = DmIoctl(control.get(), DM_DEV_REMOVE, name.c_str(), 0, "");
  GCS_TRY(result);
  if (!removed) return std::unexpected(removed.error());
  return {};
}

Result<> LinearWorks() { return MappedDeviceWorks("linear", kSectors, "", " 0"); }

Result<> CryptWorks() {
  const std::string key(128, 'a');  // 64 bytes in hexadecimal: two AES-256 keys
  return MappedDeviceWorks("crypt", kSectors, "aes-xts-plain64 " + key + " 0 ", " 0");
}

// Internal hash, no journal: as encrypted scratch disks are made. Tags and the journal take part of the
// sectors.
Result<> IntegrityWorks() {
  return MappedDeviceWorks("integrity", 16384, "", " 0 32 D 1 internal_hash:sha256");
}

const Item kItems[] = {
    {"loop-device", LoopOverMemory},  {"dm-target-verity", [] { return TargetExists("verity"); }},
    {"dm-linear", LinearWorks},       {"dm-crypt", CryptWorks},
    {"dm-integrity", IntegrityWorks},
};

}  // namespace

std::span<const Item> BlockItems() { return kItems; }

}  // namespace gcs::selfcheck
