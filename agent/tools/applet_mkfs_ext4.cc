// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <optional>
#include <ranges>
#include <string>
#include <string_view>

#include "storage/ext4.h"
#include "tools/applets.h"

namespace gcs::tools {

namespace {

constexpr std::string_view kName = "mkfs.ext4";
constexpr int kUsage = 1;  // as mke2fs

struct Command {
  std::string device;
  bool quiet = false;
  storage::Ext4Options format{.zero_inode_tables = false, .reserved_percent = 5};
};

// -E: of the extended options those that the file systems of ours can have one way or the other.
bool ParseExtended(std::string_view list, Command& command) {
  for (const auto part : std::views::split(list, ',')) {
    const std::string_view word(part.begin(), part.end());
    if (word == "lazy_itable_init=0") {
      command.format.zero_inode_tables = true;
    } else if (word == "lazy_itable_init=1" || word == "lazy_itable_init") {
      command.format.zero_inode_tables = false;
    } else if (word != "nodiscard" && word != "lazy_journal_init=0" && word != "lazy_journal_init=1") {
      // Nothing is ever discarded, and there is no journal; anything else would be a promise that isn't kept.
      Complain(kName, "extended option \"" + std::string(word) + "\" is not built");
      return false;
    }
  }
  return true;
}

// -O: the feature set is fixed; asking for what it is is fine.
bool ParseFeatures(std::string_view list, bool& no_journal) {
  constexpr std::string_view kOn =
      " ext_attr dir_index sparse_super2 filetype extent extents 64bit flex_bg large_file huge_file "
      "dir_nlink extra_isize "
      "metadata_csum ";
  constexpr std::string_view kOff =
      " has_journal resize_inode sparse_super quota encrypt casefold inline_data bigalloc "
      "uninit_bg metadata_csum_seed orphan_file project verity mmp ea_inode ";
  for (const auto part : std::views::split(list, ',')) {
    const std::string_view word(part.begin(), part.end());
    const bool off = word.starts_with('^');
    const std::string name(off ? word.substr(1) : word);
    const std::string_view known = off ? kOff : kOn;
    if (name.empty() || known.find(" " + name + " ") == std::string_view::npos) {
      Complain(kName, "feature \"" + std::string(word) + "\" is not built");
      return false;
    }
    no_journal |= off && name == "has_journal";
  }
  return true;
}

std::optional<Command> Parse(Arguments arguments) {
  Command command;
  bool no_journal = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word == "-q") {
      command.quiet = true;
    } else if (word == "-F") {
      // "Yes, also on something odd": the formatter has no question to ask, and never writes on a device in
      // use.
    } else if (word == "-E" || word == "-O" || word == "-t" || word == "-b" || word == "-I" || word == "-m") {
      if (++i == arguments.size()) {
        Complain(kName, "option " + word + " wants a value");
        return std::nullopt;
      }
      const std::string& value = arguments[i];
      if (word == "-E" && !ParseExtended(value, command)) return std::nullopt;
      if (word == "-O" && !ParseFeatures(value, no_journal)) return std::nullopt;
      if (word == "-m") {
        if (value.size() > 2 || value.empty() || value.find_first_not_of("0123456789") != std::string::npos ||
            std::stoi(value) > 50) {
          Complain(kName, "-m wants 0 to 50");
          return std::nullopt;
        }
        command.format.reserved_percent = static_cast<uint32_t>(std::stoi(value));
      }
      if ((word == "-t" && value != "ext4") || (word == "-b" && value != "4096") ||
          (word == "-I" && value != "256")) {
        Complain(kName, word + " " + value + " is not built");
        return std::nullopt;
      }
    } else if (word.starts_with('-')) {
      Complain(kName, "option " + word + " is not built");
      return std::nullopt;
    } else if (command.device.empty()) {
      command.device = word;
    } else {
      Complain(kName, "a size in blocks is not built: the file system takes the whole device");
      return std::nullopt;
    }
  }
  if (command.device.empty()) {
    Complain(
        kName,
        "use: mkfs.ext4 [-qF] [-m PERCENT] [-E lazy_itable_init=0,nodiscard] -O ^has_journal,... DEVICE");
    return std::nullopt;
  }
  if (!no_journal) {
    Complain(kName, "only file systems without journal are built: say -O ^has_journal");
    return std::nullopt;
  }
  return command;
}

}  // namespace

int MkfsExt4(Arguments arguments) {
  const auto command = Parse(arguments);
  if (!command) return kUsage;
  if (!command->quiet) printf("Writing ext4 on %s\n", command->device.c_str());
  const auto result = storage::FormatExt4(command->device, command->format);
  if (!result) {
    Complain(kName, result.error().ToString());
    return kUsage;
  }
  return 0;
}

}  // namespace gcs::tools
