// SPDX-License-Identifier: Apache-2.0
#include "host/vm/command.h"

#include <sys/stat.h>

#include <algorithm>

namespace gcs::host {

namespace {

// QEMU's key=value lists write a comma as two.
std::string Escape(const std::string& value) {
  std::string out;
  for (const char c : value) {
    out.push_back(c);
    if (c == ',') out.push_back(c);
  }
  return out;
}

std::string Json(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

base::Result<uint64_t> FileSize(const std::string& path) {
  struct stat st;
  if (stat(path.c_str(), &st) != 0) return base::ErrnoError("stat", path);
  return static_cast<uint64_t>(st.st_size);
}

}  // namespace

std::string DiskId(uint32_t target, uint32_t lun) {
  return "disk-" + std::to_string(target) + "-" + std::to_string(lun);
}
std::string NodeName(uint32_t target, uint32_t lun) {
  return "node-" + std::to_string(target) + "-" + std::to_string(lun);
}

nlohmann::json BlockdevArguments(const Disk& disk) {
  return {{"driver", "raw"},
          {"node-name", NodeName(disk.target, disk.lun)},
          {"read-only", disk.readonly},
          {"discard", "unmap"},
          {"file", {{"driver", "file"}, {"filename", disk.path}}}};
}

nlohmann::json ScsiDiskArguments(const Disk& disk) {
  nlohmann::json device = {{"driver", "scsi-hd"},
                           {"id", DiskId(disk.target, disk.lun)},
                           {"bus", "scsi0.0"},
                           {"channel", 0},
                           {"scsi-id", disk.target},
                           {"lun", disk.lun},
                           {"drive", NodeName(disk.target, disk.lun)}};
  if (!disk.serial.empty()) device["serial"] = disk.serial;
  return device;
}

std::vector<std::string> MachineArguments(Machine machine, Accel accel, const std::string& machine_extra) {
  // Without ACPI, because microvm with it hangs now and then under TCG: the kernel calibrates its clock
  // against the PIT alone there. PIT, PIC and RTC are what the kernel then needs.
  std::string spec = machine == Machine::kMicrovm
                         ? "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,x-option-roms=off"
                         : "q35,usb=off,vmport=off,smm=off";
  spec += machine_extra;
  std::vector<std::string> out = {"-machine", spec};
  if (accel == Accel::kKvm) {
    out.insert(out.end(), {"-accel", "kvm", "-cpu", "host"});
  } else {
    out.insert(out.end(), {"-accel", "tcg", "-cpu", "max"});
  }
  return out;
}

std::string KernelCommandLine(const VmOptions& options) {
  // A triple fault is the one reset that every machine here has; panic=-1 turns a panic into the end of QEMU
  // at once.
  std::string line = "console=ttyS0 reboot=t panic=-1";
  if (options.quiet) line += " quiet";
  if (options.ready_port != 0) line += " gcs.ready-port=" + std::to_string(options.ready_port);
  if (!options.command_line.empty()) line += " " + options.command_line;
  return line;
}

base::Result<std::vector<std::string>> QemuCommand(const VmOptions& options, const VmPaths& paths) {
  const bool q35 = options.machine == Machine::kQ35;
  if (!q35 && (options.max_memory_mib != 0 || !options.nvdimms.empty())) {
    return base::MakeError(EINVAL, "vm options", "machine", "only q35 takes more memory or nvdimms");
  }
  if (options.max_memory_mib != 0 && options.max_memory_mib < options.memory_mib) {
    return base::MakeError(EINVAL, "vm options", "max_memory_mib", "less than memory_mib");
  }
  std::vector<std::string> out = {options.qemu};
  const auto add = [&out](std::initializer_list<std::string> words) { out.insert(out.end(), words); };

  add({"-nodefaults", "-no-user-config", "-display", "none"});
  if (!options.allow_reset) add({"-no-reboot"});
  const std::string nvdimm = options.nvdimms.empty() ? "" : ",nvdimm=on";
  for (std::string& word : MachineArguments(options.machine, options.accel, nvdimm + ",memory-backend=ram")) {
    out.push_back(std::move(word));
  }
  add({"-smp", std::to_string(options.cpus)});
  std::string memory = std::to_string(options.memory_mib) + "M";
  add({"-object", "memory-backend-memfd,id=ram,share=on,size=" + memory});

  uint64_t extra_mib =
      options.max_memory_mib > options.memory_mib ? options.max_memory_mib - options.memory_mib : 0;
  std::vector<uint64_t> sizes;
  for (const std::string& path : options.nvdimms) {
    GCS_ASSIGN(const uint64_t size, FileSize(path));
    if (size == 0 || size % (2 << 20) != 0) {
      return base::MakeError(EINVAL, "vm options", path, "the size of an nvdimm is a multiple of 2 MiB");
    }
    sizes.push_back(size);
    // QEMU reserves an alignment gap of up to 1 GiB per slot.
    extra_mib += (size >> 20) + 1024;
  }
  if (extra_mib != 0) {
    const size_t slots = 8 + options.nvdimms.size();
    memory +=
        ",slots=" + std::to_string(slots) + ",maxmem=" + std::to_string(options.memory_mib + extra_mib) + "M";
  }
  add({"-m", memory});

  add({"-kernel", options.kernel, "-append", KernelCommandLine(options)});
  if (!options.initrd.empty()) add({"-initrd", options.initrd});
  add({"-chardev", "file,id=console,path=" + Escape(paths.console), "-serial", "chardev:console"});
  add({"-chardev", "socket,id=qmp,server=on,wait=off,path=" + Escape(paths.qmp), "-mon",
       "chardev=qmp,mode=control"});

  // virtio-mmio speaks the old protocol unless told otherwise, which vsock does not know.
  if (!q35) add({"-global", "virtio-mmio.force-legacy=false"});
  const std::string bus = q35 ? "-pci" : "-device";
  add({"-chardev", "socket,id=vsock,path=" + Escape(paths.vhost), "-device",
       "vhost-user-vsock" + bus + ",chardev=vsock"});
  add({"-device", "virtio-scsi" + bus + ",id=scsi0"});
  for (const Disk& disk : options.disks) {
    add({"-blockdev", Json(BlockdevArguments(disk)), "-device", Json(ScsiDiskArguments(disk))});
  }
  for (size_t i = 0; i < options.nvdimms.size(); ++i) {
    const std::string number = std::to_string(i);
    add({"-object",
         "memory-backend-file,id=pmem" + number + ",share=on,readonly=on,size=" + std::to_string(sizes[i]) +
             ",mem-path=" + Escape(options.nvdimms[i]),
         "-device", "nvdimm,unarmed=on,id=nvdimm" + number + ",memdev=pmem" + number});
  }
  for (const std::string& word : options.extra_args) out.push_back(word);
  return out;
}

}  // namespace gcs::host
