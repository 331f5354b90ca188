// SPDX-License-Identifier: Apache-2.0
#include <dirent.h>
#include <fcntl.h>
#include <linux/rtc.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <zlib.h>

#include <array>
#include <memory>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

// Hyper-V itself is not here to be tried: that its drivers are built in is what can be seen.
constexpr const char* kHypervOptions[] = {
    "CONFIG_HYPERV=y",         "CONFIG_HYPERV_TIMER=y",    "CONFIG_HYPERV_UTILS=y",
    "CONFIG_HYPERV_BALLOON=y", "CONFIG_HYPERV_STORAGE=y",  "CONFIG_HYPERV_NET=y",
    "CONFIG_PCI_HYPERV=y",     "CONFIG_HYPERV_VSOCKETS=y", "CONFIG_DM_INIT=y",
    "CONFIG_PTP_1588_CLOCK=y", "CONFIG_EFI_STUB=y",        "CONFIG_VIRTIO_VSOCKETS=m",
    "CONFIG_ACPI_NFIT=y",      "CONFIG_ACPI_HOTPLUG_CPU=y"};

Result<> ConfigNamesHyperv() {
  const std::unique_ptr<gzFile_s, decltype(&gzclose)> file(gzopen("/proc/config.gz", "rb"), gzclose);
  if (!file) return ErrnoError("open", "/proc/config.gz");
  std::string text;
  char buffer[16384];
  int n = 0;
  while ((n = gzread(file.get(), buffer, sizeof buffer)) > 0) text.append(buffer, static_cast<size_t>(n));
  if (n < 0) return MakeError(EIO, "inflate", "/proc/config.gz");
  for (const char* option : kHypervOptions) {
    if (!HasWord(text, option)) return MakeError(ENOENT, "find", option, "not in /proc/config.gz");
  }
  return {};
}

Result<> FileSays(const char* path, std::string_view expected) {
  GCS_ASSIGN(const std::string text, ReadFile(path));
  if (!HasWord(text, expected)) return MakeError(EINVAL, "compare", path, text);
  return {};
}

Result<> ReleaseIsOurs() {
  utsname names = {};
  if (uname(&names) != 0) return ErrnoError("uname");
  if (!std::string_view(names.release).ends_with("-lcow")) return MakeError(EINVAL, "uname", names.release);
  return {};
}

// The old prefix of the parameters that the Windows host passes: 8250_core.nr_uarts=.
Result<> SerialPrefixKnown() {
  struct stat info = {};
  if (stat("/sys/module/8250_core/parameters", &info) != 0)
    return ErrnoError("stat", "/sys/module/8250_core/parameters");
  return {};
}

// The command line of q35 has initcall_blacklist=erofs_module_init; it works only with KALLSYMS.
Result<> InitcallBlacklistWorks() {
  GCS_ASSIGN(const std::string types, ReadFile("/proc/filesystems"));
  if (HasWord(types, "erofs"))
    return MakeError(EEXIST, "initcall_blacklist", "erofs_module_init", "it ran anyway");
  return {};
}

// Disks and devices may be found after init starts.
Result<Fd> OpenSoon(const char* path, int flags) {
  Fd file;
  GCS_TRY(Eventually([&]() -> Result<> {
    file.Reset(open(path, flags | O_CLOEXEC));
    if (!file) return ErrnoError("open", path);
    return {};
  }));
  return file;
}

// The runner made the disk with one file on it. noload: how layers are mounted. The command line of q35 makes
// dm-0 over a second disk of the same contents (DM_INIT).
Result<> DiskMounts(const char* disk) {
  GCS_TRY(OpenSoon(disk, O_RDONLY));
  if (mount(disk, "/mnt", "ext4", MS_RDONLY, "noload") != 0) return ErrnoError("mount", disk);
  return FileSays("/mnt/hello", "selfcheck-disk");
}

Result<> PmemReadsBack() {
  GCS_ASSIGN(const Fd disk, OpenSoon("/dev/pmem0", O_RDWR));
  std::array<char, 4096> out;
  out.fill('p');
  std::array<char, 4096> in = {};
  if (pwrite(disk.get(), out.data(), out.size(), 8192) != 4096) return ErrnoError("write", "/dev/pmem0");
  if (fsync(disk.get()) != 0) return ErrnoError("fsync", "/dev/pmem0");
  if (posix_fadvise(disk.get(), 0, 0, POSIX_FADV_DONTNEED) != 0)
    return ErrnoError("drop cache", "/dev/pmem0");
  if (pread(disk.get(), in.data(), in.size(), 8192) != 4096) return ErrnoError("read", "/dev/pmem0");
  if (in != out) return MakeError(EIO, "compare", "/dev/pmem0");
  return {};
}

Result<> RandomDeviceGives() {
  GCS_ASSIGN(const Fd device, OpenSoon("/dev/hwrng", O_RDONLY));
  char bytes[16];
  if (read(device.get(), bytes, sizeof bytes) <= 0) return ErrnoError("read", "/dev/hwrng");
  return {};
}

Result<> ClockIsReadable() {
  GCS_ASSIGN(const Fd clock, OpenSoon("/dev/rtc0", O_RDONLY));
  rtc_time time = {};
  if (ioctl(clock.get(), RTC_RD_TIME, &time) != 0) return ErrnoError("RTC_RD_TIME", "/dev/rtc0");
  if (time.tm_year < 120)
    return MakeError(ERANGE, "RTC_RD_TIME", "/dev/rtc0", "year " + std::to_string(time.tm_year));
  return {};
}

struct CloseDir {
  void operator()(DIR* dir) const { closedir(dir); }
};

// A driver's directory in sysfs links to each device that it drives.
Result<> DriverHasDevice(const char* directory) {
  return Eventually([directory]() -> Result<> {
    const std::unique_ptr<DIR, CloseDir> dir(opendir(directory));
    if (!dir) return ErrnoError("opendir", directory);
    while (const dirent* entry = readdir(dir.get())) {
      // Of the links there, only "module" is no device.
      if (entry->d_type == DT_LNK && std::string_view(entry->d_name) != "module") return {};
    }
    return MakeError(ENODEV, "find a device", directory);
  });
}

const Item kItems[] = {
    {"release", ReleaseIsOurs},
    {"config-gz", ConfigNamesHyperv},
    {"serial-8250-core-prefix", SerialPrefixKnown},
    {"initcall-blacklist", InitcallBlacklistWorks, Where::kQ35},
    {"huge-pages-madvise",
     [] { return FileSays("/sys/kernel/mm/transparent_hugepage/enabled", "[madvise]"); }},
    {"memory-hot-add-online",
     [] { return FileSays("/sys/devices/system/memory/auto_online_blocks", "online"); }},
    {"scsi-disk-ext4", [] { return DiskMounts("/dev/sda"); }},
    {"dm-from-command-line", [] { return DiskMounts("/dev/dm-0"); }, Where::kQ35},
    {"virtio-net", [] { return DriverHasDevice("/sys/bus/virtio/drivers/virtio_net"); }},
    {"virtio-mmio-by-command-line", [] { return DriverHasDevice("/sys/bus/platform/drivers/virtio-mmio"); },
     Where::kMicrovm},
    {"virtio-pci", [] { return DriverHasDevice("/sys/bus/pci/drivers/virtio-pci"); }, Where::kQ35},
    {"virtio-rng", RandomDeviceGives},
    {"pmem-from-nfit", PmemReadsBack, Where::kQ35},
    {"rtc", ClockIsReadable, Where::kQ35},
    {"vm-generation-id", [] { return DriverHasDevice("/sys/bus/platform/drivers/vmgenid"); }, Where::kQ35},
};

}  // namespace

std::span<const Item> MachineItems() { return kItems; }

}  // namespace gcs::selfcheck
