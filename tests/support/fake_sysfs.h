// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "support/temp.h"

namespace gcs::test {

// The parts of sysfs that say which disks there are, laid out as a kernel 6.12 does, in a temporary
// directory.
class FakeSysfs {
 public:
  [[nodiscard]] const std::string& path() const { return dir_.path(); }

  void Write(const std::string& file, const std::string& text) const {
    const std::filesystem::path path = dir_ / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
  }
  void Link(const std::string& target, const std::string& link) const {
    const std::filesystem::path path = dir_ / link;
    std::filesystem::create_directories(path.parent_path());
    std::filesystem::create_symlink(target, path);
  }
  void MakeDir(const std::string& dir) const { std::filesystem::create_directories(dir_ / dir); }

  // A block device `name` with number "major:minor".
  void AddBlock(const std::string& name, const std::string& number, uint64_t sectors) const {
    Write("class/block/" + name + "/dev", number);
    Write("class/block/" + name + "/size", std::to_string(sectors));
    Write("class/block/" + name + "/ro", "0");
  }
  void AddPartition(const std::string& disk, const std::string& name, int index,
                    const std::string& number) const {
    Write("class/block/" + disk + "/" + name + "/partition", std::to_string(index));
    AddBlock(name, number, 2048);
    Write("class/block/" + name + "/partition", std::to_string(index));
  }
  void AddHost(int host) const { MakeDir("class/scsi_host/host" + std::to_string(host)); }
  void AddScsiDisk(int host, int target, int lun, const std::string& name, const std::string& number,
                   uint64_t sectors) const {
    const std::string hctl =
        std::to_string(host) + ":0:" + std::to_string(target) + ":" + std::to_string(lun);
    AddBlock(name, number, sectors);
    Link("../../../" + hctl, "class/block/" + name + "/device");
    Write("bus/scsi/devices/" + hctl + "/delete", "");
    // Last, as this is what a search for the disk begins with.
    MakeDir("bus/scsi/devices/" + hctl + "/block/" + name);
  }

 private:
  TempDir dir_;
};

}  // namespace gcs::test
